"""What the tool keeps on disk outside of results: weights folders, and what the hub's cache holds of them."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.file_download import repo_folder_name

from qvg_cli.config.resources import qvg_home
from qvg_cli.hub.errors import disk_error
from qvg_cli.hub.spec import read_downloads
from qvg_cli.hub.store import locked, refuse_strangers

_FOUND_OUT = {"text": "prompt embeddings", "hashes": "SHA-256 of large weight files"}
"""Folders beside the weights."""


@dataclass(frozen=True)
class Kept:
    """Something that can be freed, by its name: bytes that come free, its use, and what removes it."""

    name: str
    path: Path
    size: int
    about: str
    remove: Callable[[], None]

    def free(self) -> None:
        try:
            self.remove()
        except OSError as error:
            raise disk_error(error, str(self.path), "QVG_HOME") from error


def find_kept() -> Iterator[Kept]:
    """Weights folders, what the hub's cache holds of their repositories, and what was found out from them."""
    seen = set()
    for name, download in read_downloads().items():
        if download.weights_of is not None:
            continue
        folder = qvg_home() / name
        paths = [qvg_home() / each for each in (name, f".{name}.part", f".{name}.old")]
        if any(path.exists() for path in paths):
            size = sum(map(size_of, paths))
            about, remove = f"qvg download {name} creates it again", partial(_remove_weights, name)
            yield Kept(f"weights:{name}", folder, size, about, remove)
        for config in download.config.repositories:
            path = Path(constants.HF_HUB_CACHE) / repo_folder_name(
                repo_id=config.repository, repo_type="model"
            )
            # Several backends may take files of one repository.
            if path.exists() and path not in seen:
                seen.add(path)
                about = f"downloaded for {name}; other programs may use it"
                remove = partial(_remove_repository, config.repository, path)
                yield Kept(f"hub:{config.repository}", path, size_of(path), about, remove)
    for name, what in _FOUND_OUT.items():
        if (folder := qvg_home() / name).is_dir():
            about = f"{what}; created again when needed"
            yield Kept(name, folder, size_of(folder), about, partial(shutil.rmtree, folder))


def size_of(path: Path) -> int:
    """Bytes on disk of a file or a folder; what is linked to is not counted."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(each) for each in path.iterdir())
    # A file that is being written may go away in between.
    return path.lstat().st_size if path.is_symlink() or path.exists() else 0


def _remove_weights(name: str) -> None:
    with locked(name, lambda text: None):
        if (folder := qvg_home() / name).exists():
            refuse_strangers(name)
            shutil.rmtree(folder)


def _remove_repository(repository: str, path: Path) -> None:
    try:
        found = [repo for repo in scan_cache_dir().repos if repo.repo_id == repository]
    except CacheNotFound:
        found = []
    commits = [revision.commit_hash for repo in found for revision in repo.revisions]
    if commits:
        scan_cache_dir().delete_revisions(*commits).execute()
    # Parts of files that never became whole belong to no revision.
    shutil.rmtree(path, ignore_errors=True)
