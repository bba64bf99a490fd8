"""What a folder of weights holds, in one hash over every byte; large files are read once and remembered.

What is remembered belongs to a file's place, size, time of change and inode, so a changed file is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from qvg_cli.config.resources import qvg_home
from qvg_cli.errors import QvgError
from qvg_cli.runs.folder import write_whole

_REMEMBERED_BYTES = 1 << 26
"""Smaller files are read faster than it matters."""
_THREADS = 4
"""One hashes a gigabyte a second."""


def hash_folder(folder: Path) -> str:
    """SHA-256 over the names and the contents of all files in a folder, wherever they are linked to."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        contents = list(pool.map(hash_file, paths))
    named = [
        [path.relative_to(folder).as_posix(), content] for path, content in zip(paths, contents, strict=True)
    ]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    facts = path.stat()
    if facts.st_size < _REMEMBERED_BYTES:
        return _read_hash(path)
    known = _place(path, facts)
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", text := known.read_text(encoding="utf-8")):
            return text
    found = _read_hash(path)
    # A home that cannot be written costs the time again, and nothing else.
    with suppress(OSError, QvgError):
        known.parent.mkdir(parents=True, exist_ok=True)
        write_whole(known, lambda part: part.write_text(found, encoding="utf-8"))
    return found


def _read_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(path: Path, facts: os.stat_result) -> Path:
    about = [str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]
    return qvg_home() / "hashes" / name
