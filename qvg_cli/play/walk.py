"""The files of a walk: its chunks as they come, and a run that `qvg generate` can make again.

Invariant: a chunk that `add` was given survives whatever ends the program, and a saved run has the video, the
latents and the settings of the same frames.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.load import Request
from qvg_cli.config.schema import RunConfig
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.device import attention_words
from qvg_cli.engine.opening import read_latents
from qvg_cli.engine.session import Chunk
from qvg_cli.errors import UsageError
from qvg_cli.files import RunDir, remove_folder, sync, write_text, write_whole
from qvg_cli.models.registry import family_of, load_config
from qvg_cli.planning.ledger import MemorySample, by_layer
from qvg_cli.report.html import run_page
from qvg_cli.report.memory import MemoryReport, about_run
from qvg_cli.report.provenance import provenance
from qvg_cli.report.run_files import read_result
from qvg_cli.video.io import count_frames
from qvg_cli.video.parts import encode_part, join_parts

_PARTS = "parts"
_GIVEN = "given"
_MOST_SAVED = 12
POSE, PICTURE = "pose.txt", "picture"


class WalkFolder:
    """A run's folder while it is played, and after, with what another process has left of the walk."""

    def __init__(self, run: RunDir, device: torch.device, given: RunDir | None = None) -> None:
        self.run = run
        self._device = device
        self._parts = run.path / _PARTS
        self._parts.mkdir(exist_ok=True)
        self._num_chunks = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="walk")
        self._pending: list[Future[None]] = []
        if given is not None:
            shutil.copyfile(given.video, self._parts / f"{_GIVEN}.mp4")
            shutil.copyfile(given.latents, self._parts / f"{_GIVEN}.safetensors")

    def keep_picture(self, source: Path) -> Path:
        """A copy of the picture that the walk begins in, which stays with it."""
        kept = self.run.path / f"{PICTURE}{source.suffix}"
        write_whole(kept, lambda part: shutil.copyfile(source, part))
        return kept

    def add(self, chunk: Chunk, config: RunConfig) -> None:
        """Write a chunk of a video of these settings while the next one is made."""
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            future.result()
        number, self._num_chunks = self._num_chunks, self._num_chunks + 1
        self._pending.append(self._pool.submit(self._write_chunk, number, chunk, config))

    def save(self) -> None:
        """Write video, latents, settings and report of all that was added; `QvgError` if a file cannot be."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()
        config = load_config(Request(file=self.run.config)).config
        videos, latents = self._whole_parts(config.video.frames)
        num_frames = sum(count_frames(part) for part in videos)
        join_parts(videos, self.run.video, num_frames=num_frames)
        content = save({"latents": latents.contiguous()})
        write_whole(self.run.latents, lambda part: part.write_bytes(content))
        details = family_of(config).run_details(config)
        values = {**_settings(config, self._device), **({"details": details.about} if details.about else {})}
        write_text(self.run.config, format_yaml(values))
        for name, draw in details.plots.items():
            write_whole(self.run.path / name, draw)
        if (pose := option_value(config, "--pose")) is not None:
            write_text(self.run.path / POSE, f"{pose}\n")
        self._write_report(config, num_frames)

    def finish(self) -> None:
        """Save, and leave only the run."""
        self.save()
        self._pool.shutdown()
        remove_folder(self._parts)

    def _whole_parts(self, num_latents: int) -> tuple[list[Path], torch.Tensor]:
        """Videos of the chunks that the settings speak of, and their latents."""
        videos: list[Path] = []
        latents: list[torch.Tensor] = []
        # What was given comes first.
        for video in sorted(self._parts.glob("*.mp4"), key=lambda part: (part.stem != _GIVEN, part.stem)):
            if sum(part.shape[2] for part in latents) < num_latents:
                videos.append(video)
                latents.append(read_latents(video.with_suffix(".safetensors")))
        return videos, torch.cat(latents, dim=2)

    def _write_chunk(self, number: int, chunk: Chunk, config: RunConfig) -> None:
        stem = self._parts / f"{number:05}"
        latents = save({"latents": chunk.latents.contiguous()})
        seconds, memory = round(chunk.seconds, 4), asdict(chunk.memory)
        about = {"seconds": seconds, "frames": len(chunk.frames), "memory": memory}
        write_whole(stem.with_suffix(".safetensors"), lambda part: part.write_bytes(latents))
        write_text(stem.with_suffix(".json"), json.dumps(about))
        # The video last: a chunk is known by it.
        encode = partial(encode_part, frames=chunk.frames, fps=config.video.fps)
        write_whole(stem.with_suffix(".mp4"), encode)
        write_text(self.run.config, format_yaml(_settings(config, self._device)))
        sync(self._parts)

    def _write_report(self, config: RunConfig, num_frames: int) -> None:
        records = [json.loads(path.read_text()) for path in sorted(self._parts.glob("*.json"))]
        if not records:
            return
        memories = [record["memory"] for record in records]
        samples = [
            MemorySample(**{**memory, "logit_rms": by_layer(memory.get("logit_rms", ()))})
            for memory in memories
        ]
        report = MemoryReport(samples, config.video.fps, f"{cache_label(config.cache)} cache")
        about = _about(config, self._device, num_frames, records)
        write_text(self.run.memory, json.dumps(report.to_json(about), indent=1) + "\n")
        write_whole(self.run.plot, report.save_plot)
        write_text(self.run.page, run_page(read_result(self.run.path)))


def recover(folder: Path, device: torch.device) -> bool:
    """Make a run of what another process has left of a walk; whether there was anything to do."""
    if not (folder / _PARTS).is_dir():
        return False
    walk = WalkFolder(RunDir(folder), device)
    walk.finish()
    return True


def saved_runs(folder: Path) -> list[str]:
    """Names of the newest runs in `folder` that can be gone on with, the newest first."""
    try:
        found = [
            run
            for run in map(RunDir, folder.iterdir())
            if run.video.is_file() and run.latents.is_file() and run.config.is_file()
        ]
        found.sort(key=lambda run: run.video.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [run.path.name for run in found[:_MOST_SAVED]]


def find_saved(folder: Path, name: str) -> RunDir:
    """The run of a name in `folder`, and nothing outside of it; `UsageError` if there is none."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or not (folder / name).is_dir():
        raise UsageError(f"no saved run {name!r}", hint="choose one from the list")
    return RunDir(folder / name)


