"""Time attention over a packed history, and reading it, beside SDPA over a bf16 cache, on one GPU.

    PYTHONPATH=kernels python kernels/bench/attend.py --out build/results

All arms of a shape run in turn, in one process; figures are medians over CUDA events. Before it is timed, a
shape's result is compared with attention over the keys and values that were packed.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measures import LOGIT_PERCENTILE, error_db
from peer import caches_of_peer, encode_by_peer
from presets import load_preset
from synthetic import FRAME, LEVELS, make_sample
from timing import time_arms
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from qvg_kernels.attention.attend import attend
from qvg_kernels.attention.history import History, OwnKeys, StoredBlock, Workspace
from qvg_kernels.codec import Codec, PackedTensor, encode_pair
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.placement import FrameMatrices, Placement, Rotary
from qvg_kernels.rope.tables import RotaryTables

HEAD_DIM = 128
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Shape:
    """One layer's attention in one of the models.

    Attributes:
        span_frames: Frames of each stored span.
        frames: Of the history.
        own_frames: Of the chunk.
        rows: Tokens of a frame, from top to bottom; `columns` from left to right.
        has_cameras: Whether keys and values are multiplied by their frame's matrix instead of rotated.
    """

    name: str
    batch: int
    heads: int
    span_frames: int
    frames: int
    own_frames: int
    rows: int
    columns: int
    has_cameras: bool = False

    @property
    def keys(self) -> int:
        """Of the history."""
        return self.frames * self.rows * self.columns


SHAPES = (
    Shape("self-forcing", 1, 12, 3, 28, 3, 30, 52),
    Shape("self-forcing", 1, 12, 3, 168, 3, 30, 52),
    Shape("self-forcing", 1, 12, 3, 480, 3, 30, 52),
    Shape("hyworldplay, time", 1, 24, 4, 48, 4, 22, 40),
    Shape("hyworldplay, cameras", 1, 24, 4, 48, 4, 22, 40, has_cameras=True),
    Shape("longcat", 2, 32, 19, 19, 5, 30, 52),
)


def values_of(shape: Shape, frames: int, seed: int) -> Tensor:
    """`[B, H, S, D]` bf16: clusters that a scene has, channel means, noise; as a model lays it out."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    tokens = frames * shape.rows * shape.columns
    draw = lambda *size: torch.randn(*size, generator=generator, device=DEVICE)  # noqa: E731
    centres = draw(shape.batch, 64, shape.heads, HEAD_DIM)
    ids = torch.randint(0, 64, (tokens,), generator=generator, device=DEVICE)
    noise = 0.7 * draw(shape.batch, tokens, shape.heads, HEAD_DIM)
    span = centres[:, ids] + noise + 2 * draw(1, 1, shape.heads, HEAD_DIM)
    return span.bfloat16().transpose(1, 2)


class Case:
    """A shape with its data: the history packed by a preset, and the same as bf16 keys and values."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.tables = RotaryTables.of(HEAD_DIM, 1024, DEVICE)
        turn = torch.linalg.qr(torch.randn(512, 4, 4, generator=torch.Generator().manual_seed(1))).Q
        self.matrices = turn.float().to(DEVICE)
        own = shape.frames + torch.arange(shape.own_frames)
        placement = self.placement(tuple(own.tolist()))
        key, value = (values_of(shape, shape.own_frames, seed) for seed in (11, 12))
        self.query = placement.apply(values_of(shape, shape.own_frames, 13), slice(0, key.shape[2]))
        self.own = OwnKeys(key, value, placement, placement if shape.has_cameras else None)
        self.spans = [values_of(shape, shape.span_frames, seed) for seed in (1, 2)]

    def placement(self, frames: tuple[int, ...]) -> Placement:
        """Of the tokens of `frames`."""
        shape = self.shape
        if shape.has_cameras:
            gain = float(self.matrices.abs().sum(-1).max())
            return FrameMatrices(self.matrices, gain, shape.rows * shape.columns, frames)
        return Rotary(self.tables, shape.rows, shape.columns, frames)

    def history(self, preset: str) -> History:
        """The same span again and again, each in memory of its own."""
        specs = load_preset(preset)
        codecs = build_codec(specs.key), build_codec(specs.value)
        packed = encode_pair(codecs, (self.spans[0], self.spans[1]), (1, 1))
        return History(tuple(self._block(codecs, packed, first) for first in self.starts()))

    def starts(self) -> range:
        """First frame of each span."""
        return range(0, self.shape.frames, self.shape.span_frames)

    def _block(
        self, codecs: tuple[Codec, Codec], packed: tuple[PackedTensor, PackedTensor], first: int
    ) -> StoredBlock:
        shape = self.shape
        placement = self.placement(tuple(range(first, first + shape.span_frames)))
        frames = min(shape.span_frames, shape.frames - first)
        return StoredBlock(
            *codecs,
            *(copied(span) for span in packed),
            placement,
            placement if shape.has_cameras else None,
            0,
            frames * shape.rows * shape.columns,
        )

    def bf16_pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values of history and chunk, placed, `[B, H, S, D]` contiguous bf16: a cache for SDPA."""
        shape, frame = self.shape, self.shape.rows * self.shape.columns
        parts: list[tuple[Tensor, Tensor]] = []
        for first in self.starts():
            count = min(shape.span_frames, shape.frames - first) * frame
            placement = self.placement(tuple(range(first, first + shape.span_frames)))
            key = placement.apply(self.spans[0][:, :, :count], slice(0, count))
            value = self.spans[1][:, :, :count]
            parts.append((key, placement.apply(value, slice(0, count)) if shape.has_cameras else value))
        parts.append(self.own.read(slice(None), slice(0, self.own.num_tokens)))
        key, value = (torch.cat(side, 2).contiguous() for side in zip(*parts, strict=True))
        return key, value


