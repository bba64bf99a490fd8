"""Time reading one span into the workspace, beside quant-videogen's decoding if asked, on one GPU.

    PYTHONPATH=kernels python kernels/bench/decode.py --peer

For attention keys are rotated on the way, which quant-videogen does elsewhere; the last arm leaves that out.
Before anything is timed, its result and the bf16 one are compared with what the codecs decode.
"""

import argparse
import dataclasses
from collections.abc import Callable

import torch
from attend import DEVICE, HEAD_DIM, Case, Shape
from peer import decode_by_peer, encode_by_peer
from timing import copy_bandwidth, time_arms

from qvg_kernels.attention.blocks import prepare
from qvg_kernels.attention.heads import BF16, FP8, INT8, Operands
from qvg_kernels.codecs.reading import DecodeTarget

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
    """What decodes a block's keys and values to `operands`, and the bytes that it must move."""
    history = case.history(preset)
    (block,) = history.blocks
    (blocks,) = prepare([block]) or []
    key_side, value_side = blocks.key, blocks.value
    if not is_rotated:
        # Values are not: blocks whose values are these keys.
        (swapped,) = prepare([dataclasses.replace(block, value=block.key)]) or []
        key_side = swapped.value
    heads, tokens = case.shape.heads, block.num_tokens
    (tiles,) = blocks.passes(-(-tokens // 128) * 128, DEVICE)
    pitch, is_e4m3 = tiles.pitch, operands.value is not None
    key = torch.empty(heads * pitch, HEAD_DIM, dtype=operands.key or torch.bfloat16, device=DEVICE)
    shape = (heads * HEAD_DIM, pitch) if is_e4m3 else (heads * pitch, HEAD_DIM)
    value = torch.empty(shape, dtype=operands.value or torch.bfloat16, device=DEVICE)
    scales = dataclasses.replace(blocks, key=key_side).scales(0, heads)
    smoothing = scales.smoothing if operands.key is not None else None
    key_target = DecodeTarget(key, 0, heads, scales.key, smoothing, is_reordered=is_e4m3)
    value_target = DecodeTarget(value, 0, heads, scales.value, None, is_transposed=is_e4m3)

    def decode() -> None:
        key_side.reader.decode(key_side.table, tiles, key_target)
        value_side.reader.decode(value_side.table, tiles, value_target)

    decode()
    if operands is BF16:
        expected = block.read(slice(None), slice(0, tokens))
        if not is_rotated:
            expected = block.key_codec.decode(block.key), expected[1]
        for found, wanted in zip((key, value), expected, strict=True):
            error = (found.view(heads, pitch, -1)[:, :tokens].float() - wanted[0].float()).norm()
            assert error < 0.01 * wanted.float().norm(), f"{preset}: differs from what the codec decodes"
    stored = sum(sum(side.payload_bytes().values()) for side in (block.key, block.value))
    return decode, stored + key.numel() * key.element_size() + value.numel() * value.element_size()


if __name__ == "__main__":
    main()
