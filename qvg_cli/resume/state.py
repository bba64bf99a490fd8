"""The state of a run that is under way: begun, saved after every chunk, opened again, removed at the end.

Invariant: what `save` has returned from survives anything but the disk's own end; a run that goes on from it
makes the frames that it would have made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qvg_cli.cache.accounting import MemorySample
from qvg_cli.cache.kv_cache import Entry, KVCache
from qvg_cli.cache.snapshot import HeldEntry, entry_tensors, held_entries, is_packing, read_entries
from qvg_cli.errors import BusyError, QvgError, UsageError
from qvg_cli.plan import VideoPlan
from qvg_cli.resume.identity import Identity, differences, other_versions
from qvg_cli.resume.store import (
    CACHE,
    LATENTS,
    VIDEO,
    ChunkRecord,
    ChunkStore,
    DamagedError,
    Held,
    StoredFile,
)
from qvg_cli.resume.unfinished import IDENTITY, LOCK
from qvg_cli.rollout import ChunkResult, Done
from qvg_cli.run_dir import remove_folder, sync_folder, write_whole
from qvg_cli.video.io import Frames, VideoWriter
from qvg_cli.video.parts import encode_part, join_parts

CLIP = "clip.mp4"


@dataclass(frozen=True)
class Restored:
    """What an earlier process has made of a run.

    Attributes:
        records: Of the chunks that are whole, at least one.
        done: The same chunks, for the rollout.
    """

    records: tuple[ChunkRecord, ...]
    done: Done

    @property
    def memory(self) -> list[MemorySample]:
        """The sample of every chunk."""
        return [record.memory for record in self.records]


class RunState:
    """The state of one run, in a folder of its own, kept from other processes while this object lives.

    Args:
        folder: Exists.
        identity: Of the run, as it was begun.
    """

    def __init__(self, folder: Path, identity: Identity, lock: FileLock) -> None:
        self.folder = folder
        self._identity = identity
        self._lock = lock
        self._store = ChunkStore(folder, identity.hash())
        self._records: list[ChunkRecord] = []
        self._born: dict[HeldEntry, int] = {}
        self._clip: VideoWriter | None = None
        self._is_clip_whole = False

    @classmethod
    def create(cls, folder: Path, identity: Identity) -> RunState:
        """Begin the state of a new run in a new folder.

        Raises:
            QvgError: It cannot be written.
        """
        try:
            folder.mkdir()
        except OSError as error:
            raise QvgError(f"cannot write to {folder}: {error.strerror}") from error
        lock = _take(folder)
        text = identity.model_dump_json(indent=1)
        write_whole(folder / IDENTITY, lambda path: path.write_text(text, encoding="utf-8"))
        sync_folder(folder)
        sync_folder(folder.parent)
        return cls(folder, identity, lock)

    @classmethod
    def open(cls, folder: Path, identity: Identity, note: Callable[[str], None]) -> RunState:
        """The state that another process has left.

        Args:
            identity: Of the run that is to go on.
            note: Takes a line for the user.

        Raises:
            QvgError: Another process works on the run.
            UsageError: It is another run, or its identity cannot be read.
        """
        lock = _take(folder)
        try:
            begun = read_identity(folder)
            found = differences(begun, identity)
            if found:
                raise UsageError(
                    f"the run in {folder.parent} cannot go on: {'; '.join(found)}",
                    hint="leave the options out that change it, or make a new run",
                )
        except BaseException:
            lock.release()
            raise
        for line in other_versions(begun, identity):
            note(f"the run was begun with something else, so later frames may differ slightly: {line}")
        return cls(folder, begun, lock)

    @property
    def video_frames(self) -> int:
        """Pixel frames of the clip and in the parts that are whole."""
        num_clip = self._clip.num_frames if self._clip is not None else 0
        return num_clip + sum(record.num_frames for record in self._records)

    def restore(
        self, plan: VideoPlan, cache: KVCache, device: torch.device, note: Callable[[str], None]
    ) -> Restored | None:
        """Check what is there, and fill an empty `cache` with the history after the last chunk that is whole,
        if that history is kept.

        What comes after that chunk is removed; what is lost by that is said. None if there is no whole chunk.
        """
        records = []
        try:
            for record in self._store.records():
                records.append(record)
        except DamagedError as error:
            note(f"{error}: chunk {len(records) + 1} and those after it are made again")
        while records:
            try:
                latents = self._read_latents(records)
                break
            except DamagedError as error:
                note(f"{error}: chunk {len(records)} is made again")
                records.pop()
        self._store.forget_from(len(records))
        self._records = records
        if not records:
            return None
        has_history = records[-1].has_history and self._fill(plan, cache, device, note)
        return Restored(tuple(records), Done(len(records), latents.to(device), has_history))

    def save(self, result: ChunkResult, plan: VideoPlan, cache: KVCache, *, fps: int, seconds: float) -> None:
        """Put a finished chunk away; it is safe when this returns.

        Raises:
            QvgError: The disk is full, or ffmpeg failed; the chunk does not count.
        """
        chunk = result.chunk.index
        following = plan.chunks[chunk + 1] if chunk + 1 < len(plan.chunks) else None
        self._end_clip()
        with ThreadPoolExecutor(1) as pool:
            # ffmpeg computes while the other files are written.
            encoded = pool.submit(self._save_video, chunk, result.frames[0].numpy(), fps)
            held = held_entries(cache, following)
            has_history = not held or is_packing(cache)
            held = held if has_history else ()
            files = {LATENTS: self._store.write(chunk, LATENTS, save({"latents": result.latents.cpu()}))}
            tensors, about = entry_tensors(cache, [name for name in held if name not in self._born])
            if tensors:
                files[CACHE] = self._store.write(chunk, CACHE, save(tensors))
            files.update(encoded.result())
        born = {name: self._born.get(name, chunk) for name in held}
        record = ChunkRecord(
            run=self._store.run,
            chunk=chunk,
            files=files,
            entries=about,
            held=tuple(Held(entry=name, chunk=number) for name, number in born.items()),
            has_history=has_history,
            memory=result.memory,
            num_frames=result.frames.shape[1],
            chunk_seconds=round(result.seconds, 4),
            seconds=seconds,
        )
        self._store.commit(record)
        self._records.append(record)
        self._born = born

    def join_video(self, path: Path) -> None:
        """Write the video of all chunks that are whole.

        Raises:
            QvgError: It cannot be written.
        """
        self._end_clip()
        parts = [self._store.path(record.chunk, VIDEO) for record in self._records if VIDEO in record.files]
        if self._clip is not None:
            parts.insert(0, self._clip.path)
        join_parts(parts, path, num_frames=self.video_frames)

    def show_clip(self, frames: Frames, *, fps: int) -> None:
        """Begin the video with frames, `[n, height, width, 3]` uint8, that are there before every chunk.

        They are written anew by every process: what they come from is there as long as the run is.

        Raises:
            QvgError: The disk is full, or ffmpeg failed.
        """
        if self._clip is None:
            height, width = frames.shape[1:3]
            self._clip = VideoWriter(self.folder / CLIP, height=height, width=width, fps=fps)
        self._clip.write(frames)

    def close(self) -> None:
        """Let other processes go on from here."""
        self._lock.release()

    def remove(self) -> None:
        """Remove the state of a run that needs it no more."""
        try:
            remove_folder(self.folder)
        except OSError as error:
            raise QvgError(f"cannot remove {self.folder}: {error.strerror}") from error
        finally:
            self._lock.release()

    def _end_clip(self) -> None:
        if self._clip is not None and not self._is_clip_whole:
            self._clip.finish()
            self._is_clip_whole = True

    def _save_video(self, chunk: int, frames: Frames, fps: int) -> dict[str, StoredFile]:
        if not len(frames):
            return {}
        write_whole(self._store.path(chunk, VIDEO), lambda path: encode_part(path, frames, fps=fps))
        return {VIDEO: self._store.measure(chunk, VIDEO)}

    def _fill(
        self, plan: VideoPlan, cache: KVCache, device: torch.device, note: Callable[[str], None]
    ) -> bool:
        """Put the history after the last record into `cache`; says so if it is damaged."""
        records = self._records
        try:
            entries = self._read_history(records, cache, device)
        except DamagedError as error:
            note(f"{error}: the history is computed again")
            return False
        held = [item.entry for item in records[-1].held]
        self._born = {item.entry: item.chunk for item in records[-1].held}
        layers = [[entries[name][index] for name in held] for index in range(len(cache.layers))]
        cache.restore(plan.chunks[: len(records)], layers)
        return True

    def _read_latents(self, records: Sequence[ChunkRecord]) -> Tensor:
        try:
            parts = [self._tensors(record, LATENTS)["latents"] for record in records]
            return torch.cat(parts, dim=2)
        except (KeyError, RuntimeError, IndexError) as error:
            raise DamagedError(f"the latents do not fit: {error}") from error

    def _read_history(
        self, records: Sequence[ChunkRecord], cache: KVCache, device: torch.device
    ) -> dict[HeldEntry, list[Entry]]:
        """Entries that were alive after the last record, one a layer."""
        held = records[-1].held
        entries: dict[HeldEntry, list[Entry]] = {}
        for chunk in sorted({item.chunk for item in held}):
            if chunk >= len(records):
                raise DamagedError(f"the record of chunk {len(records)} names a later one")
            wanted = {item.entry for item in held if item.chunk == chunk}
            tensors = self._tensors(records[chunk], CACHE)
            try:
                found = read_entries(tensors, records[chunk].entries, cache, device)
                entries.update({name: found[name] for name in wanted})
            except (ValueError, KeyError) as error:
                raise DamagedError(f"the history of chunk {chunk + 1} does not fit: {error}") from error
        return entries

    def _tensors(self, record: ChunkRecord, kind: str) -> dict[str, Tensor]:
        try:
            return load(self._store.read(record, kind))
        except SafetensorError as error:
            raise DamagedError(f"{self._store.path(record.chunk, kind).name}: {error}") from error


def read_identity(folder: Path) -> Identity:
    """What run a state belongs to.

    Raises:
        UsageError: It is not there, or damaged.
    """
    path = folder / IDENTITY
    try:
        return Identity.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{path} cannot be read, so the run cannot go on",
            hint=f"make it again with --config {folder.parent / 'run.yaml'}",
        ) from error


def _take(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            f"another qvg is at work on {folder.parent}", hint="wait for it, or stop it first"
        ) from error
    except OSError as error:
        raise QvgError(f"cannot write to {folder}: {error.strerror}") from error
    return lock
