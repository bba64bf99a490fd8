"""The checkpoint of an unfinished run: every finished chunk as files, from which another process resumes.

A chunk leaves its latents, the blocks that it added to the history and its part of the video; its record,
written last, has their sizes and SHA-256. Invariants: whatever stops the machine, a chunk is either whole or
not there; nothing is read that does not have the bytes that were written; a run that is resumed makes the
frames that it would have made.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import torch
from filelock import FileLock
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from qvg_cli.cache.kv_cache import Entry, KVCache
from qvg_cli.cache.shaping import Matrices
from qvg_cli.cache.snapshot import block_tensors, is_kept, matrix_tensors, read_blocks, read_matrices
from qvg_cli.config.schema import Config
from qvg_cli.engine.rollout import ChunkResult, Done
from qvg_cli.errors import BusyError, QvgError, UsageError
from qvg_cli.files import (
    IDENTITY,
    LOCK,
    forget,
    remove_folder,
    sha256,
    sync,
    take_lock,
    write_text,
    write_whole,
)
from qvg_cli.logs import timed
from qvg_cli.planning.cache_plan import Block
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.ledger import LayerLosses, MemorySample, by_layer
from qvg_cli.runs.identity import Identity, differences, other_versions
from qvg_cli.video.io import Frames
from qvg_cli.video.parts import encode_part

LATENTS, CACHE, MATRICES, VIDEO = "latents.safetensors", "cache.safetensors", "matrices.safetensors", "mp4"


class DamagedError(QvgError):
    """A file of the checkpoint is not what was written; says which and why."""


class StoredFile(Config):
    size: int
    sha256: str


class HeldEntry(Config):
    frames: tuple[int, ...]
    is_packed: bool


class Held(Config):
    """A block of the history that is alive after a chunk; `chunk` stored it, and its file holds it."""

    entry: HeldEntry
    chunk: int

    @classmethod
    def of(cls, block: Block) -> Self:
        return cls(entry=HeldEntry(frames=block.frames, is_packed=block.is_packed), chunk=block.chunk)

    @property
    def block(self) -> Block:
        return Block(self.entry.frames, self.entry.is_packed, self.chunk)


class ChunkRecord(Config):
    """One finished chunk.

    Attributes:
        run: Hash of the run's identity, so that files of two runs are never mixed.
        files: By kind; without history or frames of its own, a chunk has no `CACHE` or no `VIDEO`. The first
            at which the matrices that shape errors are complete has `MATRICES`.
        entries: What its `CACHE` holds, as `qvg_cli.cache.snapshot.block_tensors` describes it.
        held: The history after the chunk, in order, if it is kept.
        has_history: Whether a run goes on from it. One that is not packed is larger than it is slow to
            compute again; one that is still learnt from is computed again too.
        num_frames: Pixel frames that the chunk added.
        losses: What packing by other presets would have done.
        seconds: Of the run so far.
    """

    run: str
    chunk: int
    files: dict[str, StoredFile]
    entries: tuple[JsonValue, ...]
    held: tuple[Held, ...]
    has_history: bool
    memory: MemorySample
    num_frames: int
    chunk_seconds: float
    seconds: float
    losses: dict[str, tuple[LayerLosses, ...]] = Field(default_factory=dict)
    probe_seconds: float = 0.0


class Checkpoint:
    """The state of one run, in a folder of its own, kept from other processes while this object lives."""

    def __init__(self, folder: Path, identity: Identity, lock: FileLock) -> None:
        self.folder = folder
        self._run = identity.hash()
        self._lock = lock
        self._saved: set[Block] = set()
        self._alive: set[int] = set()
        self._matrices: Matrices | None = None

    @classmethod
    def create(cls, folder: Path, identity: Identity) -> Self:
        """Begin the checkpoint of a new run in a new folder; `QvgError` if it cannot be written."""
        try:
            folder.mkdir()
        except OSError as error:
            raise _cannot_write(folder, error) from error
        lock = _take(folder)
        write_text(folder / IDENTITY, identity.model_dump_json(indent=1))
        sync(folder)
        sync(folder.parent)
        return cls(folder, identity, lock)

    @classmethod
    def open(cls, folder: Path, identity: Identity, note: Callable[[str], None]) -> Self:
        """The checkpoint that another process has left; `UsageError` if it is not of this run."""
        lock = _take(folder)
        try:
            begun = read_identity(folder)
            found = differences(begun, identity)
            if found:
                raise UsageError(
                    f"cannot resume the run in {folder.parent}: {'; '.join(found)}",
                    hint="omit the options that change it, or start a new run",
                )
        except BaseException:
            lock.release()
            raise
        for line in other_versions(begun, identity):
            note(f"the environment changed since the run started; later frames may differ slightly: {line}")
        return cls(folder, begun, lock)

    def path(self, chunk: int, kind: str) -> Path:
        return self.folder / f"{chunk:05}.{kind}"

    def restore(
        self, plan: VideoPlan, cache: KVCache, device: torch.device, note: Callable[[str], None]
    ) -> tuple[list[ChunkRecord], Done | None]:
        """Check what is there, and fill an empty `cache` with the history after the last whole chunk.

        What comes after that chunk is removed; what is lost by that is said. Returns records of the chunks
        that are whole, and the same chunks for the rollout.
        """
        records = []
        try:
            for record in self._read_records():
                records.append(record)
        except DamagedError as error:
            note(f"{error}: chunk {len(records) + 1} and those after it are generated again")
        while records:
            try:
                latents = self.read_latents(records)
                break
            except DamagedError as error:
                note(f"{error}: chunk {len(records)} is generated again")
                records.pop()
        self._forget_from(len(records))
        if not records:
            return [], None
        has_history = records[-1].has_history and (cache.is_whole or not records[-1].held)
        if has_history:
            try:
                self._fill(plan, cache, device, records)
            except DamagedError as error:
                note(f"{error}: rebuilding the KV cache")
                has_history = False
        return records, Done(plan.chunks[: len(records)], latents.to(device), has_history)

    def read_latents(self, records: Sequence[ChunkRecord]) -> Tensor:
        """`[B, C, F, h, w]` of the chunks of `records`; `DamagedError` if a file has changed."""
        try:
            return torch.cat([self._tensors(record, LATENTS)["latents"] for record in records], dim=2)
        except (KeyError, RuntimeError, IndexError) as error:
            raise DamagedError(f"the latents do not fit: {error}") from error

    def describe(
        self, result: ChunkResult, plan: VideoPlan, cache: KVCache, *, seconds: float
    ) -> tuple[ChunkRecord, dict[str, Tensor]]:
        """The record of a chunk that has just ended, without its files, and the history that it adds.

        Its tensors are where the cache has them; names of matrices begin with `MATRICES`.
        """
        chunk = result.chunk.index
        # After the last chunk nothing is left to be read.
        is_last = chunk + 1 == len(plan.chunks)
        held = () if is_last else cache.plan.blocks_after(plan.chunks[chunk + 1].evicts)
        keeps = not held or is_kept(cache)
        held = held if keeps else ()
        tensors, entries = block_tensors(cache, [block for block in held if block not in self._saved])
        self._saved = set(held)
        versions = next((layer.shaping.versions for layer in cache.layers if layer.shaping.versions), {})
        if held and versions and not cache.is_learning and versions[max(versions)] is not self._matrices:
            self._matrices = versions[max(versions)]
            tensors |= {f"{MATRICES}/{name}": matrix for name, matrix in matrix_tensors(cache, held).items()}
        record = ChunkRecord(
            run=self._run,
            chunk=chunk,
            files={},
            entries=entries,
            held=tuple(map(Held.of, held)),
            has_history=keeps and not (held and cache.is_learning),
            memory=result.memory,
            num_frames=result.num_frames,
            chunk_seconds=round(result.seconds, 4),
            seconds=round(seconds, 4),
            losses=dict(result.losses),
            probe_seconds=round(result.probe_seconds, 4),
        )
        return record, tensors

    def save(
        self, record: ChunkRecord, latents: Tensor, blocks: Mapping[str, Tensor], frames: Frames, *, fps: int
    ) -> ChunkRecord:
        """Write what a chunk leaves; it is safe when this returns its whole record, and else does not count.

        Args:
            record: Without files, as `describe` gives it.
            latents: `[B, C, F, h, w]`, on the host.
            blocks: The tensors of the history that it adds, on the host.
            frames: `[n, height, width, 3]` uint8.
        """
        tensors: dict[str, dict[str, Tensor]] = {LATENTS: {"latents": latents}}
        for name, tensor in blocks.items():
            kind = MATRICES if name.startswith(MATRICES) else CACHE
            tensors.setdefault(kind, {})[name.removeprefix(f"{MATRICES}/")] = tensor
        writes: dict[str, Callable[[Path], None]] = {
            kind: partial(self._save_tensors, named) for kind, named in tensors.items()
        }
        if len(frames):
            writes[VIDEO] = lambda path: encode_part(path, frames, fps=fps)
        # ffmpeg computes while the other files are written.
        with ThreadPoolExecutor(len(writes)) as pool:
            stored = [pool.submit(self._store, record.chunk, kind, write) for kind, write in writes.items()]
            files = {kind: file.result() for kind, file in zip(writes, stored, strict=True)}
        record = record.model_copy(update={"files": files})
        self.commit(record)
        return record

    def commit(self, record: ChunkRecord) -> None:
        """Make a chunk count, and drop the history files of which the last two chunks held no block."""
        text = record.model_dump_json()
        content = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": text})
        write_text(self.path(record.chunk, "json"), content)
        sync(self.folder)
        # One chunk longer than needed: should this record be damaged, the one before it is still of use.
        alive = {held.chunk for held in record.held}
        for chunk in range(record.chunk):
            if chunk not in alive | self._alive:
                self.path(chunk, CACHE).unlink(missing_ok=True)
        self._alive = alive

    def close(self) -> None:
        """Let other processes resume from here."""
        self._lock.release()

    def drop_history(self) -> None:
        """Drop history files, once the last chunk counts: no resume reads one."""
        # Side by side: a file system takes a second for each few gigabytes.
        with timed("history removed"), ThreadPoolExecutor(4) as pool:
            for path in self.folder.glob(f"*.{CACHE}"):
                pool.submit(path.unlink)

    def remove(self) -> None:
        """Remove the checkpoint of a run that needs it no more."""
        try:
            remove_folder(self.folder)
        except OSError as error:
            raise QvgError(f"cannot remove {self.folder}: {error.strerror}") from error
        finally:
            self._lock.release()

    def _save_tensors(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        # To a file, not to bytes: that would keep Python, and with it the model's next launch, waiting.
        try:
            save_file(dict(tensors), path)
            # It makes files that only their owner can read.
            shutil.copymode(self.folder / IDENTITY, path)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def _store(self, chunk: int, kind: str, write: Callable[[Path], None]) -> StoredFile:
        path = self.path(chunk, kind)
        write_whole(path, write)
        try:
            stored = StoredFile(size=path.stat().st_size, sha256=sha256(path))
            if kind == CACHE:
                # Gigabytes that only a resume reads, and that take longer to remove where they are held.
                forget(path)
            return stored
        except OSError as error:
            raise QvgError(f"cannot read {path}: {error.strerror}") from error

    def _read_records(self) -> Iterator[ChunkRecord]:
        """Records of the chunks from the first on, up to the last whose latents and video are whole."""
        chunk = 0
        while self.path(chunk, "json").exists():
            record = self._read_record(chunk)
            self._read(record, LATENTS)
            if record.num_frames:
                self._read(record, VIDEO)
            yield record
            chunk += 1

    def _read_record(self, chunk: int) -> ChunkRecord:
        path = self.path(chunk, "json")
        try:
            found: Mapping[str, str] = json.loads(path.read_bytes())
            text = found["record"]
            if hashlib.sha256(text.encode()).hexdigest() != found["sha256"]:
                raise DamagedError(f"{path.name} has changed since it was written")
            values = json.loads(text)
            if isinstance(rms := values["memory"].get("logit_rms"), list):
                values["memory"]["logit_rms"] = by_layer(rms)
                text = json.dumps(values)
            record = ChunkRecord.model_validate_json(text)
        except OSError as error:
            raise DamagedError(f"{path.name}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError) as error:
            raise DamagedError(f"{path.name} is not a chunk record") from error
        if (record.run, record.chunk) != (self._run, chunk):
            raise DamagedError(f"{path.name} belongs to another run")
        return record

    def _read(self, record: ChunkRecord, kind: str) -> bytes:
        path = self.path(record.chunk, kind)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedError(f"{path.name}: {error.strerror}") from error
        found = StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        if record.files.get(kind) != found:
            raise DamagedError(f"{path.name} has changed since it was written")
        return content

    def _tensors(self, record: ChunkRecord, kind: str) -> dict[str, Tensor]:
        try:
            return load(self._read(record, kind))
        except SafetensorError as error:
            raise DamagedError(f"{self.path(record.chunk, kind).name}: {error}") from error

    def _fill(
        self, plan: VideoPlan, cache: KVCache, device: torch.device, records: Sequence[ChunkRecord]
    ) -> None:
        """Put the blocks that were alive after the last record into `cache`."""
        held = [item.block for item in records[-1].held]
        kept = [record for record in records if MATRICES in record.files]
        matrices = self._tensors(kept[-1], MATRICES) if kept else {}
        try:
            versions = read_matrices(matrices, cache, device) if held else [{}] * len(cache.layers)
        except ValueError as error:
            raise DamagedError(f"the history does not fit: {error}") from error
        entries: dict[Block, list[Entry]] = {}
        for chunk in sorted({block.chunk for block in held}):
            if chunk >= len(records):
                raise DamagedError(f"the record of chunk {len(records)} names a later one")
            tensors = self._tensors(records[chunk], CACHE)
            try:
                found = read_blocks(tensors, records[chunk].entries, chunk, cache, versions, device)
                entries.update({block: found[block] for block in held if block.chunk == chunk})
            except (ValueError, KeyError) as error:
                raise DamagedError(f"the KV cache of chunk {chunk + 1} does not fit: {error}") from error
        self._saved = set(held)
        newest = next((each for each in versions if each), {})
        self._matrices = newest[max(newest)] if newest else None
        layers = [[entries[block][index] for block in held] for index in range(len(cache.layers))]
        cache.restore(plan.chunks[: len(records)], layers, versions)

    def _forget_from(self, chunk: int) -> None:
        """Remove what is there of `chunk` and those after it, and what was never finished."""
        try:
            for path in self.folder.iterdir():
                number, _, _ = path.name.partition(".")
                is_later = number.isdecimal() and int(number) >= chunk
                # The last are those of `save_file`.
                if is_later or path.suffix == ".part" or path.name.startswith(".tmp"):
                    path.unlink()
        except OSError as error:
            raise _cannot_write(self.folder, error) from error


def read_identity(folder: Path) -> Identity:
    """What run a checkpoint belongs to; `UsageError` if it is not there, or damaged."""
    path = folder / IDENTITY
    try:
        return Identity.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{path} cannot be read, so the run cannot be resumed",
            hint=f"generate it again with --config {folder.parent / 'run.yaml'}",
        ) from error


def _take(folder: Path) -> FileLock:
    message = f"another qvg process is working on {folder.parent}"
    return take_lock(folder / LOCK, BusyError(message, hint="wait for it, or stop it"))


def _cannot_write(folder: Path, error: OSError) -> QvgError:
    return QvgError(f"cannot write to {folder}: {error.strerror}")
