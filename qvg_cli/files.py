"""A run's folder: one place for all that a run leaves behind, never written over, never half a file.

Every file is written under a temporary name and moved when whole, but for log and preview, which grow.
Nothing from a prompt or a name can lead out of the folder. No torch.
"""

import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from filelock import FileLock, Timeout

from qvg_cli.errors import QvgError, UsageError

STATE, LOCK, IDENTITY = "state", "lock", "identity.json"

_MAX_SLUG = 48


class RunDir:
    """The files of one run, by purpose, in an existing folder that holds nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = path / "video.mp4"
        self.preview = path / "preview.mp4"
        self.latents = path / "latents.safetensors"
        self.memory = path / "memory.json"
        self.plot = path / "memory.png"
        self.page = path / "report.html"
        self.config = path / "run.yaml"
        self.state = path / STATE
        self.log = path / "run.log"

    @classmethod
    def create(cls, root: Path, backend: str, name: str) -> Self:
        """A new folder `root/backend/name`, numbered if that name is taken; else a `UsageError`."""
        parent = root / backend
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                path = parent / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                break
        except OSError as error:
            raise _cannot_write(parent, error) from error
        return cls(path)

    def discard(self) -> None:
        """Remove the folder of a run that made nothing; what else lies in it stays."""
        for path in (self.config, self.log, self.preview):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove `folder` in one step, as far as anyone who looks for it can tell."""
    gone = _removed(folder)
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def finish_removal(folder: Path) -> None:
    """Remove what `remove_folder` has left of `folder` where it was cut off."""
    shutil.rmtree(_removed(folder), ignore_errors=True)


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def find_states(root: Path) -> Iterator[Path]:
    """State folders of unfinished runs below `root`, and what was left of removed ones."""
    if not root.is_dir():
        return
    for path in sorted(root.rglob(IDENTITY)):
        if path.parent.name in (STATE, f".{STATE}.removed"):
            yield path.parent


def drop_state(folder: Path) -> None:
    """Remove a state: its run cannot go on then; `QvgError` if a process works on it."""
    try:
        if folder.name != STATE:
            shutil.rmtree(folder)
            return
        with FileLock(folder / LOCK, timeout=0):
            remove_folder(folder)
        finish_removal(folder)
    except Timeout as error:
        raise QvgError(f"another qvg process is working on {folder.parent}", hint="stop it first") from error
    except OSError as error:
        raise QvgError(f"cannot remove {folder}: {error.strerror}") from error


def prepare_folder(folder: Path) -> Path:
    """Make sure that `folder` is there and can be written to; else a `UsageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def _cannot_write(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write to {folder}: {error.strerror}", hint="use another folder with --out")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, and move it there when whole; else a `QvgError`."""
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        # Without it, a power cut could leave the new name on a file without content.
        sync(part)
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise QvgError(
            f"cannot write {path}: {error.strerror or error}", hint="free some space, or use another --out"
        ) from error


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text as `write_whole` does."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors=errors))


def take_lock(path: Path, busy: QvgError) -> FileLock:
    """The lock at `path`, to be released; `busy` where another process has it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise busy from error
    except OSError as error:
        raise QvgError(f"cannot write to {path.parent}: {error.strerror}") from error
    return lock


@contextmanager
def hold_lock(path: Path, busy: QvgError) -> Iterator[None]:
    lock = take_lock(path, busy)
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    """The hash of a whole file, read in parts, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def forget(path: Path) -> None:
    """Let the system drop what it holds of a synced file in memory, where it can be told so."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Let what is in a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run_name(prompt: str, seed: int) -> str:
    """A folder's name: the prompt's first words, nothing a file system could mind, and the seed."""
    return f"{slug(prompt) or 'video'}-seed{seed}"


def unique_names(names: Sequence[str], numbered: str) -> list[str]:
    """The names, in the form `numbered`, such as "{}-{}", from 2 on where one was there before."""
    unique: list[str] = []
    for name in names:
        candidates = (name if number == 1 else numbered.format(name, number) for number in count(1))
        unique.append(next(each for each in candidates if each not in unique))
    return unique


def slug(text: str) -> str:
    """Lower-case ASCII letters, digits and hyphens of `text`, at most 48, cut between words."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = ""
    for word in re.findall(r"[a-z0-9]+", ascii_text.lower()):
        longer = f"{name}-{word}" if name else word[:_MAX_SLUG]
        if len(longer) > _MAX_SLUG:
            break
        name = longer
    return name
