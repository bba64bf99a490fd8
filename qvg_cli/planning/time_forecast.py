"""How long a transformer takes for a planned video on one or several H200: an estimate. No torch.

A call computes matrices and attention, or waits for the host that launches them. Several processes divide the
former and exchange tokens for heads twice a layer. The rates were fitted to runs on one and two H200
(docs/results.md, "One video on two GPUs").
"""

from __future__ import annotations

from qvg_cli.config.schema import RunConfig
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.sizes import ModelSizes

CARD = "H200"
_MATRIX_RATE = 340e12
"""Multiplications and additions of matrices in a second, all that is done to tokens alone included."""
_ATTENTION_RATE = 740e12
_LAUNCH_SECONDS = 0.0026
"""Of a layer, on the host."""
_EXCHANGE_SECONDS = 0.00025
"""Of each, whatever it carries: with four and five a layer, two GPUs took 0.9 and 1.4 ms a layer for them."""
_LINK_BYTES = 200e9
"""That a GPU sends in a second."""


def transformer_seconds(config: RunConfig, plan: VideoPlan, sizes: ModelSizes) -> float:
    """Of the whole video; the VAE, text and what is compiled at first left out.

    Args:
        sizes: What one of the processes has of the model.
    """
    seconds = 0.0
    for chunk in plan.chunks:
        own, reads = len(chunk.makes), len(set(chunk.reads) - set(chunk.makes))
        if chunk.prefill_commits:
            seconds += _call(plan, sizes, len(chunk.prefill), len(chunk.prefill), 1)
        if own:
            seconds += config.num_steps * _call(plan, sizes, own, reads + own, sizes.rows)
        if chunk.commits:
            seconds += _call(plan, sizes, own, reads + own, 1)
    return seconds


def _call(plan: VideoPlan, sizes: ModelSizes, frames: int, attended: int, rows: int) -> float:
    """Seconds of a model call that `rows` times `frames` pass, and attend to `attended` frames."""
    tokens, width = rows * frames * plan.tokens_per_frame, sizes.heads * sizes.head_dim
    matrices = 2 * sizes.matrix_values * tokens / sizes.num_parts
    keys = attended * plan.tokens_per_frame
    attention = 4 * sizes.streams * tokens * keys * width * sizes.num_layers
    device = matrices / _MATRIX_RATE + attention / _ATTENTION_RATE
    seconds = max(device, sizes.num_layers * _LAUNCH_SECONDS)
    if sizes.num_parts == 1:
        return seconds
    # Queries, keys and values go, and of each stream what was gathered comes back, in two bytes a value.
    sent = (3 + sizes.streams) * tokens * width * 2 * (sizes.num_parts - 1) / sizes.num_parts
    return seconds + sizes.num_layers * (2 * _EXCHANGE_SECONDS + sent / _LINK_BYTES)
