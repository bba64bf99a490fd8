"""`qvg clean`: what the tool keeps on disk, and how much of it comes free."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvg_cli.commands import options
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from qvg_cli.hub.kept import Kept


def clean(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="What to remove, by the names that are shown without.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where unfinished runs are looked for.")
    ] = Path("results"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only show what would go.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show what qvg keeps on disk, and remove what is named.

    That is: weights folders (weights:BACKEND), what the hub's cache holds of their repositories
    (hub:REPOSITORY), prompts as models read them (text), the hashes of large weights files (hashes), and the
    state of unfinished runs (unfinished), which could then not go on. Videos and reports are never removed.
    """
    from qvg_cli.hub.plan import size_text

    del debug
    found = _find(out)
    if names:
        known = [kept.name for kept, _ in found]
        for name in names:
            if name not in known:
                if not known:
                    raise UsageError(f"there is no {name} to remove: qvg keeps nothing on this disk")
                raise unknown_name("name", name, known)
    chosen = [(kept, free) for kept, free in found if not names or kept.name in names]
    is_removed = bool(names) and yes
    if is_removed:
        for _, free in chosen:
            free()
    if json_:
        told = [
            {"name": kept.name, "path": str(kept.path), "bytes": kept.size, "about": kept.about}
            for kept, _ in chosen
        ]
        show_data(json.dumps({"schema": 1, "removed": is_removed, "kept": told}))
        return
    for kept, _ in chosen:
        show_data(f"{size_text(kept.size):>11}  {kept.name}\n{'':13}{kept.path}: {kept.about}")
    whole = size_text(sum(kept.size for kept, _ in chosen))
    show_data(f"{whole:>11}  {'removed' if is_removed else 'in all'}")
    if names and not yes:
        Console().note("nothing was removed: add --yes")


def _find(out: Path) -> list[tuple[Kept, Callable[[], None]]]:
    """Everything there is, each with what removes it."""
    from functools import partial

    from qvg_cli.files import drop_state, find_states
    from qvg_cli.hub.kept import Kept, find_kept, free, size_of

    found: list[tuple[Kept, Callable[[], None]]] = [(kept, partial(free, kept)) for kept in find_kept()]
    for folder in find_states(out):
        about = "the state of an unfinished run, which qvg generate --resume goes on from"
        found.append((Kept("unfinished", folder, size_of(folder), about), partial(drop_state, folder)))
    return found
