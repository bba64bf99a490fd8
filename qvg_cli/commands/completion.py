"""What a shell completes after an option: names that are known without loading anything."""

from collections.abc import Iterable
from glob import escape, glob
from pathlib import Path


def complete_backends(incomplete: str) -> list[str]:
    from qvg_cli.config.load import backend_names

    return _beginning(backend_names(), incomplete)


def complete_presets(incomplete: str) -> list[str]:
    from qvg_cli.config.resources import preset_names

    return _beginning(preset_names(), incomplete)


def complete_cards(incomplete: str) -> list[str]:
    from qvg_cli.planning.cards import CARDS

    return _beginning(CARDS, incomplete)


def complete_runs(incomplete: str) -> list[str]:
    """Folders of runs and comparisons below results/, then any path."""
    names = ("run.yaml", "compare.json")
    folders = sorted(str(path.parent) for name in names for path in Path("results").glob(f"*/*/{name}"))
    paths = [f"{path}/" if Path(path).is_dir() else path for path in sorted(glob(f"{escape(incomplete)}*"))]
    return list(dict.fromkeys([*_beginning(folders, incomplete), *paths]))


def complete_presets_and_runs(incomplete: str) -> list[str]:
    """What `qvg compare` compares."""
    return complete_presets(incomplete) + complete_runs(incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
