"""Time encoding by kernels at the shapes of the three models, beside quant-videogen if asked.

Before anything is timed, the kernels' error is compared with the torch reference's on the same span: a
difference of more than 0.02 dB ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor

from qvg_kernels.codec import Codec, FiniteCheck, build_codec
from qvg_kernels.spec import CodecSpec

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
    parser.add_argument("--peer", action="store_true", help="time quant-videogen too, which tunes for 31 s")
    options = parser.parse_args()
    bandwidth = copy_bandwidth()
    rows = []
    for name, shape in list(SHAPES.items())[: options.shapes]:
        key, value = make_span(*shape, seed=1), make_span(*shape, seed=2)
        for preset in options.presets.split(","):
            codecs = load_codecs(preset)
            rows.append({"shape": name, "preset": preset, **measure(codecs, key, value, bandwidth)})
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


def load_codecs(preset: str) -> tuple[Codec, Codec]:
    """Codecs of a preset's keys and values."""
    path = Path(__file__).parents[2] / "configs" / "cache" / f"{preset}.yaml"
    settings = yaml.safe_load(path.read_text())
    adapter: TypeAdapter[CodecSpec] = TypeAdapter(CodecSpec)
    return build_codec(adapter.validate_python(settings["k"])), build_codec(
        adapter.validate_python(settings["v"])
    )


def measure(codecs: tuple[Codec, Codec], key: Tensor, value: Tensor, bandwidth: float) -> dict[str, Any]:
    """Error in dB beside the reference's, and medians in milliseconds of keys and values together."""
    checks: list[FiniteCheck] = []

    def encode() -> None:
        checks.clear()
        packed.clear()
        for codec, span in zip(codecs, (key, value), strict=True):
            packed.append(codec.encode(span, seed=1, checks=checks))

    packed: list[Any] = []
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
    median = time_events(encode)
    replay = time_replay(encode)
    return {
        "difference_db": difference,
        "first_ms": 1000 * first,
        "eager_ms": median,
        "graph_ms": replay,
        "floor_ms": 1000 * moved / bandwidth,
        "moved_bytes": moved,
    }


def error_of(codec: Codec, span: Tensor, kernels: str) -> float:
    """Energy of the error over that of the span about its channels' means, in dB."""
    os.environ["QVG_KERNELS"] = kernels
    decoded = codec.decode(codec.encode(span, seed=1)).float()
    os.environ["QVG_KERNELS"] = "auto"
    values = span.float()
    total = (values - values.mean(2, keepdim=True)).square().sum()
    return float(10 * torch.log10((decoded - values).square().sum() / total))


def time_events(run: Callable[[], None], rounds: int = ROUNDS) -> float:
    """Median milliseconds by CUDA events."""
    run()
    times = []
    for _ in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def time_replay(run: Callable[[], None]) -> float | None:
    """Median milliseconds of a CUDA graph's replays; none where drawing starts cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        return None
    return time_events(graph.replay)


def copy_bandwidth() -> float:
    """Bytes a second of a device copy, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_events(lambda: target.copy_(source)) / 1000)


def time_peer(key: Tensor, value: Tensor) -> dict[str, float]:
    """Milliseconds of quant-videogen's first and median call: one stage, blocks of 64, two rounds."""
    from quant_videogen.compress import compress_kv_cache, get_quantize_fn
    from quant_videogen.sim.quant.quantize_config import QuantizeConfig

    config = QuantizeConfig(
        quant_type="triton-nstages-kmeans-int2", kmeans_max_iters=2, quant_block_size=64, num_prq_stages=1
    )
    keys, values = key.contiguous(), value.contiguous()
    quantize = get_quantize_fn(config.quant_type, config)

    def encode() -> None:
        compress_kv_cache(keys, values, config.quant_type, config, quantize)

    started = time.perf_counter()
    encode()
    torch.cuda.synchronize()
    return {"first_ms": 1000 * (time.perf_counter() - started), "eager_ms": time_events(encode)}


def print_table(result: dict[str, Any]) -> None:
    """One row a shape and preset."""
    print(f"{result['device']}, copies at {result['copy_bandwidth_tb_per_second']:.2f} TB/s")
    print("| shape | preset | dB | first ms | ms | graph ms | floor ms |\n|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        names = ("difference_db", "first_ms", "eager_ms", "graph_ms", "floor_ms")
        cells = ["" if row.get(name) is None else f"{row[name]:.3f}" for name in names]
        print(f"| {row['shape']} | {row['preset']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
