"""Runs for the benches, most of the built-in pocket model: many prompts side by side, in a user's loop.

`prompts.txt` names scenes that the pocket model was not trained on; no run changes another's noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qvg_cli.cache.kv_cache import KVCache, open_cache
from qvg_cli.config.load import Request
from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.rollout import ChunkResult, rollout, seeded_noise
from qvg_cli.models.base import Pipeline
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import VideoPlan

PROMPTS = Path(__file__).with_name("prompts.txt")


@dataclass(frozen=True)
class Arm:
    """One cache setting of a comparison, written `preset` or `preset:knob=value,knob=value`."""

    label: str
    preset: str
    sets: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Arm:
        """The arm that `text` says."""
        preset, _, knobs = text.partition(":")
        sets = tuple(f"cache.{knob}" for knob in knobs.split(",") if knob)
        return cls(text, preset, sets)

    def config(self, common: Sequence[str]) -> RunConfig:
        """The pocket model's configuration with this arm's cache and `common` settings."""
        sets = (f"cache.preset={self.preset}", *common, *self.sets)
        return load_config(Request(pocket=True, backend="self-forcing", sets=sets)).config


@dataclass(frozen=True)
class Batch:
    """Videos made side by side, and the cache that they share."""

    plan: VideoPlan
    shape: CacheShape
    cache: KVCache
    results: Iterator[ChunkResult]


def read_prompts(count: int, path: Path = PROMPTS) -> list[str]:
    """The first `count` prompts of a file.

    Raises:
        ValueError: There are fewer.
    """
    prompts = path.read_text(encoding="utf-8").splitlines()
    if count > len(prompts):
        raise ValueError(f"{count} prompts were asked for; {path.name} has {len(prompts)}")
    return prompts[:count]


def start_batch(config: RunConfig, prompts: Sequence[str], pipeline: Pipeline, device: torch.device) -> Batch:
    """Begin one video per prompt with a loaded model; the videos are made as the results are taken."""
    plan = plan_video(config)
    pipeline = pipeline.with_config(config)
    embeds = torch.cat([pipeline.encode_prompt(prompt) for prompt in prompts])
    shape = pipeline.cache_shape
    shape = replace(shape, heads=shape.heads * len(prompts))
    cache = open_cache(config.cache, plan, shape, config.seed)
    denoiser = pipeline.denoiser(cache, family_of(config).planner(config), embeds, config.seed)
    noise = seeded_noise(plan, config.seed, pipeline.latents_dtype, device, batch=len(prompts))
    return Batch(plan, shape, cache, rollout(plan.chunks, denoiser, pipeline.decoder(), noise))
