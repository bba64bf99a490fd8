"""What a download fetches, from which commits, and whether the disks have room for it; nothing is written."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants

from qvg_cli.config.resources import qvg_home
from qvg_cli.errors import QvgError
from qvg_cli.hub.record import Record
from qvg_cli.hub.remote import RemoteFile, Snapshot, list_files
from qvg_cli.hub.spec import Download, RepositoryConfig, targets


@dataclass(frozen=True)
class WantedRepository:
    """What is wanted of one repository, and whether its commit is the one of the last download."""

    config: RepositoryConfig
    snapshot: Snapshot
    files: tuple[RemoteFile, ...]
    is_same_commit: bool


@dataclass(frozen=True)
class DownloadPlan:
    download: Download
    repositories: tuple[WantedRepository, ...]

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return tuple(file for repository in self.repositories for file in repository.files)

    @property
    def missing_bytes(self) -> int:
        """What comes over the network; a file that is named twice comes once."""
        return sum({file.blob: file.missing_bytes for file in self.files}.values())


def plan_download(download: Download, record: Record | None, revisions: Mapping[str, str]) -> DownloadPlan:
    """Ask the hub what `download` needs.

    Args:
        record: Of the last download; its commits are used again.
        revisions: Revision by repository, where the user named one.
    """
    repositories = []
    for config in download.config.repositories:
        asked = revisions.get(config.repository)
        commit = record.commit(config) if record is not None and asked is None else None
        snapshot = list_files(config.repository, asked or config.revision, commit)
        places = targets(config, sorted(snapshot.files))
        wanted = [replace(snapshot.files[path], target=target) for path, target in places.items()]
        if config.convert is not None:
            wanted += [snapshot.files[path] for path in config.convert.inputs]
        repositories.append(WantedRepository(config, snapshot, tuple(wanted), commit is not None))
    return DownloadPlan(download, tuple(repositories))


def free_bytes(place: Path) -> int:
    """Free space at `place`, which need not exist yet."""
    return shutil.disk_usage(_existing(place)).free


def check_space(plans: Iterable[DownloadPlan]) -> None:
    """Refuse a download that the disks have no room for, by a `QvgError` that says how much is missing."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for plan in plans:
        cache = Path(constants.HF_HUB_CACHE)
        for place, size in ((cache, plan.missing_bytes), (qvg_home(), plan.download.config.converted_bytes)):
            device = os.stat(_existing(place)).st_dev
            needed[device] = needed.get(device, 0) + size
            places.setdefault(device, place)
    for device, size in needed.items():
        free = free_bytes(places[device])
        if size > free:
            raise QvgError(
                f"{size_text(size)} needed at {places[device]}, {size_text(free)} free",
                hint="free some space, or set HF_HOME (downloads) or QVG_HOME (conversions) "
                "to a folder on a larger disk",
            )


def size_text(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.1f} {unit}"
    return f"{size} bytes"


def _existing(place: Path) -> Path:
    """`place`, or the nearest folder above it that exists."""
    place = place.expanduser().absolute()
    return next(path for path in (place, *place.parents) if path.exists())