def copied(packed: PackedTensor) -> PackedTensor:
    """The same span in memory of its own."""
    tensors = {name: tensor.clone() for name, tensor in packed.tensors.items()}
    return replace(packed, tensors=tensors)


def sdpa(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, key, value)


def peer_arm(case: Case) -> Callable[[], Tensor]:
    """Its caches read whole and attended to; it rotates keys elsewhere, which is left out here."""
    shape = case.shape
    key, value = (span.contiguous() for span in case.spans)
    spans = shape.frames // shape.span_frames
    caches = caches_of_peer(encode_by_peer(key, value), key.shape, shape.rows * shape.columns, spans)
    tokens = spans * key.shape[2]

    def run() -> Tensor:
        sides = (cache.read(0, tokens).transpose(1, 2) for cache in caches)
        return sdpa(case.query, *sides, SDPBackend.CUDNN_ATTENTION)

    return run


def measure_shape(shape: Shape, presets: list[str], repeats: int, has_peer: bool) -> list[dict[str, Any]]:
    """Rows of the table: one an arm."""
    case = Case(shape)
    key, value = case.bf16_pair()
    arms: dict[str, Callable[[], Tensor]] = {
        "SDPA cuDNN, bf16 cache": lambda: sdpa(case.query, key, value, SDPBackend.CUDNN_ATTENTION),
        "SDPA FlashAttention, bf16 cache": lambda: sdpa(case.query, key, value, SDPBackend.FLASH_ATTENTION),
    }
    workspaces = {}
    for preset in presets:
        for arithmetic in ("int8", "fp8", "bf16") if preset == "int2" else ("auto",):
            name = preset if arithmetic == "auto" else f"{preset}, {arithmetic} arithmetic"
            history, workspace = case.history(preset), Workspace()
            workspaces[name] = workspace
            arms[name] = lambda history=history, workspace=workspace, arithmetic=arithmetic: attend(
                case.query, history, case.own, workspace, arithmetic
            )
    if has_peer and not shape.has_cameras:
        arms["quant-videogen's read without rotation, SDPA cuDNN"] = peer_arm(case)
    exact = arms["SDPA cuDNN, bf16 cache"]().float()
    first_seconds, decibels = {}, {}
    for name, arm in arms.items():
        started = time.perf_counter()
        output = arm()
        torch.cuda.synchronize()
        first_seconds[name] = time.perf_counter() - started
        error = (output.float() - exact).norm() / exact.norm()
        # Keys that are not rotated give another output.
        assert error < 0.5 or "without rotation" in name, f"{shape.name}, {name}: relative error {error}"
        decibels[name] = float(-20 * torch.log10(error.clamp(min=1e-6)))
    flops = 4 * case.query.numel() * key.shape[2]
    rows = []
    for name, found in time_arms(arms, repeats).items():
        held = workspaces[name].held_bytes / 2**20 if name in workspaces else None
        rows.append(
            {
                "shape": shape.name,
                "queries": case.query.shape[2],
                "keys": shape.keys,
                "arm": name,
                "ms": found.median,
                "lowest_ms": found.lowest,
                "highest_ms": found.highest,
                "tflops": flops / found.median / 1e9,
                "decibels": decibels[name],
                "first_seconds": first_seconds[name],
                "workspace_mib": held,
            }
        )
    best = min(row["ms"] for row in rows if row["arm"].startswith("SDPA"))
    for row in rows:
        row["times_as_fast"] = best / row["ms"]
    return rows


