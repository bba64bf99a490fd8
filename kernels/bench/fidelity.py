"""What every cache preset loses on keys, values and attention: tables and a plot for docs/results.md.

    python kernels/bench/fidelity.py --json synthetic.json
    python kernels/bench/fidelity.py --recorded recorded.safetensors --json recorded.json

Synthetic samples come from synthetic.py; a recording from scripts/bench/record.py. History is packed span by
span, as a session does it, and judged by queries that come later. On a recording the logits have the model's
own scale, and the heads are told apart by how many keys they effectively attend to: the half with fewer is
sharp, the other diffuse.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from figures import Row, write_differences, write_plot, write_table
from measures import AttentionProbe, HeadLosses, error_db, gain, rope_3d, rope_at
from presets import Preset, load_presets
from safetensors import safe_open
from safetensors.torch import load_file
from synthetic import FRAME, LEVELS, make_sample
from torch import Tensor

from qvg_kernels.codec import Codec
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.moments import placed_moment

SHARPNESS = {"sharp": 8.0, "diffuse": 3.0}
NUM_QUERIES = 256
EARLY_CHUNKS = 2


@dataclass(frozen=True)
class Case:
    """A history of one layer, and queries that judge what is left of it.

    Attributes:
        source: Level of the synthetic data, or "recorded".
        sample: Which of the data it is.
        span: Tokens that are packed together.
        key: `[1, H, S, D]` float32, before any rotation.
        value: `[1, H, S, D]` float32.
        frame: Rows and columns of a frame's tokens.
        probes: Each with the tokens that it attends to, those that are packed first.
        scales: Of the logits, by what heads are called at it; "" is the model's own.
        asked: Queries before any rotation, `[1, H, Q, D]`, each with the first token of its chunk: what a
            codec may know of when it packs later ones.
        shipped: `[1, H, D, D]` matrices of "key" and "value" that take the place of learnt ones.
    """

    source: str
    sample: str
    span: int
    key: Tensor
    value: Tensor
    frame: tuple[int, int]
    probes: list[tuple[AttentionProbe, Tensor]]
    scales: Mapping[str, float]
    asked: list[tuple[int, Tensor]]
    shipped: Mapping[str, Tensor] = field(default_factory=dict)


def require_whole_frames(span: int, frame_tokens: int) -> None:
    """Refuse a span that ends inside a frame."""
    nearest = max(1, round(span / frame_tokens)) * frame_tokens
    if span != nearest:
        raise ValueError(
            f"--spans {span} is not a whole number of frames of {frame_tokens} tokens; nearest: {nearest}"
        )


def synthetic_cases(spans: list[int], history: int, samples: int, device: str) -> Iterator[Case]:
    """Every level at every span, of which there are as many as `history` tokens hold, or one."""
    for span in spans:
        require_whole_frames(span, math.prod(FRAME))
        span_frames = span // math.prod(FRAME)
        frames = span_frames * max(1, history // span)
        for level in LEVELS:
            for seed in range(samples):
                made = make_sample(
                    level, frames, num_queries=NUM_QUERIES, early_frames=span_frames, seed=seed
                )
                query, key, value = (part.to(device) for part in (made.query, made.key, made.value))
                rotation = rope_3d(made.grid, key.shape[3]).to(device)
                tokens = made.query_tokens.to(device)
                probe = AttentionProbe(query, key, value, rotation, rotation[tokens])
                scales = {kind: probe.scale_of(sharpness) for kind, sharpness in SHARPNESS.items()}
                every = torch.arange(key.shape[2], device=device)
                asked = [(0, made.early_query.to(device))]
                yield Case(level, f"seed {seed}", span, key, value, FRAME, [(probe, every)], scales, asked)


def recorded_cases(path: Path, spans: list[int], device: str, matrices: Path | None = None) -> Iterator[Case]:
    """Every layer and prompt of a recording at every span, which is a chunk if none is given.

    Args:
        matrices: File of those of its model, for the presets that are shaped.
    """
    every = {} if matrices is None else load_file(matrices, device)
    with safe_open(path, "pt", device=device) as file:
        about = json.loads((file.metadata() or {}).get("recording", "null"))
        if about is None:
            raise ValueError(f"{path} is no recording; make one with scripts/bench/record.py")
        frame_tokens = math.prod(about["frame"])
        for span in spans or [frame_tokens * len(about["chunks"][-1]["frames"])]:
            require_whole_frames(span, frame_tokens)
            judging = _judging_chunks(about, span // frame_tokens)
            if not judging:
                raise ValueError(
                    f"--spans {span} is longer than any history of {path}, at most "
                    f"{max(len(chunk['reads']) for chunk in about['chunks']) * frame_tokens} tokens; "
                    "record more frames"
                )
            for layer in about["layers"]:
                key, value = (file.get_tensor(f"layer{layer}.{name}").float() for name in ("key", "value"))
                queries = {
                    number: (
                        file.get_tensor(f"layer{layer}.query{number}"),
                        file.get_tensor(f"tokens{number}"),
                    )
                    for number in judging
                }
                asked = [
                    (
                        about["frames"].index(chunk["frames"][0]) * frame_tokens,
                        file.get_tensor(f"layer{layer}.query{number}"),
                    )
                    for number, chunk in enumerate(about["chunks"])
                    if chunk["frames"][0] in about["frames"]
                ]
                for prompt in range(key.shape[0]):
                    one = slice(prompt, prompt + 1)
                    probes = [
                        _recorded_probe(
                            about, number, (query[one].float(), tokens), (key[one], value[one]), packed
                        )
                        for (number, packed), (query, tokens) in zip(
                            judging.items(), queries.values(), strict=True
                        )
                    ]
                    name, scales = f"layer {layer}, prompt {prompt}", {"": key.shape[3] ** -0.5}
                    own = [(first, query[one].float()) for first, query in asked]
                    states = (key[one], value[one])
                    shipped = {
                        side: every[f"layer{layer}.{side}"].unsqueeze(0) for side in ("key", "value") if every
                    }
                    yield Case("recorded", name, span, *states, about["frame"], probes, scales, own, shipped)


def _judging_chunks(about: Mapping[str, Any], span_frames: int) -> dict[int, int]:
    """Number of each chunk that reads packed frames, and how many of the recorded frames are packed then."""
    found = {}
    for number, chunk in enumerate(about["chunks"]):
        before = [frame for frame in about["frames"] if frame < chunk["frames"][0]]
        packed = len(before) // span_frames * span_frames
        if set(before[:packed]) & set(chunk["reads"]):
            found[number] = packed
    # The queries of the first chunks are there to learn from; a short recording has no others.
    return {number: packed for number, packed in found.items() if number >= EARLY_CHUNKS} or found


def _recorded_probe(
    about: Mapping[str, Any],
    number: int,
    asked: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    num_packed: int,
) -> tuple[AttentionProbe, Tensor]:
    chunk, frame, held_frames = about["chunks"][number], about["frame"], about["frames"]
    (query, query_tokens), (key, value) = asked, held
    slot_of = dict(zip(chunk["reads"] + chunk["frames"], chunk["slots"], strict=True))
    # The last chunk's own keys are not held any more: it is judged by its history alone.
    seen = [one for one in slot_of if one in held_frames]
    seen.sort(key=lambda one: held_frames.index(one) >= num_packed)
    frame_tokens = math.prod(frame)
    place = torch.arange(frame_tokens, device=key.device)
    tokens = torch.cat([held_frames.index(one) * frame_tokens + place for one in seen])
    rotation, own_rotation = (
        rope_at([slot_of[one] for one in frames], frame, key.shape[3]).to(key.device)
        for frames in (seen, chunk["frames"])
    )
    probe = AttentionProbe(
        query,
        key[:, :, tokens],
        value[:, :, tokens],
        rotation,
        own_rotation[query_tokens.long()],
        frame_tokens * sum(held_frames.index(one) < num_packed for one in seen),
    )
    return probe, tokens


def pack(codec: Codec, states: Tensor, case: Case, num_packed: int, seed: int) -> Tensor:
    """What the first tokens of `[1, H, S, D]` decode to, span by span; the others as they are."""
    spans = states[:, :, :num_packed].split(case.span, dim=2)
    seeds = [2 * number + seed for number in range(len(spans))]
    matrices: Sequence[Tensor | None] = [None]
    if codec.spec.is_shaped:
        shipped = case.shipped.get(codec.spec.shaping)
        matrices = learn(codec, spans, seeds, case) if shipped is None else [shipped]
    if codec.spec.weighs_queries:
        matrices = [earlier_queries(case, number) for number in range(len(spans))]
    shapers = [None if matrix is None else codec.shaper_of(matrix) for matrix in matrices]
    parts = []
    for number, (span, own_seed) in enumerate(zip(spans, seeds, strict=True)):
        shaper = shapers[min(number, len(shapers) - 1)]
        parts.append(codec.decode(codec.encode(span, seed=own_seed, shaper=shaper)))
    return torch.cat([*parts, states[:, :, num_packed:]], dim=2)


def learn(codec: Codec, spans: Sequence[Tensor], seeds: Sequence[int], case: Case) -> list[Tensor | None]:
    """The matrices of the first span and of those after it, learnt from the first two as a session does."""
    matrices: list[Tensor | None] = []
    residual = query = torch.zeros(())
    for number, (span, seed) in enumerate(zip(spans[:2], seeds, strict=False)):
        residual = codec.residual_moment(span, seed=seed).to("cpu") + residual
        if number < len(case.asked):
            asked = case.asked[number][1].double().to("cpu")
            query = query + placed_moment(asked.mT @ asked, *case.frame)
        matrices.append(codec.shaping_matrix(residual, query).to(span.device))
    return matrices


def earlier_queries(case: Case, number: int) -> Tensor | None:
    """`[1, H, D, D]`, the sum of the products of queries of chunks before a span, if there are any."""
    queries = [query for first, query in case.asked if first < number * case.span]
    return torch.stack([query.mT @ query for query in queries]).sum(0) if queries else None


def measure(case: Case, presets: list[Preset]) -> Iterator[Row]:
    """A row for each preset, head and scale."""
    head_dim = case.key.shape[3]
    num_packed = max(int(tokens[: probe.num_packed].max()) + 1 for probe, tokens in case.probes)
    packed = slice(num_packed)
    for preset in presets:
        key = pack(build_codec(preset.key), case.key, case, num_packed, 0)
        value = pack(build_codec(preset.value), case.value, case, num_packed, 1)
        bits = [spec.bits_per_value(case.span, head_dim) for spec in (preset.key, preset.value)]
        shared = {
            "preset": preset.name,
            "source": case.source,
            "sample": case.sample,
            "tokens": case.span,
            "bits": sum(bits) / 2,
            "key_db": error_db(key[:, :, packed], case.key[:, :, packed]),
            "value_db": error_db(value[:, :, packed], case.value[:, :, packed]),
            "key_gain": gain(key[:, :, packed], case.key[:, :, packed]),
            "value_gain": gain(value[:, :, packed], case.value[:, :, packed]),
        }
        for kind, scale in case.scales.items():
            by_probe = [
                probe.losses(key[:, :, tokens], value[:, :, tokens], scale) for probe, tokens in case.probes
            ]
            for head, losses in enumerate(zip(*by_probe, strict=True)):
                yield Row(**shared, head=head, kind=kind, **dataclasses.asdict(_mean(losses)))


def _mean(losses: tuple[HeadLosses, ...]) -> HeadLosses:
    """The mean over the probes of a head."""
    values = zip(*(dataclasses.astuple(one) for one in losses), strict=True)
    return HeadLosses(*(statistics.fmean(value) for value in values))


def main() -> None:
    """Measure, print the tables and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--presets", nargs="*", default=[], help="names in configs/cache, or name:knob=value")
    add("--spans", nargs="*", type=int, default=[], help="tokens of a span")
    add("--history", type=int, default=14040, help="tokens of a synthetic history, if a span is not longer")
    add("--samples", type=int, default=2, help="seeds of each synthetic cell")
    add("--recorded", type=Path, help="safetensors file of scripts/bench/record.py")
    add("--matrices", type=Path, help="file of scripts/bench/shape.py for presets that are shaped")
    add("--table", type=Path, help="markdown file to write")
    add("--json", type=Path, help="file for the figures of every head")
    add("--plot", type=Path, help="image to write")
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    presets = load_presets(options.presets)
    if options.recorded is None:
        spans = options.spans or [4680, 9360, 37440]
        cases = synthetic_cases(spans, options.history, options.samples, options.device)
    else:
        cases = recorded_cases(options.recorded, options.spans, options.device, options.matrices)
    rows: list[Row] = []
    for case in cases:
        rows += measure(case, presets)
        print(f"measured {case.source}, {case.sample}, spans of {case.span} tokens", flush=True)
        if options.json:
            options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    table = f"{write_table(rows)}\nDifferences, with standard errors over heads\n\n{write_differences(rows)}"
    print(table)
    if options.table:
        options.table.write_text(table)
    if options.plot:
        write_plot(rows, options.plot)


if __name__ == "__main__":
    main()
