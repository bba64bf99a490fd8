"""Where the files that ship with the package are, in a source checkout and in an installed wheel alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from qvg_cli.errors import MissingModelError

_PACKAGE = Path(__file__).parent


@cache
def configs_dir() -> Path:
    """The folder with one YAML a backend, and `cache/` with the presets.

    Raises:
        FileNotFoundError: The installation is not whole.
    """
    # The wheel carries its own copy; a checkout has it beside the package.
    candidates = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no configs at {candidates[0]} or {candidates[1]}; install qvg again")


def preset_names() -> tuple[str, ...]:
    """Names that `--cache` takes."""
    return tuple(sorted(path.stem for path in (configs_dir() / "cache").glob("*.yaml")))


def weights_folder(name: str) -> Path:
    """The folder of a model's weights.

    Args:
        name: A folder, or a name without a slash for weights that ship with the package.

    Raises:
        MissingModelError: There is no such folder.
    """
    is_shipped = "/" not in name
    folder = _PACKAGE / "data" / name if is_shipped else Path(name).expanduser()
    if folder.is_dir():
        return folder
    hint = "use --pocket for the built-in weights, or --set model.weights=FOLDER for your own"
    if is_shipped and Path(name).is_dir():
        hint = f"for the folder {name} here, write --set model.weights=./{name}"
    raise MissingModelError(f"no weights at {folder}", hint=hint)


def pocket_grammar() -> Path:
    """The file that says which prompts the built-in model was trained on."""
    return _PACKAGE / "data" / "pocket" / "grammar.yaml"


def checkout_dir() -> Path | None:
    """The git checkout that this package runs from; none when it is installed."""
    root = _PACKAGE.parent
    return root if (root / ".git").exists() else None
