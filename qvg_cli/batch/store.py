"""Where the videos of a batch go: a folder that all workers see, or an address that fsspec knows. No torch.

Into a folder a run is written in its place, so that whoever sees the folder can go on with it. To an
address, such as s3://bucket/videos, it is moved when it is whole; until then it is on the disk of the machine
that makes it.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec

from qvg_cli.errors import QvgError, UsageError
from qvg_cli.files import RunDir, hold_lock, prepare_folder, write_text
from qvg_cli.report.run_files import MEMORY, is_finished

_LOCK = ".batch.lock"


class Store:
    """The place of a batch: a path, or an address with `://` in it, of a protocol that is known here."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/") or place
        self.is_address = "://" in place
        self.root = Path(place)
        if self.is_address:
            try:
                self._fs, self._address = fsspec.core.url_to_fs(self.place)
            except (ValueError, ImportError) as error:
                raise UsageError(f"cannot use the address {place}: {error}") from error
            self.root = _scratch(self.place)

    def prepare(self) -> None:
        """Make sure that something can be written; else a `UsageError`."""
        if self.is_address:
            try:
                self._fs.makedirs(self._address, exist_ok=True)
            except Exception as error:
                raise UsageError(f"cannot write to {self.place}: {error}") from error
        prepare_folder(self.root)

    def finished(self, backend: str) -> set[str]:
        """Folders of the runs of `backend` that are whole."""
        if not self.is_address:
            found = (self.root / backend).glob(f"*/{MEMORY}")
            return {f"{backend}/{path.parent.name}" for path in found if is_finished(RunDir(path.parent))}
        # The last file that is moved.
        found = self._fs.glob(f"{self._address}/{backend}/*/{MEMORY}")
        return {f"{backend}/{path.split('/')[-2]}" for path in found}

    def has(self, folder: str) -> bool:
        if self.is_address:
            return bool(self._fs.exists(f"{self._address}/{folder}/{MEMORY}"))
        return is_finished(RunDir(self.root / folder))

    def hold(self) -> AbstractContextManager[None]:
        """Keep other batches out of a folder, by a `UsageError`; an address cannot be held."""
        message = f"another qvg batch process is working in {self.place}"
        return hold_lock(self.root / _LOCK, UsageError(message, hint="wait for it, or use another --out"))

    def open_run(self, folder: str) -> RunDir:
        """The place on this machine in which a run is made, or goes on."""
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        return RunDir(path)

    def deliver(self, run: RunDir) -> None:
        """Move a whole run to its place; `QvgError` if a file did not arrive whole, while all are here."""
        if not self.is_address:
            return
        target = f"{self._address}/{run.path.relative_to(self.root).as_posix()}"
        self._fs.makedirs(target, exist_ok=True)
        # What says that the run is whole goes last.
        for path in sorted(run.path.iterdir(), key=lambda path: (path.name == MEMORY, path.name)):
            remote = f"{target}/{path.name}"
            self._fs.put_file(str(path), remote)
            if (size := self._fs.size(remote)) != path.stat().st_size:
                raise QvgError(f"{path.name} has {size} bytes at {self.place}, not {path.stat().st_size}")
        shutil.rmtree(run.path)

    def read(self, name: str) -> str:
        """The text of a file in the place itself; empty if there is none, `QvgError` if it cannot be read."""
        try:
            if self.is_address:
                content = self._fs.cat_file(f"{self._address}/{name}")
            else:
                content = (self.root / name).read_bytes()
        except FileNotFoundError:
            return ""
        except Exception as error:
            raise QvgError(f"cannot read {self.place}/{name}: {error}") from error
        return bytes(content).decode(errors="replace")

    def write(self, name: str, text: str) -> None:
        """Put a text file into the place itself, whole."""
        if self.is_address:
            self._fs.pipe_file(f"{self._address}/{name}", text.encode())
        else:
            write_text(self.root / name, text)


def _scratch(place: str) -> Path:
    """The folder of this user, on this machine, for runs that go to `place`; the same after a restart."""
    folder = Path(tempfile.gettempdir()) / f"qvg-batch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise UsageError(f"{folder} is not a private folder of this user", hint="remove it, or set TMPDIR")
    return folder / hashlib.sha256(place.encode()).hexdigest()[:16]
