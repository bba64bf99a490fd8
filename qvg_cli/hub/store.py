"""The folder of a backend's weights: links into the hub's cache, converted checkpoints, a record of both.

It is put together beside its place and moved there when whole, under a lock: a folder that is there is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError

from qvg_cli.config.resources import qvg_home
from qvg_cli.errors import MissingModelError, QvgError
from qvg_cli.files import sha256, sync
from qvg_cli.hub.errors import disk_error
from qvg_cli.hub.plan import DownloadPlan
from qvg_cli.hub.record import (
    RECORD,
    ConvertedRecord,
    FileRecord,
    Record,
    RepositoryRecord,
    are_whole,
    read_record,
)
from qvg_cli.hub.remote import RemoteFile
from qvg_cli.hub.spec import ConvertConfig, Download
from qvg_cli.interrupts import hold_interrupts
from qvg_cli.models.registry import find_family

_LOCK_SECONDS = 0.1


@contextmanager
def locked(name: str, note: Callable[[str], None]) -> Iterator[None]:
    """Keep other downloads of `name` out; what one of them left half done is put right."""
    home = qvg_home()
    with ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            path = home / f".{name}.lock"
            try:
                stack.enter_context(WeakFileLock(path, timeout=_LOCK_SECONDS))
            except Timeout:
                note(f"another qvg process is downloading {name}; waiting for it")
                stack.enter_context(WeakFileLock(path))
            shutil.rmtree(_part(name), ignore_errors=True)
            # Stopped between the two moves of a replacement.
            if _old(name).exists() and not (home / name).exists():
                os.replace(_old(name), home / name)
        except OSError as error:
            raise disk_error(error, str(home), "QVG_HOME") from error
        yield


def assemble(plan: DownloadPlan, paths: Mapping[RemoteFile, Path], note: Callable[[str], None]) -> Path:
    """Make the folder of a plan, in place of an older one, from its files' `paths` in the hub's cache."""
    name = plan.download.name
    folder, part = qvg_home() / name, _part(name)
    old = read_record(name)
    try:
        part.mkdir()
        for file in plan.files:
            if file.target is not None:
                link = part / file.target
                link.parent.mkdir(parents=True, exist_ok=True)
                # Not resolved: the name in the cache's snapshot says what it is.
                link.symlink_to(paths[file].absolute())
        converted = []
        for repository in plan.repositories:
            if (convert := repository.config.convert) is not None:
                inputs = [repository.snapshot.files[path] for path in convert.inputs]
                local = [(each, paths[each]) for each in inputs]
                converted.append(_convert(plan.download, convert, local, old, note))
        record = _record(plan, tuple(converted))
        with (part / RECORD).open("w", encoding="utf-8") as stream:
            stream.write(record.model_dump_json(indent=2) + "\n")
            os.fsync(stream.fileno())
        _move_in(name)
    except OSError as error:
        raise disk_error(error, str(qvg_home()), "QVG_HOME") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(
    download: Download,
    convert: ConvertConfig,
    inputs: Sequence[tuple[RemoteFile, Path]],
    old: Record | None,
    note: Callable[[str], None],
) -> ConvertedRecord:
    """Convert the checkpoint, merged with an adapter if there is one, or use an older result again."""
    (source, path), *adapter = inputs
    name = download.name
    into = _part(name) / convert.into
    config_text = (into / "config.json").read_bytes()
    record = ConvertedRecord(
        file=source.path,
        source_sha256=source.sha256 or sha256(path),
        config_sha256=hashlib.sha256(config_text).hexdigest(),
        weights_key=convert.weights_key,
        lora=convert.lora,
        lora_sha256=next((file.sha256 or sha256(place) for file, place in adapter), None),
        sizes={},
    )
    for earlier in old.converted if old is not None else ():
        if earlier.model_copy(update={"sizes": {}}) == record and are_whole(name, earlier.sizes):
            for made in earlier.sizes:
                (_part(name) / made).unlink(missing_ok=True)
                os.link(qvg_home() / name / made, _part(name) / made)
            return earlier
    note(f"converting {source.path} to safetensors, once")
    try:
        settings = {key: value for key, value in json.loads(config_text).items() if not key.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise MissingModelError(f"the downloaded config.json for {convert.into} is not readable") from error
    fresh = _part(name) / f".{convert.into}"
    lora = []
    if convert.lora is not None:
        lora = [convert.lora.model_copy(update={"file": str(place)}) for _, place in adapter]
    convert_checkpoint = find_family(download.family).convert_checkpoint
    try:
        convert_checkpoint(path, settings, fresh, weights_key=convert.weights_key, lora=lora)
    except SafetensorError as error:
        raise QvgError(
            f"cannot write at {fresh}: {error}", hint="free some space, or set QVG_HOME"
        ) from error
    sizes = {}
    for file in sorted(fresh.iterdir()):
        sync(file)
        # Never written through: what lies there may be a link into the hub's cache.
        os.replace(file, into / file.name)
        sizes[f"{convert.into}/{file.name}"] = (into / file.name).stat().st_size
    fresh.rmdir()
    return record.model_copy(update={"sizes": sizes})


def _record(plan: DownloadPlan, converted: tuple[ConvertedRecord, ...]) -> Record:
    def taken(source: object, *names: str) -> dict[str, Any]:
        return {name: getattr(source, name) for name in names}

    repositories = []
    for wanted in plan.repositories:
        kept = ("path", "size", "sha256", "git_sha1", "target")
        files = tuple(FileRecord(**taken(each, *kept)) for each in wanted.files)
        about = taken(wanted.snapshot, "repository", "revision", "commit", "licence")
        repositories.append(RepositoryRecord(**about, files=files))
    return Record(config=plan.download.config, repositories=tuple(repositories), converted=converted)


def refuse_strangers(name: str) -> None:
    """Refuse to replace what this module did not write; `QvgError` if there is such a file in the folder."""
    folder, record = qvg_home() / name, read_record(name)
    known = {RECORD}
    if record is not None:
        known.update(path for converted in record.converted for path in converted.sizes)
    for path in sorted(folder.rglob("*")):
        if not (path.is_symlink() or path.is_dir() or str(path.relative_to(folder)) in known):
            raise QvgError(
                f"{path} was not created by qvg download", hint="move it elsewhere, then download again"
            )


def _move_in(name: str) -> None:
    """Let the new folder take the place of the old one."""
    folder = qvg_home() / name
    with hold_interrupts():
        if folder.exists():
            shutil.rmtree(_old(name), ignore_errors=True)
            os.replace(folder, _old(name))
        os.replace(_part(name), folder)
    shutil.rmtree(_old(name), ignore_errors=True)


def _part(name: str) -> Path:
    return qvg_home() / f".{name}.part"


def _old(name: str) -> Path:
    return qvg_home() / f".{name}.old"
