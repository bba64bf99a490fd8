"""What every cache preset loses on keys, values and attention: one table and one plot for docs/results.md.

    python kernels/bench/fidelity.py --table fidelity.md --plot fidelity.png
    python kernels/bench/fidelity.py --recorded keys.safetensors --table recorded.md --plot recorded.png

Synthetic samples come from synthetic.py. A recorded file holds `layer{l}.key` and `layer{l}.value`, `[B, H,
S, D]` before any rotation, and maybe `layer{l}.query`; where it holds none, the keys of a span's last frame,
without their mean, stand in for its queries.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import Row, write_plot, write_table
from measures import AttentionProbe, error_db, gain, rope_3d
from presets import Preset, load_presets
from safetensors.torch import load_file
from synthetic import FRAME, LEVELS, Sample, make_sample

from qvg_kernels.codecs.registry import build_codec

SHARPNESS = (8.0, 3.0)
NUM_QUERIES = 256


def require_whole_frames(span: int, frame_tokens: int) -> None:
    """Refuse a span that ends inside a frame."""
    nearest = max(1, round(span / frame_tokens)) * frame_tokens
    if span != nearest:
        raise ValueError(
            f"--spans {span} is not a whole number of frames of {frame_tokens} tokens; nearest: {nearest}"
        )


def synthetic_samples(spans: list[int], samples: int) -> Iterator[tuple[str, Sample]]:
    """Every level at every span."""
    for span in spans:
        require_whole_frames(span, math.prod(FRAME))
        for level in LEVELS:
            for seed in range(samples):
                yield level, make_sample(level, span // math.prod(FRAME), num_queries=NUM_QUERIES, seed=seed)


def recorded_samples(path: Path, spans: list[int], frame: tuple[int, int]) -> Iterator[tuple[str, Sample]]:
    """For every layer, prompt and span length, one span from the middle of what was recorded."""
    tensors = load_file(path)
    num_layers = sum(name.endswith(".key") for name in tensors)
    frame_tokens = math.prod(frame)
    for span in spans:
        require_whole_frames(span, frame_tokens)
        for layer in range(num_layers):
            keys, values = tensors[f"layer{layer}.key"].float(), tensors[f"layer{layer}.value"].float()
            if keys.shape[2] < span:
                raise ValueError(
                    f"--spans {span} is longer than the {keys.shape[2]} tokens of {path}; record more frames"
                )
            start = (keys.shape[2] - span) // 2 // frame_tokens * frame_tokens
            window = slice(start, start + span)
            queries = tensors.get(f"layer{layer}.query", keys - keys.mean(2, keepdim=True)).float()
            query_tokens = torch.arange(span - frame_tokens, span)
            grid = (span // frame_tokens, *frame)
            for prompt in range(keys.shape[0]):
                key, value, query = (
                    tensor[prompt : prompt + 1, :, window] for tensor in (keys, values, queries)
                )
                yield "recorded", Sample(key, value, query[:, :, query_tokens], grid, query_tokens)


def measure(sample: Sample, source: str, presets: list[Preset]) -> Iterator[Row]:
    """One row a preset."""
    tokens, head_dim = sample.key.shape[2:]
    rotation = rope_3d(sample.grid, head_dim)
    probe = AttentionProbe(sample.query, sample.key, sample.value, rotation, rotation[sample.query_tokens])
    for preset in presets:
        key_codec, value_codec = build_codec(preset.key), build_codec(preset.value)
        key = key_codec.decode(key_codec.encode(sample.key, seed=0))
        value = value_codec.decode(value_codec.encode(sample.value, seed=1))
        sharp, diffuse = probe.errors_db(key, value, SHARPNESS)
        bits = [spec.bits_per_value(tokens, head_dim) for spec in (preset.key, preset.value)]
        yield Row(
            preset=preset.name,
            source=source,
            tokens=tokens,
            bits=sum(bits) / 2,
            key_db=error_db(key, sample.key),
            value_db=error_db(value, sample.value),
            sharp_db=sharp,
            diffuse_db=diffuse,
            key_gain=gain(key, sample.key),
            value_gain=gain(value, sample.value),
        )


def parse_frame(text: str) -> tuple[int, int]:
    """Rows and columns from "8x14"."""
    rows, columns = text.split("x")
    return int(rows), int(columns)


def main() -> None:
    """Measure, print the table and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=[], help="names in configs/cache, or name:knob=value")
    parser.add_argument("--spans", nargs="*", type=int, default=[4680, 9360, 37440], help="tokens of a span")
    parser.add_argument("--samples", type=int, default=2, help="seeds of each synthetic cell")
    parser.add_argument("--recorded", type=Path, help="safetensors file of recorded keys and values")
    parser.add_argument(
        "--frame", type=parse_frame, default=(8, 14), help="recorded rows x columns of a frame"
    )
    parser.add_argument("--table", type=Path, help="markdown file to write")
    parser.add_argument("--plot", type=Path, help="image to write")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    presets = load_presets(options.presets)
    if options.recorded is None:
        samples = synthetic_samples(options.spans, options.samples)
    else:
        samples = recorded_samples(options.recorded, options.spans, options.frame)
    rows = []
    for source, sample in samples:
        rows += measure(sample, source, presets)
        print(f"measured {source}, {sample.key.shape[2]} tokens", flush=True)
    table = write_table(rows)
    print(table)
    if options.table:
        options.table.write_text(table)
    if options.plot:
        write_plot(rows, options.plot)


if __name__ == "__main__":
    main()
