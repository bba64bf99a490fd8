"""How long a planned video takes on one or several H200, and about how long on other cards. No torch.

A call computes matrices and attention, or waits for the host that launches them. Several processes divide the
former and exchange tokens for heads twice a layer. The rates were fitted to runs on one and two H200
(docs/results.md, "One video on two GPUs"). For another card they are scaled by what is published of it. The
start of the program, prompts, what is compiled at first and what is offloaded are left out.
"""

from qvg_cli.config.schema import RunConfig
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.sizes import ModelSizes
from qvg_kernels.spec import Bf16Spec, NoneSpec

CARD = "H200"
RATES = {
    "H200": (989, 4800), "H100": (989, 3350), "A100 80GB": (312, 2039), "A100 40GB": (312, 1555),
    "L40S": (362, 864), "A40": (150, 696), "RTX 5090": (210, 1792), "RTX 4090": (165, 1008),
    "RTX 3090": (71, 936),
}  # fmt: skip
"""Published TFLOP/s of dense bf16 matrices with float32 sums, and GB/s. Source: NVIDIA's data sheets."""
_MATRIX_RATE = 340e12
"""Multiplications and additions of matrices in a second, all that is done to tokens alone included."""
_ATTENTION_RATE = 740e12
_BF16_ATTENTION_RATE = 480e12
"""Over a cache that is not packed: 180 latent frames of Self-Forcing took 96.0 s, and 64.9 s with int2."""
_LAUNCH_SECONDS = 0.0026
"""Of a layer, on the host."""
_EXCHANGE_SECONDS = 0.00025
"""Of each, whatever it carries: with four and five a layer, two GPUs took 0.9 and 1.4 ms a layer for them."""
_LINK_BYTES = 200e9
"""That a GPU sends in a second."""


def transformer_seconds(config: RunConfig, plan: VideoPlan, sizes: ModelSizes, card: str = CARD) -> float:
    """Seconds of the whole video on one of `RATES`, without the VAE, for the share of one process."""
    is_packed = not isinstance(config.cache.k, NoneSpec | Bf16Spec)
    attention_rate = (_ATTENTION_RATE if is_packed else _BF16_ATTENTION_RATE) / _slower(card)
    # About half of this time is of matrices, and half of tensors that are read and written.
    matrix_rate = _MATRIX_RATE * 2 / (_slower(card) + RATES[CARD][1] / RATES[card][1])

    def call(frames: int, attended: int, rows: int) -> float:
        """Seconds of a model call that `rows` times `frames` pass, and attend to `attended` frames."""
        tokens, width = rows * frames * plan.tokens_per_frame, sizes.heads * sizes.head_dim
        matrices = 2 * sizes.matrix_values * tokens / sizes.num_parts
        keys = attended * plan.tokens_per_frame
        attention = 4 * sizes.streams * tokens * keys * width * sizes.num_layers
        device = matrices / matrix_rate + attention / attention_rate
        seconds = max(device, sizes.num_layers * _LAUNCH_SECONDS)
        if sizes.num_parts == 1:
            return seconds
        # Queries, keys and values go, and of each stream what was gathered comes back, in two bytes a value.
        sent = (3 + sizes.streams) * tokens * width * 2 * (sizes.num_parts - 1) / sizes.num_parts
        return seconds + sizes.num_layers * (2 * _EXCHANGE_SECONDS + sent / _LINK_BYTES)

    seconds = 0.0
    for chunk in plan.chunks:
        own, reads = len(chunk.makes), len(set(chunk.reads) - set(chunk.makes))
        if chunk.prefill_commits:
            seconds += call(len(chunk.prefill), len(chunk.prefill), 1)
        if own:
            seconds += config.num_steps * call(own, reads + own, sizes.rows)
        if chunk.commits:
            seconds += call(own, reads + own, 1)
    return seconds


def decoding_seconds(plan: VideoPlan, sizes: ModelSizes, card: str = CARD) -> float:
    """Of the VAE for the whole video; some of it goes on beside the transformer."""
    return plan.num_pixel_frames * plan.height * plan.width * sizes.vae.pixel_seconds * _slower(card)


def _slower(card: str) -> float:
    return RATES[CARD][0] / RATES[card][0]
