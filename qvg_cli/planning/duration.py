"""How long a planned video takes on a card: from what its model calls compute. No torch.

The rates are those of an H200, measured on full-size runs with random weights (docs/results.md); of another
card they are scaled by its published matrix rate and bandwidth, and nobody has measured it. Left out are the
start of the program, encoding prompts, compiling kernels on first use, and what is offloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvg_cli.config.schema import RunConfig
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan, pixel_frames
from qvg_cli.planning.sizes import ModelSizes
from qvg_kernels.spec import Bf16Spec, NoneSpec

MEASURED = "H200"
RATES = {
    "H200": (989, 4800), "H100": (989, 3350), "A100 80GB": (312, 2039), "A100 40GB": (312, 1555),
    "L40S": (362, 864), "A40": (150, 696), "RTX 5090": (210, 1792), "RTX 4090": (165, 1008),
    "RTX 3090": (71, 936),
}  # fmt: skip
"""Published TFLOP/s of dense bf16 matrices with float32 sums, and GB/s. Source: NVIDIA's data sheets."""
_MATRIX_FLOPS = 592e12
"""Matrices of Self-Forcing's blocks: 110 ms of a chunk's five calls."""
_ATTENTION_FLOPS = {"packed": 804e12, "bf16": 480e12}
"""Attention with reading the history: int2 at 262,080 keys, a BF16 cache in a run of 180 latent frames."""
_CHANNEL_SECONDS = 8.8e-11
"""All else, a channel of a token in a layer: a step of LongCat-Video without matrices and attention."""
_LAUNCH_SECONDS = 0.0018
"""Of the host, a layer: a call of Self-Forcing at nine latent frames of history takes 54 ms."""


@dataclass(frozen=True)
class Duration:
    """Seconds on one card.

    Attributes:
        card: Its name.
        chunks: The model's, of every chunk.
        decoding: The VAE's, of all of them.
        is_measured: Whether the rates were measured on this card.
    """

    card: str
    chunks: Sequence[float]
    decoding: float
    is_measured: bool

    @property
    def seconds(self) -> float:
        """Of the whole video."""
        return sum(self.chunks) + self.decoding


def predict_duration(config: RunConfig, plan: VideoPlan, sizes: ModelSizes, card: str) -> Duration | None:
    """How long a video takes on the card of this name; `None` if its rates are not in the table."""
    if card not in RATES:
        return None
    (flops, bandwidth), (known_flops, known_bandwidth) = RATES[card], RATES[MEASURED]
    slower, narrower = known_flops / flops, known_bandwidth / bandwidth
    width = sizes.heads * sizes.head_dim
    is_packed = not isinstance(config.cache.k, NoneSpec | Bf16Spec)
    attention_flops = _ATTENTION_FLOPS["packed" if is_packed else "bf16"]

    def call(tokens: int, keys: int) -> float:
        """Seconds of one model call, `tokens` of each row attending to `keys`."""
        passing = sizes.rows * tokens
        attention = 4 * passing * keys * width * sizes.num_layers * sizes.attentions
        matrices = 2 * sizes.matrix_values * passing / _MATRIX_FLOPS * slower
        others = passing * width * sizes.num_layers * _CHANNEL_SECONDS * narrower
        launched = max(_LAUNCH_SECONDS * sizes.num_layers, matrices + others)
        return attention / attention_flops * slower + launched

    def model(chunk: ChunkPlan) -> float:
        tokens = plan.tokens_per_frame
        seconds = 0.0
        if chunk.prefill_commits:
            seconds += call(len(chunk.prefill) * tokens, len({*chunk.reads, *chunk.prefill}) * tokens)
        if chunk.makes:
            steps = sizes.first_steps if chunk.is_first_made or not chunk.index else sizes.steps
            calls = steps + bool(chunk.commits)
            seconds += calls * call(len(chunk.makes) * tokens, len(chunk.view) * tokens)
        return seconds

    pixels = pixel_frames(plan.num_frames, plan.pixel_frames_per_latent) * plan.height * plan.width
    return Duration(
        card,
        [model(chunk) for chunk in plan.chunks],
        pixels * sizes.vae.pixel_seconds * slower,
        card == MEASURED,
    )
