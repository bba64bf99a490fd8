"""Record keys, values and queries of a model, for `kernels/bench/fidelity.py --recorded`.

    python scripts/bench/record.py --out build/recorded.safetensors
    python scripts/bench/record.py --backend self-forcing --frames 81 --layers 3 --out FILE

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
from pocket_runs import PROMPTS, read_prompts
from safetensors.torch import save_file
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache, LayerCache, Rotation, Watcher
from qvg_cli.config.load import Layer, Request, option_layers
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned, plan_jobs
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, Frames, VideoPlan
from qvg_cli.randomness import derive_seed
from qvg_kernels.rope.tables import RotaryTables

EARLY_CHUNKS, EVERY = 2, 4
POCKET, POCKET_FRAMES = ("sampler.window=null", "sampler.sink=0"), 165


class Recorder(Watcher):
    """Keeps on the host some queries of the calls of some chunks, and what history is left in the end.

    Args:
        layers: Numbers of those that are recorded.
        num_queries: Of a call.

    Attributes:
        queries: By layer and frames, `[B, H, Q, D]` of every call.
        tokens: By frames, their places in the chunk, the same in all layers.
        reads: By frames, those that the chunk reads.
        slots: By frames, the positions in time of what the chunk reads, then of its own.
        frame: Rows and columns of a frame.
        history: By layer, keys and values `[B, H, S, D]` bf16 of `frames`.
        frames: Those that were held in the end.
    """

    def __init__(
        self, layers: Sequence[int], chunks: Sequence[ChunkPlan], num_queries: int, seed: int
    ) -> None:
        self.queries: dict[tuple[int, Frames], list[Tensor]] = defaultdict(list)
        self.tokens: dict[Frames, list[Tensor]] = defaultdict(list)
        self.reads: dict[Frames, Frames] = {}
        self.slots: dict[Frames, tuple[int, ...]] = {}
        self.frame = (0, 0)
        self.history: dict[int, tuple[Tensor, Tensor]] = {}
        self.frames: Frames = ()
        self._layers = layers
        self._wanted = {chunk.makes for chunk in chunks}
        self._num_queries = num_queries
        self._seed = seed
        self._backward: dict[RotaryTables, RotaryTables] = {}
        self._cache: KVCache | None = None

    def begin(self, cache: KVCache) -> None:
        """Watch the layers of a video that begins."""
        self._cache = cache
        for index in self._layers:
            cache.layers[index].watcher = self

    def show_clip(self, frames: object) -> None:
        """Frames of a clip are of no interest."""

    def see_call(
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

    def keep_history(self) -> None:
        """Take what the layers hold, and let go of the cache."""
        assert self._cache is not None
        for index in self._layers:
            entries = self._cache.layers[index].entries.values()
            self.frames = tuple(frame for entry in entries for frame in entry.block.frames)
            key, value = (
                torch.cat(parts, dim=2).to(torch.bfloat16).cpu()
                for parts in zip(*(entry.decode() for entry in entries), strict=True)
            )
            self.history[index] = key, value
        self._cache = None


def chunks_of_interest(chunks: Sequence[ChunkPlan]) -> list[ChunkPlan]:
    """The first chunks that make frames, and every fourth."""
    making = [chunk for chunk in chunks if chunk.makes]
    return [chunk for index, chunk in enumerate(making) if index < EARLY_CHUNKS or index % EVERY == 0]


def choose_layers(
    options: argparse.Namespace, plan: VideoPlan, shape: CacheShape, num_videos: int
) -> list[int]:
    """Numbers of the layers to keep: at most so many, and as many as fit, evenly spread.

    Raises:
        SystemExit: Not one fits.
    """
    values = 2 * num_videos * plan.num_frames * plan.tokens_per_frame * shape.heads * shape.head_dim
    layer_mib = 2 * values / 2**20
    fitting = min(options.layers or shape.num_layers, shape.num_layers, int(options.size_mib / layer_mib))
    if fitting < 1:
        raise SystemExit(
            f"--size-mib {options.size_mib:g} holds no layer: one takes {math.ceil(layer_mib)} MiB"
        )
    last = shape.num_layers - 1
    return sorted({round(last * index / max(1, fitting - 1)) for index in range(fitting)})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which videos of which model are made."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="safetensors file to write")
    add("--backend", help="published weights of this backend instead of the pocket model")
    add("--pocket", action="store_true", help="the pocket model of --backend")
    add("--prompts", type=int, default=4, help="how many prompts, a video each")
    add("--first-prompt", type=int, default=0, help="of those in --prompt-file")
    add("--prompt-file", type=Path, default=PROMPTS, help="a prompt a line; prompts.txt if none is given")
    add("--frames", type=int, help="pixel frames; 165 of the pocket model")
    add("--pose", help="as in qvg generate")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as in qvg generate")


def plan_videos(options: argparse.Namespace) -> list[Planned]:
    """The videos that the options ask for, with a cache that rounds nothing."""
    backend = options.backend or "self-forcing"
    is_pocket = options.pocket or options.backend is None
    is_longest = is_pocket and backend == "self-forcing"
    sets = ("cache.preset=none", f"seed={options.seed}", f"device={options.device}")
    pose = option_layers({"pose": options.pose} if options.pose else {})
    frames = options.frames or (POCKET_FRAMES if is_longest else None)
    return [
        plan_jobs(
            Request(
                backend=backend,
                pocket=is_pocket,
                sets=(*sets, *(POCKET if is_longest else ()), *options.sets),
                options=[Layer("prompt", {"prompt": prompt}), *pose],
            ),
            print,
            frames=None if options.pose else frames,
        )[0]
        for prompt in read_prompts(options.first_prompt + options.prompts, options.prompt_file)[
            options.first_prompt :
        ]
    ]


def main() -> None:
    """Make the videos and save what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--queries", type=int, default=24, help="drawn from each model call")
    add("--layers", type=int, help="how many; all if none is given")
    add("--size-mib", type=float, default=1024, help="limit of the file; fewer layers if it is too small")
    add_options(parser)
    options = parser.parse_args()
    videos = plan_videos(options)
    config = videos[0].config
    engine = Engine.load_config(config, resolve_device(config.device))
    chosen = choose_layers(options, videos[0].plan, engine.pipeline.cache_shape, len(videos))
    recorders = []
    for video in videos:
        recorder = Recorder(chosen, chunks_of_interest(video.plan.chunks), options.queries, options.seed)
        for result in engine.rollout(video, recorder):
            print(f"{video.config.prompt}: chunk {result.chunk.index}, {result.seconds:.1f} s", flush=True)
        recorder.keep_history()
        recorders.append(recorder)
    write(options.out, recorders, config.model.name)


