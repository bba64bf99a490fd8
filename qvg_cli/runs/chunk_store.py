"""Finished chunks as files: written under other names, synced, hashed, and valid once their record is there.

A chunk has latents, what it added to the history and its part of the video; its record, written last, has
their sizes and SHA-256. Invariant: whatever stops the machine, a chunk is either whole or not there, and
nothing is read that does not have the bytes that were written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue, ValidationError

from qvg_cli.config.schema import Config
from qvg_cli.errors import QvgError
from qvg_cli.planning.cache_plan import Block
from qvg_cli.planning.ledger import MemorySample
from qvg_cli.runs.folder import sync_folder, write_whole

LATENTS, CACHE, VIDEO = "latents.safetensors", "cache.safetensors", "mp4"


class DamagedError(Exception):
    """A file of the state is not what was written; says which and why."""


class StoredFile(Config):
    """Size and hash of a file, in bytes and as hexadecimal SHA-256."""

    size: int
    sha256: str


class HeldEntry(Config):
    """Frames of a block, and whether it is packed."""

    frames: tuple[int, ...]
    is_packed: bool


class Held(Config):
    """A block of the history that is alive after a chunk.

    Attributes:
        chunk: The chunk that stored it, and whose file it is in.
    """

    entry: HeldEntry
    chunk: int

    @classmethod
    def of(cls, block: Block) -> Held:
        """The record of a block."""
        return cls(entry=HeldEntry(frames=block.frames, is_packed=block.is_packed), chunk=block.chunk)

    @property
    def block(self) -> Block:
        """The block of the record."""
        return Block(self.entry.frames, self.entry.is_packed, self.chunk)


class ChunkRecord(Config):
    """One finished chunk.

    Attributes:
        run: Hash of the run's identity, so that files of two runs are never mixed.
        files: By kind; without history or frames of its own, a chunk has no `CACHE` or no `VIDEO`.
        entries: What its `CACHE` holds, as `qvg_cli.cache.snapshot.block_tensors` describes it.
        held: The history after the chunk, in order, if it is kept.
        has_history: Whether it is kept; one that is not packed is larger than it is slow to compute again.
        num_frames: Pixel frames that the chunk added.
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


class ChunkStore:
    """The files of all chunks of one run.

    Args:
        run: See `ChunkRecord.run`.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        self.run = run
        self._alive: set[int] = set()

    def path(self, chunk: int, kind: str) -> Path:
        """Where a file of a chunk is."""
        return self.folder / f"{chunk:05}.{kind}"

    def write(self, chunk: int, kind: str, content: bytes) -> StoredFile:
        """Put a file of a chunk in place; it counts once `commit` has its hash.

        Raises:
            QvgError: It cannot be written.
        """
        write_whole(self.path(chunk, kind), lambda path: path.write_bytes(content))
        return describe(content)

    def measure(self, chunk: int, kind: str) -> StoredFile:
        """What `write` would say of a file that something else has put in place.

        Raises:
            QvgError: It cannot be read.
        """
        path = self.path(chunk, kind)
        try:
            return describe(path.read_bytes())
        except OSError as error:
            raise QvgError(f"cannot read {path}: {error.strerror}") from error

    def commit(self, record: ChunkRecord) -> None:
        """Make a chunk count, and drop the history files in which no entry was alive at the last two chunks.

        Raises:
            QvgError: The record cannot be written.
        """
        text = record.model_dump_json()
        content = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": text})
        write_whole(self._record_path(record.chunk), lambda path: path.write_text(content, encoding="utf-8"))
        sync_folder(self.folder)
        # One chunk longer than needed: should this record be damaged, the one before it is still of use.
        alive = {held.chunk for held in record.held}
        for chunk in range(record.chunk):
            if chunk not in alive | self._alive:
                self.path(chunk, CACHE).unlink(missing_ok=True)
        self._alive = alive

    def records(self) -> Iterator[ChunkRecord]:
        """Records of the chunks from the first on, up to the last whose latents and video are whole.

        Raises:
            DamagedError: The next chunk is there and damaged.
        """
        chunk = 0
        while self._record_path(chunk).exists():
            record = self._read_record(chunk)
            self.read(record, LATENTS)
            if record.num_frames:
                self.read(record, VIDEO)
            yield record
            chunk += 1

    def read(self, record: ChunkRecord, kind: str) -> bytes:
        """Content of a file of a chunk.

        Raises:
            DamagedError: It is gone or has changed.
        """
        path = self.path(record.chunk, kind)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedError(f"{path.name}: {error.strerror}") from error
        expected = record.files.get(kind)
        if expected is None or describe(content) != expected:
            raise DamagedError(f"{path.name} has changed since it was written")
        return content

    def forget_from(self, chunk: int) -> None:
        """Remove what is there of `chunk` and those after it, and what was never finished.

        Raises:
            QvgError: It cannot be removed.
        """
        try:
            for path in self.folder.iterdir():
                number, _, _ = path.name.partition(".")
                is_later = number.isdecimal() and int(number) >= chunk
                if is_later or path.suffix == ".part":
                    path.unlink()
        except OSError as error:
            raise QvgError(f"cannot write to {self.folder}: {error.strerror}") from error

    def _record_path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05}.json"

    def _read_record(self, chunk: int) -> ChunkRecord:
        path = self._record_path(chunk)
        try:
            found: Mapping[str, str] = json.loads(path.read_bytes())
            text = found["record"]
            if hashlib.sha256(text.encode()).hexdigest() != found["sha256"]:
                raise DamagedError(f"{path.name} has changed since it was written")
            record = ChunkRecord.model_validate_json(text)
        except OSError as error:
            raise DamagedError(f"{path.name}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError) as error:
            raise DamagedError(f"{path.name} is not a record") from error
        if (record.run, record.chunk) != (self.run, chunk):
            raise DamagedError(f"{path.name} is of another run")
        return record


def describe(content: bytes) -> StoredFile:
    """Size and hash of what a file holds."""
    return StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
