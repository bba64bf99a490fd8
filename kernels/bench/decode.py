"""Time reading one span into the workspace, beside quant-videogen's decoding if asked, on one GPU.

    PYTHONPATH=kernels python kernels/bench/decode.py --peer

For attention keys are rotated on the way, which quant-videogen does elsewhere; the first arm leaves that out.
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

from qvg_kernels.gpu.runs import decode_part, runs_of

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
        for kind in ("bf16, not rotated", "bf16", "8 bits"):
            name = f"{preset}, {kind}"
            arms[name], moved[name] = our_arm(case, preset, kind)
    if options.peer:
        key, value = (span.contiguous() for span in case.spans)
        packed = encode_by_peer(key, value)
        arms["quant-videogen, bf16"] = lambda: decode_by_peer(packed)
    for arm in arms.values():
        arm()
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies at {bandwidth / 1e12:.2f} TB/s")
    print("| span of [1, 12, 37440, 128], keys and values | ms | its bytes copied |\n|---|---|---|")
    for name, found in time_arms(arms, options.rounds).items():
        floor = f"{1000 * moved[name] / bandwidth:.3f} ms" if name in moved else ""
        print(f"| {name} | {found.median:.3f} ({found.lowest:.3f} to {found.highest:.3f}) | {floor} |")


def our_arm(case: Case, preset: str, kind: str) -> tuple[Callable[[], None], int]:
    """What decodes a span's keys and values, and the bytes that it must move."""
    history = case.history(preset)
    (segment,) = history.segments
    (run,) = runs_of([segment]) or []
    key_side = run.key
    if kind == "bf16, not rotated":
        # Values are not: a run whose values are these keys.
        (swapped,) = runs_of([dataclasses.replace(segment, value=segment.key)]) or []
        key_side = swapped.value
    heads, tokens = case.shape.heads, segment.num_tokens
    (tiles,) = run.parts(-(-tokens // 128) * 128, DEVICE)
    pitch = -(-tokens // 128) * 128
    is_narrow = kind == "8 bits"
    dtype = torch.float8_e4m3fn if is_narrow else torch.bfloat16
    key = torch.empty(heads * pitch, HEAD_DIM, dtype=torch.int8 if is_narrow else dtype, device=DEVICE)
    shape = (heads * HEAD_DIM, pitch) if is_narrow else (heads * pitch, HEAD_DIM)
    value = torch.empty(shape, dtype=dtype, device=DEVICE)

    def decode() -> None:
        for side, target in ((key_side, key), (run.value, value)):
            transposes = is_narrow and side is run.value
            which, units = (1, heads, 0, heads), side.head_units
            decode_part(side, tiles, which, HEAD_DIM, target, units, None, pitch, transposes=transposes)

    decode()
    if not is_narrow:
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
