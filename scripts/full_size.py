"""Time a model family at its published size with random weights: seconds a chunk, cache and device bytes.

    python -m scripts.full_size --backend self-forcing --cache bf16 int2 --frames 180 --out results/sf.json
    torchrun --nproc-per-node 2 -m scripts.full_size --backend longcat --no-decode --out results/lc.json
    python -m scripts.full_size --table results/*.json --page docs/results.md

The run is the one of `qvg generate`: the same plan, denoiser, cache, rollout and streaming decode. Only the
text stage is left out: random states stand for a prompt. Needs no files. The JSON is written anew after every
chunk, so a run that is stopped keeps its figures. With --done N the first N chunks have random latents, and
their keys and values are computed as a resume does, by one pass each: the end of a long video in a fifth of
its time.

Several processes make one video together, and each writes its figures, the others to FILE.RANK.json; without
--no-decode each decodes for itself.

The device is waited for at the borders of a model's and a decoder's work of a chunk, and nowhere else.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from safetensors.torch import save_file

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.cache.probe import Probe, keys_alone, packs_keys
from qvg_cli.config.load import Layer, Request
from qvg_cli.config.schema import RunConfig
from qvg_cli.device import resolve_device
from qvg_cli.engine.parallel import start
from qvg_cli.engine.rollout import Done, rollout, seeded_noise
from qvg_cli.environment import find_launch
from qvg_cli.files import write_whole
from qvg_cli.models.base import Pipeline
from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayPipeline
from qvg_cli.models.longcat.pipeline import LongCatDenoiser, LongCatPipeline
from qvg_cli.models.longcat.plan import plan_video as plan_longcat
from qvg_cli.models.longcat.schedule import Schedule, guided_schedule
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.models.self_forcing.pipeline import SelfForcingPipeline
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.ledger import MemorySample
from qvg_cli.report.memory import MemoryReport
from scripts.full_size_clock import Clock, NoDecoder, OutOfBudget, TimedDecoder
from scripts.full_size_profile import profile
from scripts.full_size_table import fill_page, table
from scripts.random_models import FULL, TINY, RandomModels

PIPELINES = {
    "self-forcing": SelfForcingPipeline,
    "hyworldplay": HyWorldPlayPipeline,
    "longcat": LongCatPipeline,
}
_WALK = ("w-8", "right-8", "a-8", "left-8", "s-8")
"""Moves of a walk, over and over: places are left and seen again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every arm, or print the table of finished files."""
    options = parse_options(arguments)
    if options.table:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in options.table]
        if options.page:
            page = fill_page(options.page.read_text(encoding="utf-8"), records)
            options.page.write_text(page, encoding="utf-8")
        else:
            print(table(records))
        return 0
    device, launch = resolve_device(options.device), find_launch()
    if launch.num_processes > 1 and device.type == "cuda":
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    if launch.rank:
        options.out = options.out.with_suffix(f".{launch.rank}.json")
    if options.memory_limit_gib is not None:
        if device.type != "cuda":
            raise SystemExit(f"--memory-limit-gib needs a GPU, the device is {device}")
        share = options.memory_limit_gib * 2**30 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(share, device)
    config = load_run(options, options.cache[0])
    started = time.perf_counter()
    pipeline, models = load_pipeline(options, config, device)
    _wait(device)
    record = {
        "schema": 1,
        **describe(options, config, device),
        "load_seconds": round(time.perf_counter() - started, 2),
        "loaded_bytes": torch.cuda.memory_allocated(device) if device.type == "cuda" else None,
        "arms": [],
    }
    is_whole = True
    for preset in options.cache:
        arm = Arm(options, load_run(options, preset), models)
        record["arms"].append(arm.record)
        is_whole &= arm.run(pipeline, lambda: save(record, options.out))
    print(table([record]))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0 if is_whole else 1


def load_pipeline(
    options: argparse.Namespace, config: RunConfig, device: torch.device
) -> tuple[Any, RandomModels]:
    """The pipeline of a run, and its models, both made."""
    layout = (FULL if options.size == "full" else TINY)[options.backend]
    models = RandomModels(config, layout, device, seed=options.seed)
    pipeline = PIPELINES[options.backend](config, models)
    if parallel := start(config, device):
        pipeline.share(parallel.tokens, parallel.rows)
    _ = models.transformer, models.vae
    if options.backend == "longcat" and options.steps:
        return ShortStart(pipeline, guided_schedule(options.steps, config.sampler.shift)), models
    return pipeline, models


class ShortStart:
    """A pipeline of LongCat-Video whose base clips have fewer steps; the segments' own schedule stays."""

    def __init__(self, pipeline: LongCatPipeline, schedule: Schedule) -> None:
        self._pipeline = pipeline
        self._schedule = schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def denoiser(self, *arguments: Any) -> LongCatDenoiser:
        """See `Pipeline.denoiser`."""
        denoiser = self._pipeline.denoiser(*arguments)
        denoiser._sampling = replace(denoiser._sampling, start=self._schedule)
        return denoiser


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", type=Path, nargs="+", help="print the table of these files instead of a run")
    add("--page", type=Path, help="with --table: write the tables there, between the marks of full_size")
    add("--out", type=Path, help="the JSON file of this run")
    add("--backend", choices=sorted(PIPELINES), default="self-forcing")
    add("--size", choices=("full", "tiny"), default="full", help="tiny: random models for a CPU")
    add("--cache", nargs="+", default=["int2"], help="presets, one arm each")
    add("--frames", type=int, default=21, help="self-forcing: latent frames")
    add("--done", type=int, default=0, metavar="N", help="self-forcing: measure the chunks after the first N")
    add("--chunks", type=int, default=4, help="hyworldplay: chunks of 4 latent frames")
    add("--segments", type=int, default=1, help="longcat: segments after the base clip")
    add("--context", choices=("append", "rebuild", "incremental"), default="append", help="hyworldplay")
    add(
        "--steps",
        type=int,
        help="only the first steps of a chunk; longcat: steps of the base clip, 0: no such clip",
    )
    add("--decode", action=argparse.BooleanOptionalAction, default=True, help="whether pixels are made")
    add("--memory-limit-gib", type=float, help="device memory that the process may take")
    add("--budget-seconds", type=float, help="end an arm after this time; what it has made counts")
    add("--profile", type=int, metavar="CHUNK", help="list the kernels of one chunk beside the JSON")
    add("--probe", nargs="+", default=[], metavar="PRESET", help="measure what these do to a bf16 arm's keys")
    add("--latents", type=Path, help="keep the first process' latents in this place, a file an arm")
    add("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as in qvg generate")
    add("--commit", help="noted with the figures")
    add("--device", default="auto")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else arguments
    if options.out is None and not options.table:
        parser.error("give --out FILE or --table FILES")
    return options


