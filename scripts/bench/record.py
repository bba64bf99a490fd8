"""Record keys, values and queries of a model, for `kernels/bench/fidelity.py --recorded`.

    python scripts/bench/record.py --out build/recorded.safetensors
    python scripts/bench/record.py --backend self-forcing --layers 3 --size-mib 1024 --out FILE

Without --backend it is the pocket model, which attends to all frames. Keys and values are those that an
unpacked cache holds in the end; queries are drawn from every model call of the first two chunks, from which a
codec may learn, and of every fourth chunk, which judge. All are kept before rotation. The file is bf16; its
metadata says which frames stand where.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pocket_runs import read_prompts, start_batch
from safetensors.torch import save_file
from torch import Tensor

from qvg_cli.cache.kv_cache import LayerCache, Rotation
from qvg_cli.config.load import Request
from qvg_cli.device import resolve_device
from qvg_cli.models.registry import load_config, load_pipeline
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.randomness import derive_seed
from qvg_kernels.rope.tables import RotaryTables

EARLY_CHUNKS, EVERY = 2, 4
POCKET = ("sampler.window=null", "sampler.sink=0")


class Recorder:
    """Keeps some queries of every call of the chunks that are of interest, on the host.

    Args:
        num_queries: Of a call.

    Attributes:
        queries: By layer and frames, `[B, H, Q, D]` of every call.
        tokens: By frames, their places in the chunk, the same in all layers.
        slots: By frames, the position in time of the frames that a chunk reads, then of its own.
        frame: Rows and columns of a frame.
    """

    def __init__(self, chunks: Sequence[ChunkPlan], num_queries: int, seed: int) -> None:
        self.queries: dict[tuple[int, Frames], list[Tensor]] = defaultdict(list)
        self.tokens: dict[Frames, list[Tensor]] = defaultdict(list)
        self.slots: dict[Frames, tuple[int, ...]] = {}
        self.reads: dict[Frames, Frames] = {}
        self.frame = (0, 0)
        self._wanted = {chunk.makes for chunk in chunks}
        self._num_queries = num_queries
        self._seed = seed
        self._backward: dict[RotaryTables, RotaryTables] = {}

    def __call__(
        self, layer: LayerCache, query: Tensor, key: Tensor, frames: Frames, reads: Frames, rotation: Rotation
    ) -> None:
        if frames not in self._wanted or not isinstance(rotation, FrameRotation):
            return
        number = len(self.queries[layer.index, frames])
        if number == len(self.tokens[frames]):
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "recorded", frames[0], number))
            count = min(self._num_queries, query.shape[2])
            self.tokens[frames].append(torch.randperm(query.shape[2], generator=generator)[:count])
            self.frame = rotation.rows, rotation.columns
            self.reads[frames] = reads
            self.slots[frames] = rotation.placement((*reads, *frames)).slots
        tables = rotation.tables
        if tables not in self._backward:
            self._backward[tables] = RotaryTables(tables.cosine, -tables.sine)
        raw = replace(rotation, tables=self._backward[tables]).rotate(query, frames)
        chosen = raw[:, :, self.tokens[frames][number].to(raw.device)]
        self.queries[layer.index, frames].append(chosen.to(torch.bfloat16).cpu())


def chunks_of_interest(chunks: Sequence[ChunkPlan]) -> list[ChunkPlan]:
    """The first chunks that make frames, and every fourth."""
    making = [chunk for chunk in chunks if chunk.makes]
    return [chunk for index, chunk in enumerate(making) if index < EARLY_CHUNKS or index % EVERY == 0]


def choose_layers(
    layers: Sequence[LayerCache], count: int | None, layer_mib: float, size_mib: float
) -> list[int]:
    """Numbers of at most `count` layers that fit, evenly spread.

    Raises:
        SystemExit: Not one fits.
    """
    fitting = min(count or len(layers), len(layers), int(size_mib / layer_mib))
    if fitting < 1:
        raise SystemExit(f"--size-mib {size_mib:g} holds no layer: one takes {math.ceil(layer_mib)} MiB")
    last = len(layers) - 1
    return sorted({round(last * index / max(1, fitting - 1)) for index in range(fitting)})


def main() -> None:
    """Make the videos and save what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="safetensors file to write")
    add("--backend", help="published weights of this backend instead of the pocket model")
    add("--prompts", type=int, default=4, help="how many prompts")
    add("--first-prompt", type=int, default=0, help="of those in prompts.txt")
    add("--frames", type=int, default=42, help="latent frames")
    add("--queries", type=int, default=24, help="drawn from each model call")
    add("--layers", type=int, help="how many; all if none is given")
    add("--size-mib", type=float, default=1024, help="limit of the file; fewer layers if it is too small")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as in qvg generate")
    options = parser.parse_args()

    config = load_config(
        Request(
            backend=options.backend or "self-forcing",
            pocket=options.backend is None,
            sets=(
                "cache.preset=none",
                f"video.frames={options.frames}",
                f"seed={options.seed}",
                *(POCKET if options.backend is None else ()),
                *options.sets,
            ),
        )
    ).config
    prompts = read_prompts(options.first_prompt + options.prompts)[options.first_prompt :]
    device = resolve_device(options.device)
    batch = start_batch(config, prompts, load_pipeline(config, device), device)
    made = chunks_of_interest(batch.plan.chunks)
    shape = batch.shape
    layer_mib = 4 * batch.plan.num_frames * batch.plan.tokens_per_frame * shape.heads * shape.head_dim / 2**20
    chosen = choose_layers(batch.cache.layers, options.layers, layer_mib, options.size_mib)
    recorder = Recorder(made, options.queries, options.seed)
    for index in chosen:
        batch.cache.layers[index].watcher = recorder
    for result in batch.results:
        print(f"chunk {result.chunk.index}: {result.seconds:.1f} s", flush=True)
    write(options.out, batch.cache.layers, chosen, recorder, config.model.name)


def write(
    path: Path, layers: Sequence[LayerCache], chosen: Sequence[int], recorder: Recorder, model: str
) -> None:
    """Save what the layers hold and what their queries were."""
    tensors: dict[str, Tensor] = {}
    chunks: list[dict[str, Any]] = []
    frames: list[int] = []
    for index in chosen:
        entries = list(layers[index].entries.values())
        frames = [frame for entry in entries for frame in entry.block.frames]
        for name, parts in zip(
            ("key", "value"), zip(*(entry.decode() for entry in entries), strict=True), strict=True
        ):
            tensors[f"layer{index}.{name}"] = torch.cat(parts, dim=2).to(torch.bfloat16).cpu().contiguous()
    for own, reads in recorder.reads.items():
        # What was evicted since then cannot be read again.
        if not set(own + reads) <= set(frames):
            continue
        number = len(chunks)
        chunks.append({"frames": own, "reads": reads, "slots": recorder.slots[own]})
        tensors[f"tokens{number}"] = torch.cat(recorder.tokens[own]).to(torch.int32)
        for index in chosen:
            tensors[f"layer{index}.query{number}"] = torch.cat(recorder.queries[index, own], dim=2)
    about = {"model": model, "layers": chosen, "frame": recorder.frame, "frames": frames, "chunks": chunks}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"recording": json.dumps(about)})
    shape = tuple(tensors[f"layer{chosen[0]}.key"].shape)
    print(f"wrote {path}: layers {chosen}, keys and values {shape}, queries of {len(chunks)} chunks")


if __name__ == "__main__":
    main()
