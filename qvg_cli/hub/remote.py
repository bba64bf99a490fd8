"""What a repository on the hub holds at one commit. Names, sizes and hashes only; nothing is downloaded."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name

from qvg_cli.errors import MissingModelError
from qvg_cli.hub.errors import hub_errors

Result = TypeVar("Result")
_WAITS_SECONDS = (1, 2, 4, 8)


@dataclass(frozen=True)
class RemoteFile:
    """One file at one commit.

    Attributes:
        git_sha1: Of the file as git holds it; of the pointer where the file is kept apart.
        sha256: Of a file that is kept apart, as large ones are; the hub knows none of the others.
        target: Its place in the weights folder; `None` for one that is only converted, or not wanted.
    """

    repository: str
    commit: str
    path: str
    size: int
    git_sha1: str
    sha256: str | None
    target: str | None = field(default=None, compare=False)

    @property
    def blob(self) -> Path:
        """Where the hub's cache keeps the content."""
        return self._storage / "blobs" / (self.sha256 or self.git_sha1)

    @property
    def partial(self) -> Path:
        """Where the content is gathered until it is whole; a later run goes on with it."""
        return self.blob.with_name(f"{self.blob.name}.qvg-incomplete")

    @property
    def lock(self) -> Path:
        """The file that the hub's library locks while it writes the content."""
        return self._storage.parent / ".locks" / self._storage.name / f"{self.blob.name}.lock"

    @property
    def missing_bytes(self) -> int:
        """What has to come over the network."""
        if self.blob.exists():
            return 0
        gathered = self.partial.stat().st_size if self.partial.exists() else 0
        return max(self.size - gathered, 0)

    @property
    def _storage(self) -> Path:
        name = repo_folder_name(repo_id=self.repository, repo_type="model")
        return Path(constants.HF_HUB_CACHE).expanduser() / name


@dataclass(frozen=True)
class Snapshot:
    """A repository at the commit of a revision: its files by path, and the licence of its model card."""

    repository: str
    revision: str
    commit: str
    licence: str | None
    files: dict[str, RemoteFile]


def list_files(repository: str, revision: str, commit: str | None = None) -> Snapshot:
    """Ask the hub what `repository` holds at `revision`, or at the known `commit` of it."""
    with hub_errors(repository, commit or revision):
        wanted, seconds = commit or revision, constants.HF_HUB_ETAG_TIMEOUT
        info = patiently(
            lambda: HfApi().model_info(repository, revision=wanted, files_metadata=True, timeout=seconds)
        )
    if info.sha is None:
        raise MissingModelError(f"Hugging Face lists no commit of {repository} at {revision}")
    files = {}
    for file in info.siblings or ():
        size = file.lfs.size if file.lfs is not None else file.size
        if size is not None and file.blob_id is not None:
            name, sha256 = file.rfilename, file.lfs.sha256 if file.lfs is not None else None
            files[name] = RemoteFile(repository, info.sha, name, size, file.blob_id, sha256)
    licence = info.card_data.get("license") if info.card_data is not None else None
    return Snapshot(repository, revision, info.sha, str(licence) if licence else None, files)


def patiently(call: Callable[[], Result]) -> Result:
    """What `call` returns, asked again after a while when the hub failed or a connection was cut."""
    for wait in _WAITS_SECONDS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        except (httpx2.ReadError, httpx2.RemoteProtocolError):
            pass
        time.sleep(wait)
    return call()
