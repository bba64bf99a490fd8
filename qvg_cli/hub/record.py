"""What a weights folder holds and where it came from, in a small JSON beside the files."""

from collections.abc import Mapping
from typing import Literal

from pydantic import ValidationError

from qvg_cli.config.resources import qvg_home
from qvg_cli.config.schema import Config, LoraConfig
from qvg_cli.hub.spec import DownloadConfig, RepositoryConfig

RECORD = "download.json"


class FileRecord(Config):
    """A file of the hub's cache that the folder links to at `target`; `None` if it was only converted."""

    path: str
    target: str | None
    size: int
    sha256: str | None
    git_sha1: str


class RepositoryRecord(Config):
    """What came from one repository, and the licence of its model card."""

    repository: str
    revision: str
    commit: str
    licence: str | None
    files: tuple[FileRecord, ...]


class ConvertedRecord(Config):
    """What a published checkpoint became: the hashes of what it was made of, and bytes by path in the folder.

    The `file` of `lora`, the adapter that was merged, is its path in the repository.
    """

    file: str
    source_sha256: str
    config_sha256: str
    weights_key: str = "auto"
    lora: LoraConfig | None = None
    lora_sha256: str | None = None
    sizes: dict[str, int]


class Record(Config):
    """What a folder holds, where it came from, and the section that it was made from."""

    format: Literal[1] = 1
    config: DownloadConfig
    repositories: tuple[RepositoryRecord, ...]
    converted: tuple[ConvertedRecord, ...]

    @property
    def num_bytes(self) -> int:
        downloaded = sum(file.size for found in self.repositories for file in found.files)
        return downloaded + sum(size for each in self.converted for size in each.sizes.values())

    def commit(self, config: RepositoryConfig) -> str | None:
        """The commit to use again; none where the YAML has come to name another revision."""
        wanted = config.repository, config.revision
        is_same = wanted in [(old.repository, old.revision) for old in self.config.repositories]
        commits = [found.commit for found in self.repositories if found.repository == config.repository]
        return commits[0] if is_same and commits else None


def read_record(name: str) -> Record | None:
    """The record of a folder; `None` if there is no such folder, or its record is not readable."""
    try:
        return Record.model_validate_json((qvg_home() / name / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def is_whole(name: str, record: Record) -> bool:
    """Whether every file of the record is there in its size."""
    files = [file for found in record.repositories for file in found.files]
    linked = {file.target: file.size for file in files if file.target is not None}
    # A converted checkpoint brings a config.json of its own.
    made = {path: size for converted in record.converted for path, size in converted.sizes.items()}
    return are_whole(name, {**linked, **made})


def are_whole(name: str, sizes: Mapping[str, int]) -> bool:
    """Whether the folder has every path of `sizes` in its size."""
    paths = {qvg_home() / name / path: size for path, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