def load_run(options: argparse.Namespace, preset: str) -> RunConfig:
    """The configuration of one arm."""
    layout = (FULL if options.size == "full" else TINY)[options.backend]
    sets = [*layout.sets, *options.sets]
    if options.backend == "self-forcing":
        sets.append(f"video.frames={options.frames}")
    elif options.backend == "hyworldplay":
        moves = (_WALK[index % len(_WALK)] for index in range(-(-options.chunks // 2)))
        sets += [f"video.frames={4 * options.chunks}", f"walk.pose={','.join(moves)}"]
        sets.append(f"sampler.context={options.context}")
    cache = Layer("--cache", {"cache": {"preset": preset}})
    config = load_config(
        Request(backend=options.backend, sets=[*sets, f"seed={options.seed}"], options=[cache])
    ).config
    sampler = config.sampler
    if options.backend == "longcat":
        start = sampler.condition_frames if options.steps == 0 else sampler.window
        frames = start + options.segments * sampler.frames_per_chunk
        return config.model_copy(update={"video": config.video.model_copy(update={"frames": frames})})
    if options.steps:
        sampler = sampler.model_copy(update={"steps": sampler.steps[: options.steps]})
    return config.model_copy(update={"sampler": sampler})


def describe(options: argparse.Namespace, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What is run, and where."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version(name) for name in ("diffusers", "triton") if find_spec(name)}
    is_cuda = device.type == "cuda"
    return {
        "backend": config.backend,
        "size": options.size,
        "height": config.video.height,
        "width": config.video.width,
        "decode": options.decode,
        "context": options.context if config.backend == "hyworldplay" else None,
        "steps": options.steps,
        "done": options.done,
        "sets": options.sets,
        "memory_limit_gib": options.memory_limit_gib,
        "text_stage": "left out: random states",
        "weights": "random",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": shlex.join(["python", "-m", "scripts.full_size", *options.given]),
        "commit": options.commit,
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "versions": versions,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
    }


class Arm:
    """One cache preset.

    Attributes:
        record: Its figures, as they are saved.
    """

    def __init__(self, options: argparse.Namespace, config: RunConfig, models: RandomModels) -> None:
        self._options = options
        self._config = config
        self._models = models
        self._samples: list[MemorySample] = []
        self.record: dict[str, Any] = {"cache": config.cache.preset, "status": "running", "chunks": []}

    def run(self, pipeline: Pipeline, save_record: Any) -> bool:
        """Make the video; whether it became whole."""
        try:
            self._make(pipeline, save_record)
            self.record["status"] = "complete"
        except OutOfBudget:
            self.record["status"] = "stopped: out of its budget"
        except torch.OutOfMemoryError as error:
            self.record["status"] = f"out of memory: {error}"
        except KeyboardInterrupt:
            self.record["status"] = "interrupted"
            raise
        except Exception as error:
            # The other arms are run all the same.
            traceback.print_exc()
            self.record["status"] = f"failed: {error}"
        finally:
            save_record()
            self._free()
        return self.record["status"] == "complete" or self.record["status"].startswith("stopped")

    def _free(self) -> None:
        """Leave nothing of the arm on the device for the next one."""
        if self._config.backend != "longcat":
            # The model's own hold its last cache.
            self._models.transformer.set_attn_processor(WanAttnProcessor())
        gc.collect()
        if self._models.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make(self, pipeline: Pipeline, save_record: Any) -> None:
        options, config, device = self._options, self._config, self._models.device
        plan, context = self._plan()
        self.record |= {"latent_frames": plan.num_frames, "num_chunks": len(plan.chunks)}
        rows = 2 if config.backend == "longcat" and config.sampler.is_guided else 1
        embeds = self._models.text_states(rows, config.model.text_tokens)
        clock = Clock(device, options.budget_seconds)
        cache = open_cache(config.cache, plan, pipeline.cache_shape, options.seed)
        denoiser = pipeline.denoiser(cache, family_of(config).planner(config), embeds, options.seed)
        decoder = TimedDecoder(pipeline.decoder() if options.decode else NoDecoder(), clock)
        noise = seeded_noise(plan, options.seed, pipeline.latents_dtype, device)
        first, done = plan.chunks[: options.done], None
        if first:
            shape = (1, plan.latent_shape[0], max(first[-1].frames) + 1, *plan.latent_shape[1:])
            latents = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
            done = Done(first, latents.to(device, pipeline.latents_dtype), has_history=False)
        probe = None
        if options.probe and not packs_keys(config.cache):
            packed = {
                preset: open_cache(
                    keys_alone(load_run(options, preset).cache), plan, pipeline.cache_shape, options.seed
                )
                for preset in options.probe
            }
            probe = Probe(cache, packed, options.seed)
        chunks = plan.chunks[options.done :]
        results = rollout(
            chunks, denoiser, decoder, noise, context=context, done=done, probe=probe, on_step=clock.step
        )
        latents = []
        for chunk in chunks:
            clock.begin_chunk()
            try:
                with profile(chunk.index == options.profile, options.out, self.record["cache"], device):
                    result = next(results)
            except OutOfBudget:
                self.record["chunks"].append({"chunk": chunk.index, "is_partial": True, **clock.figures()})
                raise
            self._samples.append(result.memory)
            latents.append(result.latents.cpu())
            report = MemoryReport(self._samples, config.video.fps, config.cache.preset)
            figures = report.to_json({})
            row = {**figures.pop("chunks")[-1], **clock.figures()}
            if probe is not None:
                losses = {name: [asdict(each) for each in layers] for name, layers in result.losses.items()}
                row |= {"probe_seconds": round(result.probe_seconds, 4), "losses": losses}
            if device.type == "cuda":
                row["device_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
            self.record["chunks"].append(row)
            self.record["summary"] = {**figures, **totals(self.record["chunks"])}
            save_record()
            clock.check_budget()
        if options.latents is not None and not find_launch().rank:
            made = {"latents": torch.cat(latents, dim=2).contiguous()}
            save_file(made, f"{options.latents}.{self.record['cache']}.safetensors")

    def _plan(self) -> tuple[VideoPlan, torch.Tensor | None]:
        """The plan, and random latents of the frames that it takes as given."""
        config = self._config
        if config.backend != "longcat" or self._options.steps != 0:
            return plan_video(config), None
        frames = config.sampler.condition_frames
        plan = plan_longcat(config, context_frames=frames)
        channels, height, width = plan.latent_shape
        generator = torch.Generator().manual_seed(self._options.seed)
        given = torch.randn(1, channels, frames, height, width, generator=generator)
        return plan, given.to(self._models.device)


def totals(chunks: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of all chunks so far."""
    names = ("transformer_seconds", "decode_seconds", "recall_seconds")
    reserved = [chunk["device_reserved_bytes"] for chunk in chunks if "device_reserved_bytes" in chunk]
    return {
        **{name: round(sum(chunk[name] for chunk in chunks), 3) for name in names},
        "device_reserved_bytes": max(reserved, default=None),
    }


def save(record: Mapping[str, Any], path: Path) -> None:
    """Write the figures so far, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