def measure_precision(presets: list[str]) -> list[dict[str, Any]]:
    """Error of attention over packed keys, by data, largest logit, preset and arithmetic."""
    rows = []
    for level in LEVELS:
        sample = make_sample(level, 4, num_queries=256)
        history_tokens, frame = 3 * math.prod(FRAME), math.prod(FRAME)
        key, value = (side.to(DEVICE).bfloat16() for side in (sample.key, sample.value))
        spans = key[:, :, :history_tokens], value[:, :, :history_tokens]
        tables = RotaryTables.of(HEAD_DIM, max(FRAME), DEVICE)
        placement, last = Rotary(tables, *FRAME, (0, 1, 2)), Rotary(tables, *FRAME, (3,))
        own = OwnKeys(key[:, :, history_tokens:], value[:, :, history_tokens:], last, None)
        placed = torch.cat(
            [
                placement.apply(key[:, :, :history_tokens], slice(0, history_tokens)).float(),
                last.apply(key[:, :, history_tokens:], slice(0, frame)).float(),
            ],
            2,
        )
        every = torch.zeros(1, 2, frame, HEAD_DIM, device=DEVICE)
        at = (sample.query_tokens - history_tokens).to(DEVICE)
        every[:, :, at] = sample.query.to(DEVICE)
        query = last.apply(every, slice(0, frame))[:, :, at]
        logits = query @ placed.mT
        spread = (logits - logits.mean(-1, keepdim=True)).abs().flatten()
        spread = spread.kthvalue(round(LOGIT_PERCENTILE * spread.numel())).values
        for sharpness in (8.0, 3.0):
            scaled = (query * (sharpness * HEAD_DIM**0.5 / spread)).bfloat16()
            exact = scaled_dot_product_attention(scaled.float(), placed, value.float())
            for preset in presets:
                specs = load_preset(preset)
                codecs = build_codec(specs.key), build_codec(specs.value)
                packed = encode_pair(codecs, spans, (1, 1))
                block = StoredBlock(*codecs, *packed, placement, None, 0, history_tokens)
                row: dict[str, Any] = {"level": level, "largest_logit": sharpness, "preset": preset}
                for arithmetic in ("bf16", "int8", "fp8"):
                    found = attend(scaled, History((block,)), own, Workspace(), arithmetic)
                    row[arithmetic] = error_db(found, exact)
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| shape | queries x keys | arm | ms (lowest to highest) | TFLOP/s | times the best SDPA | error "
        "| workspace |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        held = "" if row["workspace_mib"] is None else f"{row['workspace_mib']:.0f} MiB"
        lines.append(
            f"| {row['shape']} | {row['queries']:,} x {row['keys']:,} | {row['arm']} | "
            f"{row['ms']:.2f} ({row['lowest_ms']:.2f} to {row['highest_ms']:.2f}) | {row['tflops']:.0f} | "
            f"{row['times_as_fast']:.2f} | {row['decibels']:.1f} dB | {held} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--presets",
        nargs="+",
        default=["int2", "int2-qvg", "bf16"],
        help="names in configs/cache, maybe with knobs",
    )
    parser.add_argument("--shapes", nargs="+", type=int, default=range(len(SHAPES)))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peer", action="store_true", help="read by quant-videogen too, see peer.py")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": measure_precision(arguments.presets),
        "rows": rows,
    }
    for index in arguments.shapes:
        rows.extend(measure_shape(SHAPES[index], arguments.presets, arguments.repeats, arguments.peer))
        (arguments.out / "attend.json").write_text(json.dumps(report, indent=1))
        torch.cuda.empty_cache()
    for row in report["precision"]:
        added = " | ".join(f"{row[name] - row['bf16']:+.2f}" for name in ("int8", "fp8"))
        print(
            f"| {row['level']} | {row['largest_logit']:.0f} | {row['preset']} | {row['bf16']:.2f} | {added} |"
        )
    text = table(rows)
    (arguments.out / "attend.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