def downloads(run: RunDir) -> list[Path]:
    """Files of a saved walk that a browser may have."""
    pictures = sorted(run.path.glob(f"{PICTURE}.*"))
    wanted = [run.video, run.config, run.path / POSE, *pictures, run.latents, run.page]
    return [path for path in wanted if path.is_file() and not path.name.endswith(".part")]


def option_value(config: RunConfig, flag: str) -> Any:
    """The setting of an option that the family may have; `None` if it has not."""
    settings = {option.flag: option.setting for option in family_of(config).options}
    if flag not in settings:
        return None
    value: Any = config
    for name in settings[flag].split("."):
        # A group may be missing, such as a source.
        value = getattr(value, name, None)
    return value


def with_option(config: RunConfig, flag: str, value: object) -> RunConfig:
    """`config` with another value of an option that the family has."""
    (setting,) = [option.setting for option in family_of(config).options if option.flag == flag]
    group, _, name = setting.partition(".")
    changed = getattr(config, group).model_copy(update={name: value})
    return config.model_copy(update={group: changed})


def _settings(config: RunConfig, device: torch.device) -> dict[str, Any]:
    made = {**provenance(device), "attention": attention_words(config, device)}
    return {**config.model_dump(mode="json"), "provenance": made}


def _about(
    config: RunConfig, device: torch.device, num_frames: int, records: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What the walk was, in front of the figures of its memory."""
    chunk_seconds = [record["seconds"] for record in records]
    about = about_run(
        config,
        device,
        status="complete",
        num_latents=config.video.frames,
        num_frames=num_frames,
        num_given=num_frames - sum(record["frames"] for record in records),
        seconds=sum(chunk_seconds),
    )
    return {**about, "resumed_after": None, "chunk_seconds": chunk_seconds}
