"""Make the matrices that shape a model's rounding errors, for configs/cache/shaped and `cache.matrices`.

    python scripts/bench/shape.py --first-prompt 20 --prompts 20 --out configs/cache/shaped/NAME.safetensors
    python scripts/bench/shape.py --backend self-forcing --prompts 8 --frames 81 --out FILE

Without --backend it is the pocket model. The queries of every model call and the keys and values of every
chunk are taken into account, as a video with a shaped cache does with those of its first two. The file has
`layerN.key` and `layerN.value`, `[H, D, D]` bf16, and is good for every grid. Prompts that judge the matrices
must not be among these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from record import add_options, plan_videos
from safetensors.torch import save_file
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache, LayerCache, Watcher, open_cache
from qvg_cli.cache.shaping import Shaping
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.opening import open_video
from qvg_cli.engine.rollout import rollout, seeded_noise
from qvg_cli.models.registry import family_of
from qvg_cli.planning.chunks import ChunkPlan
from qvg_cli.randomness import derive_seed
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.placement import Placement
from qvg_kernels.spec import FittedSpec

sys.path.append(str(Path(__file__).parents[1]))
from full_size_clock import NoDecoder


class Learner(Watcher):
    """Learns from all videos that it watches.

    Attributes:
        layers: What is learnt, of each layer.
    """

    def __init__(self, num_layers: int) -> None:
        key, value = (build_codec(FittedSpec(shaping=side)) for side in ("key", "value"))
        self.layers = [Shaping(key, value) for _ in range(num_layers)]
        self._cache: KVCache | None = None

    def begin(self, cache: KVCache) -> None:
        """Watch the layers of a video that begins."""
        self._cache = cache
        for layer in cache.layers:
            layer.watcher = self

    def see_queries(self, layer: LayerCache, query: Tensor, placements: Sequence[Placement]) -> None:
        self.layers[layer.index].observe(query, placements)

    def add(self, chunk: ChunkPlan) -> None:
        """Learn from the keys and values of a chunk that has just been made."""
        assert self._cache is not None
        for layer, shaping in zip(self._cache.layers, self.layers, strict=True):
            for block, entry in layer.entries.items():
                if block.chunk == chunk.index:
                    seed = derive_seed(layer.seed, "shaping", layer.index, block.frames[0])
                    shaping.add(entry.decode(), (seed, seed))


def make_latents(engine: Engine, video: Planned, learner: Learner) -> Iterator[ChunkPlan]:
    """Make a video that nobody looks at; its chunks as they are made."""
    config, plan = video.config, video.plan
    pipeline = engine.pipeline.with_config(config)
    cache = open_cache(config.cache, plan, pipeline.cache_shape, config.seed)
    learner.begin(cache)
    planner, embeds = family_of(config).planner(config), engine.encode_prompts(video)[0]
    denoiser = pipeline.denoiser(cache, planner, embeds, config.seed)
    opening = open_video(config, plan, pipeline, denoiser.device, lambda frames: None)
    noise = seeded_noise(plan, config.seed, pipeline.latents_dtype, denoiser.device)
    # Decoding takes three quarters of the time.
    decoder: Any = NoDecoder()
    for result in rollout(plan.chunks, denoiser, decoder, noise, context=opening.context):
        yield result.chunk


def main() -> None:
    """Make the videos and save what was learnt."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    options = parser.parse_args()
    videos = plan_videos(options)
    config = videos[0].config
    engine = Engine.load_config(config, resolve_device(config.device))
    learner = Learner(engine.pipeline.cache_shape.num_layers)
    for video in videos:
        for chunk in make_latents(engine, video, learner):
            learner.add(chunk)
        print(f"{video.config.prompt}: {len(video.plan.chunks)} chunks", flush=True)
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(learner.layers):
        for side, matrix in zip(("key", "value"), layer.learnt(), strict=True):
            assert matrix is not None
            # A batch of guidance shares the matrices of its heads: those of its first item.
            tensors[f"layer{number}.{side}"] = matrix[0].contiguous().cpu()
    about = {"model": config.model.name, "prompts": [video.config.prompt for video in videos]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.out, metadata={"matrices": json.dumps(about)})
    print(f"wrote {options.out}: {len(tensors)} x {tuple(matrix.shape[1:])}")


if __name__ == "__main__":
    main()
