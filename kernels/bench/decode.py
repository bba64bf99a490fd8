"""Time reading one span into the workspace, beside quant-videogen's decoding if asked, on one GPU.

    PYTHONPATH=kernels python kernels/bench/decode.py --peer

For attention keys are rotated on the way, which quant-videogen does elsewhere; the last arm leaves that out.
Before anything is timed, its result and the bf16 one are compared with what the codecs decode.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import torch
from attend import DEVICE, HEAD_DIM, Case, Shape
from peer import decode_by_peer, encode_by_peer
from timing import copy_bandwidth, time_arms

from qvg_kernels.attention.blocks import decode_part, runs_of
from qvg_kernels.attention.heads import BF16, FP8, INT8, Operands

SPAN = Shape("self-forcing", 1, 12, 24, 24, 3, 30, 52)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["int2", "int2-qvg"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peer", action="store_true", help="decode by quant-videogen too, see peer.py")
    options = parser.parse_args()
    case = Case(SPAN)
    arms, moved = {}, {}
    for preset in options.presets:
        for operands in (BF16, INT8, FP8):
            name = f"{preset}, {operands.words}"
            arms[name], moved[name] = our_arm(case, preset, operands)
        name = f"{preset}, bf16, not rotated"
        arms[name], moved[name] = our_arm(case, preset, BF16, is_rotated=False)
    if options.peer:
        key, value = (span.contiguous() for span in case.spans)
        packed = encode_by_peer(key, value)
        arms["quant-videogen, bf16"] = lambda: decode_by_peer(packed)
    for arm in arms.values():
        arm()
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies at {bandwidth / 1e12:.2f} TB/s")
    print("| span of [1, 12, 37440, 128], keys and values | ms | with launching | its bytes copied |")
    print("|---|---|---|---|")
    calls = time_arms(arms, 4 * options.rounds, is_ahead=False)
    for name, found in time_arms(arms, options.rounds).items():
        floor = f"{1000 * moved[name] / bandwidth:.3f} ms" if name in moved else ""
        spread = f"({found.lowest:.3f} to {found.highest:.3f})"
        print(f"| {name} | {found.median:.3f} {spread} | {calls[name].median:.3f} | {floor} |")


def our_arm(
    case: Case, preset: str, operands: Operands, *, is_rotated: bool = True
) -> tuple[Callable[[], None], int]:
    """What decodes a span's keys and values to `operands`, and the bytes that it must move."""
    history = case.history(preset)
    (segment,) = history.segments
    (run,) = runs_of([segment]) or []
    key_side = run.key
    if not is_rotated:
        # Values are not: a run whose values are these keys.
        (swapped,) = runs_of([dataclasses.replace(segment, value=segment.key)]) or []
        key_side = swapped.value
    heads, tokens = case.shape.heads, segment.num_tokens
    (tiles,) = run.parts(-(-tokens // 128) * 128, DEVICE)
    pitch = -(-tokens // 128) * 128
    is_e4m3 = operands.value is not None
    key = torch.empty(heads * pitch, HEAD_DIM, dtype=operands.key or torch.bfloat16, device=DEVICE)
    shape = (heads * HEAD_DIM, pitch) if is_e4m3 else (heads * pitch, HEAD_DIM)
    value = torch.empty(shape, dtype=operands.value or torch.bfloat16, device=DEVICE)
    factors = run.key.factors if operands.key is not None else None

    def decode() -> None:
        which = (1, heads, 0, heads)
        decode_part(
            key_side, tiles, which, HEAD_DIM, key, key_side.head_units, factors, pitch, reorders=is_e4m3
        )
        decode_part(
            run.value, tiles, which, HEAD_DIM, value, run.value.head_units, None, pitch, transposes=is_e4m3
        )

    decode()
    if operands is BF16:
        expected = segment.read(slice(None), slice(0, tokens))
        if key_side is not run.key:
            expected = segment.key_codec.decode(segment.key), expected[1]
        for found, wanted in zip((key, value), expected, strict=True):
            error = (found.view(heads, pitch, -1)[:, :tokens].float() - wanted[0].float()).norm()
            assert error < 0.01 * wanted.float().norm(), f"{preset}: differs from what the codec decodes"
    stored = sum(sum(side.payload_bytes().values()) for side in (segment.key, segment.value))
    return decode, stored + key.numel() * key.element_size() + value.numel() * value.element_size()


if __name__ == "__main__":
    main()
