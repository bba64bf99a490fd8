"""`qvg disk` and `qvg clean`: what the tool keeps on disk, and how much of it comes free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qvg_cli.commands.options import DEBUG, option
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from qvg_cli.hub.kept import Kept


_OUT = option("--out -o FOLDER", "Results folder to search for unfinished runs.", default=Path("results"))
_JSON = option("--json", "Print the list as JSON.")


def disk(out: Path = _OUT, json_: bool = _JSON, debug: bool = DEBUG) -> None:
    """Show disk usage of weights and unfinished runs.

    Lists weights, downloads, prompt embeddings and checkpoints of unfinished runs; qvg clean deletes them by
    name. Videos and reports are not listed.
    """
    del debug
    _show(_find(out), is_removed=False, is_json=json_)


def clean(
    names: list[str] | None = typer.Argument(
        None, metavar="NAME", help="Names of what to delete, as listed by qvg disk."
    ),
    out: Path = _OUT,
    yes: bool = option("--yes", "Delete; otherwise only show what would be."),
    json_: bool = _JSON,
    debug: bool = DEBUG,
) -> None:
    """Delete weights, downloads and unfinished runs by name.

    Names: weights folders (weights:MODEL), their repositories in the Hugging Face cache (hub:REPOSITORY),
    prompt embeddings (text), hashes of large weight files (hashes) and the checkpoints of unfinished runs
    (unfinished), which then cannot be resumed. Videos and reports are never deleted.
    """
    del debug
    found = _find(out)
    if names:
        known = [kept.name for kept in found]
        for name in names:
            if name not in known:
                if not known:
                    raise UsageError(f"there is no {name} to delete: qvg keeps nothing on this disk")
                raise unknown_name("name", name, known)
    chosen = [kept for kept in found if not names or kept.name in names]
    is_removed = bool(names) and yes
    if is_removed:
        for kept in chosen:
            kept.free()
    _show(chosen, is_removed=is_removed, is_json=json_)
    if names and not yes and not json_:
        Console().note("dry run: nothing deleted (use --yes to delete)")


def _show(listed: Sequence[Kept], *, is_removed: bool, is_json: bool) -> None:
    from qvg_cli.hub.plan import size_text

    if is_json:
        told = [
            {"name": kept.name, "path": str(kept.path), "bytes": kept.size, "about": kept.about}
            for kept in listed
        ]
        show_data(json.dumps({"schema": 1, "removed": is_removed, "kept": told}))
        return
    for kept in listed:
        show_data(f"{size_text(kept.size):>11}  {kept.name}\n{'':13}{kept.path}: {kept.about}")
    whole = size_text(sum(kept.size for kept in listed))
    show_data(f"{whole:>11}  {'deleted' if is_removed else 'total'}")


def _find(out: Path) -> list[Kept]:
    from functools import partial

    from qvg_cli.files import drop_state, find_states
    from qvg_cli.hub.kept import Kept, find_kept, size_of

    about = "checkpoint of an unfinished run; without it the run cannot be resumed"
    unfinished = (
        Kept("unfinished", folder, size_of(folder), about, partial(drop_state, folder))
        for folder in find_states(out)
    )
    return [*find_kept(), *unfinished]
