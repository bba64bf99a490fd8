"""What multiplying a packed history in few bits adds to its error, without a GPU: the roundings, emulated.

    PYTHONPATH=kernels python kernels/bench/arithmetic.py

Queries, keys, weights and values are rounded as the attention kernels round them, with the units that they
use; sums are float32. The data are those of synthetic.py, one span of 4,680 tokens packed by `int2`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measures import AttentionProbe, error_db, rope_3d, rotate
from presets import load_preset
from synthetic import LEVELS, make_sample
from torch import Tensor

from qvg_kernels.codecs.registry import build_codec

SHARPNESS = (8.0, 3.0)
BLOCK_KEYS = 128
LIFT = 256.0
"""Weights of e4m3 are stored as many times as large; the largest is 1 before that."""


def bf16(values: Tensor) -> Tensor:
    """Rounded to bf16."""
    return values.bfloat16().float()


def e4m3(values: Tensor) -> Tensor:
    """Rounded to e4m3, at most 448 either way."""
    return values.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def int8(values: Tensor) -> Tensor:
    """Rounded to integers, at most 127 either way."""
    return values.round().clamp(-127, 127)


def in_rows(values: Tensor, rounding: Callable[[Tensor], Tensor], largest: float) -> Tensor:
    """Every row rounded in a unit of its own, that of its largest magnitude."""
    unit = values.abs().amax(-1, keepdim=True) / largest
    return rounding(values / unit) * unit


def in_two_terms(values: Tensor) -> Tensor:
    """Every row as the sum of two e4m3 numbers."""
    first = in_rows(values, e4m3, 448)
    return first + in_rows(values - first, e4m3, 448)


def key_bounds(key: Tensor) -> tuple[Tensor, Tensor]:
    """`codecs.fitted.reader.fitted_unit_kernel`'s for `[1, H, S, D]` keys that are to be turned.

    Returns:
        The bound `[1, H, 1, 1]` and each channel's factor `[1, H, 1, D]`.
    """
    mean = key.mean(2).unflatten(-1, (-1, 2))
    spread = 5 * key.std(2, unbiased=False).unflatten(-1, (-1, 2))
    bounds = mean.norm(dim=-1) + spread.amax(-1)
    largest = bounds.amax(-1, keepdim=True)
    factors = (bounds / largest).sqrt().repeat_interleave(2, -1)
    return largest[..., None], factors.unsqueeze(2)


def value_unit(value: Tensor) -> Tensor:
    """The power of two that brings a head's bound to at most 448, `[1, H, 1, 1]`."""
    bound = (value.mean(2).abs() + 8 * value.std(2, unbiased=False)).amax(-1)[:, :, None, None]
    return torch.exp2(torch.ceil(torch.log2(bound / 448)))


@dataclass(frozen=True)
class Arithmetic:
    """How each factor is rounded: queries (blocks of keys meet versions in turn), keys, weights, values."""

    query: tuple[Callable[[Tensor], Tensor], ...]
    key: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]


def _e4m3_weights(weights: Tensor) -> Tensor:
    return e4m3(weights * LIFT) / LIFT


def _e4m3_values(value: Tensor) -> Tensor:
    unit = value_unit(value)
    return e4m3(value / unit) * unit


def _e4m3_keys(key: Tensor, bound: Tensor) -> Tensor:
    unit = torch.exp2(torch.ceil(torch.log2(bound / 448)))
    return e4m3(key / unit) * unit


def _int8_keys(key: Tensor, bound: Tensor) -> Tensor:
    return int8(key / (bound / 127)) * (bound / 127)


def _int8_queries(query: Tensor) -> Tensor:
    return in_rows(query, int8, 127)


def _dithered(offset: float) -> Callable[[Tensor], Tensor]:
    """int8 queries, rounded with an offset that changes its sign from channel to channel."""

    def rounded(query: Tensor) -> Tensor:
        signs = 1 - 2 * (torch.arange(query.shape[-1]) % 2)
        return in_rows(query, lambda values: int8(values + offset * signs), 127)

    return rounded


KINDS = {
    "bf16": Arithmetic((bf16,), lambda key, bound: bf16(key), bf16, bf16),
    "e4m3": Arithmetic((lambda query: in_rows(query, e4m3, 448),), _e4m3_keys, _e4m3_weights, _e4m3_values),
    "e4m3, queries in two terms": Arithmetic((in_two_terms,), _e4m3_keys, _e4m3_weights, _e4m3_values),
    "int8 queries and keys, e4m3 weights and values (fp8)": Arithmetic(
        (_int8_queries,), _int8_keys, _e4m3_weights, _e4m3_values
    ),
    "int8 queries and keys, bf16 weights and values": Arithmetic((_int8_queries,), _int8_keys, bf16, bf16),
    "the same, queries in two versions (int8)": Arithmetic(
        (_dithered(0.25), _dithered(-0.25)), _int8_keys, bf16, bf16
    ),
}


def main() -> None:
    """Print a Markdown table: the error of `int2`, and what each arithmetic adds to it, in dB."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2, help="seeds of each level")
    options = parser.parse_args()
    print("| data | largest logit | int2 alone | " + " | ".join(KINDS) + " |")
    print("|---" * (3 + len(KINDS)) + "|")
    for level in LEVELS:
        found = torch.tensor([measure(level, seed) for seed in range(options.samples)]).mean(0)
        for sharpness, row in zip(SHARPNESS, found.tolist(), strict=True):
            added = " | ".join(f"{error - row[0]:+.2f}" for error in row[1:])
            print(f"| {level} | {sharpness:.0f} | {row[0]:.1f} dB | {added} |")


def measure(level: str, seed: int) -> list[list[float]]:
    """For each sharpness the output's error in dB, exact products first, then every arithmetic."""
    sample = make_sample(level, 3, seed=seed)
    rotation = rope_3d(sample.grid, sample.key.shape[3])
    probe = AttentionProbe(sample.query, sample.key, sample.value, rotation, rotation[sample.query_tokens])
    preset = load_preset("int2")
    key_codec, value_codec = build_codec(preset.key), build_codec(preset.value)
    decoded = key_codec.decode(key_codec.encode(sample.key, seed=0)).float()
    value = value_codec.decode(value_codec.encode(sample.value, seed=1)).float()
    key, (bound, factors) = rotate(decoded, rotation), key_bounds(sample.key)
    rows = []
    for sharpness in SHARPNESS:
        scale = sharpness / probe.spread
        exact = torch.softmax(probe.logits * scale, -1) @ probe.value
        row = [error_db(torch.softmax(probe.query @ key.mT * scale, -1) @ value, exact)]
        for arithmetic in KINDS.values():
            # Only int8 keys are divided by factors.
            by = factors if arithmetic.key is _int8_keys else torch.ones_like(factors)
            versions = [rounding(probe.query * by) for rounding in arithmetic.query]
            blocks = arithmetic.key(key / by, bound).split(BLOCK_KEYS, 2)
            products = [versions[at % len(versions)] @ block.mT for at, block in enumerate(blocks)]
            logits = torch.cat(products, -1) * scale
            weights = torch.exp(logits - logits.amax(-1, keepdim=True))
            output = arithmetic.weight(weights) @ arithmetic.value(value) / weights.sum(-1, keepdim=True)
            row.append(error_db(output, exact))
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
