"""One file into the hub's cache: continued where it stopped, and kept only if it is what the hub lists.

huggingface_hub 2.4 starts a file anew after every interruption, which costs tens of gigabytes with files of
this size. So a large file is gathered here beside its place in the cache, under a name of its content, by the
library's own `http_get`; once its SHA-256 is right it is moved there, and the library finds it as its own.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from qvg_cli.errors import QvgError
from qvg_cli.files import sha256
from qvg_cli.hub.errors import hub_errors
from qvg_cli.hub.remote import RemoteFile, patiently

Note = Callable[[str], None]
_DAMAGED = "{} in the Hugging Face cache is damaged; downloading it again"


def fetch(file: RemoteFile, note: Note) -> Path:
    """`file` in the hub's cache, whole and verified; downloaded if it is not there."""
    with hub_errors(file.repository, file.commit):
        if file.sha256 is not None:
            _fetch_large(file, note)
        path = _place(file)
        if not _is_intact(path, file):
            note(_DAMAGED.format(file.path))
            _place(file, is_anew=True)
    if not _is_intact(path, file):
        raise _not_as_listed(file)
    return path


def _place(file: RemoteFile, *, is_anew: bool = False) -> Path:
    """Let the library fetch `file`, or find its content, and give it its name in the cache."""
    return Path(
        patiently(
            lambda: hf_hub_download(
                file.repository, file.path, revision=file.commit, force_download=is_anew, library_name="qvg"
            )
        )
    )


def _is_intact(path: Path, file: RemoteFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        # The name that git gives to the content of a small file.
        content = path.read_bytes()
        named = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return named.hexdigest() == file.git_sha1
    # The content was hashed before it got its place in the cache.
    return path.samefile(file.blob) or sha256(path) == file.sha256


def _is_right(path: Path, file: RemoteFile) -> bool:
    return path.exists() and path.stat().st_size == file.size and sha256(path) == file.sha256


def _fetch_large(file: RemoteFile, note: Note) -> None:
    # Before the lock: a cache that is only read has no place for one.
    if _is_right(file.blob, file):
        return
    file.blob.parent.mkdir(parents=True, exist_ok=True)
    file.lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(file.lock):
        if file.blob.exists():
            if _is_right(file.blob, file):
                return
            note(_DAMAGED.format(file.path))
        # A link whose target has gone is in the way, too.
        file.blob.unlink(missing_ok=True)
        while True:
            had_part = _gather(file)
            if _is_right(file.partial, file):
                os.replace(file.partial, file.blob)
                return
            file.partial.unlink()
            if not had_part:
                raise _not_as_listed(file)
            note(f"the parts of {file.path} do not fit together; downloading it from the start")


def _gather(file: RemoteFile) -> bool:
    """Download what is missing from the partial file; whether there was a part of it already."""
    gathered = file.partial.stat().st_size if file.partial.exists() else 0
    if gathered > file.size:
        file.partial.unlink()
        gathered = 0
    # A part that was compressed on its way could not be continued.
    headers = {**build_hf_headers(library_name="qvg"), "Accept-Encoding": "identity"}

    def download() -> None:
        with file.partial.open("ab") as stream:
            # Asked at the hub itself every time: the address that it answers with ends after a while.
            http_get(
                hf_hub_url(file.repository, file.path, revision=file.commit),
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.path,
            )
            stream.flush()
            os.fsync(stream.fileno())

    patiently(download)
    return gathered > 0


def _not_as_listed(file: RemoteFile) -> QvgError:
    return QvgError(
        f"{file.path} of {file.repository} has other content than Hugging Face lists",
        hint="try again; if it happens again, a proxy or mirror changes files (HF_ENDPOINT, HTTPS_PROXY)",
    )
