"""Packages that add model families (entry points `qvg.families`) or codecs (`qvg.codecs`). No torch."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from qvg_cli.errors import UsageError

FAMILIES, CODECS = "qvg.families", "qvg.codecs"


@cache
def plugin_configs() -> tuple[Path, ...]:
    """The folders `configs` of installed plugins: a YAML for each model, in `cache/` one for each preset."""
    packages = dict.fromkeys(
        entry.module.partition(".")[0] for group in (FAMILIES, CODECS) for entry in entry_points(group=group)
    )
    specs = [find_spec(package) for package in packages]
    folders = [
        Path(place) / "configs" for spec in specs if spec for place in spec.submodule_search_locations or ()
    ]
    return tuple(folder for folder in folders if folder.is_dir())


def load_plugin(entry: EntryPoint) -> object:
    """What an entry point names; `UsageError` if it cannot be imported."""
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist is not None else entry.module
        raise UsageError(
            f"the plugin {entry.value} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"update or remove it: pip uninstall {package}",
        ) from error
