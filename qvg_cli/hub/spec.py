"""The `download` section of a YAML: the files that are needed of repositories, and where they go.

All that `qvg download` knows about a model is said there; this module reads it. No torch, no network.
"""

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from qvg_cli.config.resources import config_files
from qvg_cli.config.schema import Config, LoraConfig
from qvg_cli.config.yaml_text import parse_yaml
from qvg_cli.errors import MissingModelError

_FOLDER_NAME = r"^[a-z0-9_]+$"
_REPOSITORY_ID = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$"
_BYTES_PER_PARAMETER = 2

FolderName = Annotated[str, Field(pattern=_FOLDER_NAME)]
Patterns = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class ConvertConfig(Config):
    """A published checkpoint that is read once and kept as safetensors in diffusers' layout.

    Attributes:
        file: Path in the repository.
        into: Folder that gets the result; its config.json says what the model is.
        parameters: Of the model, at two bytes each: what the result needs on the disk.
        weights_key: Which weights of the file: averaged ("ema"), those of the last step ("raw"), or "auto",
            the averaged ones where there are such.
        lora: An adapter of the same repository that is merged, before anything is rounded.
    """

    file: str
    into: FolderName
    parameters: int = Field(gt=0)
    weights_key: Literal["auto", "ema", "raw"] = "auto"
    lora: LoraConfig | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.file,) if self.lora is None else (self.file, self.lora.file)


class RepositoryConfig(Config):
    """What is taken from one repository.

    Attributes:
        repository: `owner/name` on the hub.
        revision: Branch, tag or commit.
        files: Folder of the weights, and patterns of the files that go there. What a pattern says before its
            first wildcard, up to the last slash, is left out of a file's name there.
        convert: A checkpoint that is converted.
    """

    repository: str = Field(pattern=_REPOSITORY_ID)
    revision: str = Field("main", min_length=1)
    files: dict[FolderName, Patterns] = Field(default_factory=dict)
    convert: ConvertConfig | None = None


class DownloadConfig(Config):
    """The whole section.

    Attributes:
        about_gb: What comes over the network, in 10**9 bytes, rounded up: for plans, which ask no hub; `None`
            where nobody has looked.
    """

    about_gb: float | None = Field(None, gt=0)
    repositories: Annotated[tuple[RepositoryConfig, ...], Field(strict=False, min_length=1)]

    @property
    def converted_bytes(self) -> int:
        """What the results of its conversions need on the disk."""
        converts = [repository.convert for repository in self.repositories]
        return sum(_BYTES_PER_PARAMETER * convert.parameters for convert in converts if convert is not None)


class Download(Config):
    """What can be downloaded under one name, that of a backend or of a model which measures.

    Attributes:
        use: A command that needs it.
        claims: What the authors say of it, and what nobody has shown; may be empty.
        weights_of: Name of the YAML whose weights these are; `None` where they are its own.
    """

    name: str
    family: str
    summary: str
    licence: str
    use: str
    config: DownloadConfig
    claims: str = ""
    weights_of: str | None = None


def read_downloads() -> dict[str, Download]:
    found = {name: read_download(name) for name in config_files()}
    return {name: download for name, download in found.items() if download is not None}


def read_download(name: str) -> Download | None:
    """What the weights of this name are; `None` where there is nothing to download."""

    def read(name: str) -> dict[str, Any]:
        path = files[name]
        return parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))

    files = config_files()
    values = read(name) if name in files else {}
    section = values.get("download")
    if section is None:
        return None
    # A name: the weights are those of that file.
    other = section if isinstance(section, str) else None
    return Download(
        name=name,
        family=values.get("family") or name,
        summary=values["summary"],
        licence=values["licence"],
        use=values.get("use", f'qvg generate --backend {name} "..."'),
        config=DownloadConfig.model_validate(section if other is None else read(other)["download"]),
        claims=values.get("claims", ""),
        weights_of=other,
    )


def targets(config: RepositoryConfig, paths: list[str]) -> dict[str, str]:
    """By needed path of a repository the path in the weights folder; `MissingModelError` if one lacks."""
    found: dict[str, str] = {}
    for folder, patterns in config.files.items():
        for pattern in patterns:
            matches = [path for path in paths if fnmatchcase(path, pattern)]
            if not matches:
                raise _missing(config, pattern)
            prefix = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
            for path in matches:
                relative = PurePosixPath(path).relative_to(prefix)
                if ".." in relative.parts or relative.is_absolute() or "\\" in path:
                    raise MissingModelError(f"{config.repository} has a file with the unusable name {path!r}")
                found[path] = str(folder / relative)
    for path in config.convert.inputs if config.convert is not None else ():
        if path not in paths:
            raise _missing(config, path)
    return found


def _missing(config: RepositoryConfig, pattern: str) -> MissingModelError:
    return MissingModelError(
        f"{config.repository} has no {pattern} at this revision",
        hint=f"use one that has it: --revision {config.repository}=REVISION",
    )
