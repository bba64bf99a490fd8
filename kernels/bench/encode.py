"""Time encoding by kernels at the shapes of the three models, beside quant-videogen if asked.

Before anything is timed, the kernels' error is compared with the torch reference's on the same span: a
difference of more than 0.02 dB ends the run.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peer import encode_by_peer
from presets import load_preset
from timing import copy_bandwidth, time_alone
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from qvg_kernels.codec import Codec, FiniteCheck, PackedTensor, Shaper, encode_pair
from qvg_kernels.codecs.registry import build_codec

SHAPES = {
    "self-forcing span of 37,440": (1, 12, 37440, 128),
    "self-forcing chunk of 3 frames": (1, 12, 4680, 128),
    "hyworldplay chunk of 4 frames": (1, 24, 3520, 128),
    "longcat clip": (2, 32, 29640, 128),
}
PRESETS = ("int2", "int2-scalar", "int2-qvg", "int2-asym")
ROUNDS = 15


def main() -> None:
    """Print a Markdown table of medians, and write all numbers to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--presets", default=",".join(PRESETS), help="cache presets, separated by commas")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--profile", action="store_true", help="print the longest kernels of a call")
    parser.add_argument("--peer", action="store_true", help="time quant-videogen too, which tunes for 31 s")
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    rows = []
    for name, shape in list(SHAPES.items())[: options.shapes]:
        key, value = make_span(*shape, seed=1), make_span(*shape, seed=2)
        for preset in options.presets.split(","):
            specs = load_preset(preset)
            codecs = build_codec(specs.key), build_codec(specs.value)
            if options.profile:
                print(f"{name}, {preset}")
            measured = measure(codecs, key, value, bandwidth, is_profiled=options.profile)
            rows.append({"shape": name, "preset": preset, **measured})
        if options.peer:
            rows.append({"shape": name, "preset": "quant-videogen", **time_peer(key, value)})
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bandwidth_tb_per_second": bandwidth / 1e12,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print_table(result)


def make_span(batch: int, heads: int, tokens: int, head_dim: int, *, seed: int) -> Tensor:
    """`[B, H, S, D]` bf16 as a model hands it over, tokens outermost: clusters, channel offsets and noise."""
    generator = torch.Generator("cuda").manual_seed(seed)
    span = torch.empty(batch, tokens, heads, head_dim, dtype=torch.bfloat16, device="cuda")
    ids = torch.randint(0, 48, (tokens,), generator=generator, device="cuda")
    for head in range(heads):
        centres = torch.randn(48, head_dim, generator=generator, device="cuda")
        offset = 3 * torch.randn(head_dim, generator=generator, device="cuda")
        noise = 0.5 * torch.randn(batch, tokens, head_dim, generator=generator, device="cuda")
        span[:, :, head] = (centres[ids] + offset + noise).to(torch.bfloat16)
    return span.transpose(1, 2)


def measure(
    codecs: tuple[Codec, Codec], key: Tensor, value: Tensor, bandwidth: float, *, is_profiled: bool
) -> dict[str, Any]:
    """Error in dB beside the reference's, and medians in milliseconds of keys and values together."""
    checks: list[FiniteCheck] = []
    packed: list[PackedTensor] = []
    shapers = learn(codecs[0], key), learn(codecs[1], value)
    learning = time_alone(lambda: (learn(codecs[0], key), learn(codecs[1], value)), 3) if shapers[0] else None

    def encode() -> None:
        checks.clear()
        packed[:] = encode_pair(codecs, (key, value), (1, 1), checks, shapers)

    started = time.perf_counter()
    encode()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    # Two heads: the reference is slow.
    part = key[:1, :2]
    difference = error_of(codecs[0], part, "auto") - error_of(codecs[0], part, "reference")
    if difference > 0.02:
        raise SystemExit(f"the kernels lose {difference:.3f} dB more than the reference")
    stored = sum(sum(entry.payload_bytes().values()) for entry in packed)
    moved = 2 * (key.numel() + value.numel()) + stored
    median = time_alone(encode, ROUNDS)
    replay = time_replay(encode)
    if is_profiled:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            encode()
            torch.cuda.synchronize()
        print(trace.key_averages().table(sort_by="cuda_time_total", row_limit=15, max_name_column_width=40))
    return {
        "difference_db": difference,
        "first_ms": 1000 * first,
        "learn_ms": learning,
        "eager_ms": median,
        "graph_ms": replay,
        "floor_ms": 1000 * moved / bandwidth,
        "moved_bytes": moved,
    }


def learn(codec: Codec, span: Tensor) -> Shaper | None:
    """What a layer has before it packs a chunk, of a spec that is shaped."""
    if not codec.spec.is_shaped:
        return None
    query = torch.stack([head.float().T @ head.float() for head in span.flatten(0, 1)])
    matrix = codec.shaping_matrix(codec.residual_moment(span, seed=1), query.unflatten(0, span.shape[:2]))
    return codec.shaper_of(matrix)


def error_of(codec: Codec, span: Tensor, kernels: str) -> float:
    """Energy of the error over that of the span about its channels' means, in dB."""
    os.environ["QVG_KERNELS"] = kernels
    decoded = codec.decode(codec.encode(span, seed=1)).float()
    os.environ["QVG_KERNELS"] = "auto"
    values = span.float()
    total = (values - values.mean(2, keepdim=True)).square().sum()
    return float(10 * torch.log10((decoded - values).square().sum() / total))


def time_replay(run: Callable[[], None]) -> float | None:
    """Median milliseconds of a CUDA graph's replays; none where drawing starts cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        return None
    return time_alone(graph.replay, ROUNDS)


def time_peer(key: Tensor, value: Tensor) -> dict[str, float]:
    """Milliseconds of quant-videogen's first and median call."""
    keys, values = key.contiguous(), value.contiguous()
    started = time.perf_counter()
    encode_by_peer(keys, values)
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    return {"first_ms": 1000 * first, "eager_ms": time_alone(lambda: encode_by_peer(keys, values), ROUNDS)}


def print_table(result: dict[str, Any]) -> None:
    """One row a shape and preset."""
    print(f"{result['device']}, copies at {result['copy_bandwidth_tb_per_second']:.2f} TB/s")
    print("| shape | preset | dB | first ms | learn ms | ms | graph ms | floor ms |")
    print("|---|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        names = ("difference_db", "first_ms", "learn_ms", "eager_ms", "graph_ms", "floor_ms")
        cells = ["" if row.get(name) is None else f"{row[name]:.3f}" for name in names]
        print(f"| {row['shape']} | {row['preset']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