def write(path: Path, recorders: Sequence[Recorder], model: str) -> None:
    """Save what was seen of videos that have the same plan."""
    first = recorders[0]
    tensors: dict[str, Tensor] = {}
    for index in first.history:
        for side, name in enumerate(("key", "value")):
            tensors[f"layer{index}.{name}"] = torch.cat([each.history[index][side] for each in recorders])
    chunks: list[dict[str, Any]] = []
    for own, reads in first.reads.items():
        # What was evicted since then cannot be read again.
        if not set(reads) <= set(first.frames):
            continue
        number = len(chunks)
        chunks.append({"frames": own, "reads": reads, "slots": first.slots[own]})
        tensors[f"tokens{number}"] = torch.cat(first.tokens[own]).to(torch.int32)
        for index in first.history:
            queries = [torch.cat(each.queries[index, own], dim=2) for each in recorders]
            tensors[f"layer{index}.query{number}"] = torch.cat(queries)
    layers = list(first.history)
    about = {"model": model, "layers": layers, "frame": first.frame, "frames": first.frames, "chunks": chunks}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"recording": json.dumps(about)})
    shape = tuple(tensors[f"layer{layers[0]}.key"].shape)
    print(f"wrote {path}: layers {layers}, keys and values {shape}, queries of {len(chunks)} chunks")


if __name__ == "__main__":
    main()
