"""`qvg show`: the figures of a finished run on the terminal, and a gallery of many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qvg_cli.commands.completion import complete_runs
from qvg_cli.commands.options import DEBUG, option
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError

if TYPE_CHECKING:
    from qvg_cli.report.run_files import Result
    from qvg_cli.report.unfinished import Unfinished

_MAX_CHUNKS = 12
_MAX_UNFINISHED = 5


def show(
    run: Path | None = typer.Argument(
        None,
        metavar="RUN",
        help="Folder of a run or comparison [default: the newest].",
        autocompletion=complete_runs,
    ),
    out: Path = option("--out -o FOLDER", "Results folder to search.", default=Path("results")),
    gallery: Path | None = option(
        "--gallery FOLDER", "Write FOLDER/index.html, a page with every video below FOLDER, and exit."
    ),
    json_: bool = option("--json", "Print the content of memory.json or compare.json to stdout."),
    layers: bool = option("--layers", "Also print the attention error of every layer."),
    debug: bool = DEBUG,
) -> None:
    """Show statistics of a run; list unfinished runs."""
    del debug
    if gallery is not None:
        if run is not None or json_ or layers:
            raise UsageError(
                "--gallery cannot be combined with other arguments", hint="qvg show --gallery results"
            )
        _write_gallery(gallery)
        return
    from qvg_cli.report.unfinished import Unfinished

    result = _find(run, out)
    if isinstance(result, Unfinished):
        show_data(json.dumps(result.to_json()) if json_ else result.line())
        return
    if json_:
        show_data(json.dumps({"folder": str(result.folder), **result.figures}))
    else:
        show_data(_text(result))
        if layers:
            show_data("\n" + _layers_text(result))


def _find(run: Path | None, out: Path) -> Result | Unfinished:
    from qvg_cli.report.run_files import find_results, newest_file, read_result
    from qvg_cli.report.unfinished import find_unfinished, is_unfinished, modified, read_unfinished

    if run is not None:
        return read_unfinished(run) if is_unfinished(run) else read_result(run)
    folders = find_results(out)
    unfinished = find_unfinished(out)
    if not folders and not unfinished:
        raise UsageError(
            f"no run in {out}", hint="create one with qvg generate, or use --out to search another folder"
        )
    if unfinished and (not folders or modified(unfinished[0]) > newest_file(folders[0])):
        return unfinished[0]
    _note_unfinished(unfinished)
    return read_result(folders[0])


def _note_unfinished(unfinished: Sequence[Unfinished]) -> None:
    console = Console()
    for each in unfinished[:_MAX_UNFINISHED]:
        console.note(each.line())
    if len(unfinished) > _MAX_UNFINISHED:
        console.note(f"and {len(unfinished) - _MAX_UNFINISHED} more unfinished")


def _text(result: Result) -> str:
    from qvg_cli.report.run_figures import CHUNK_HEADER, chunk_rows, result_rows, title_of
    from qvg_cli.report.tables import comparison_tables, format_facts, format_table, spread

    parts = [f"{result.folder}\n{title_of(result.figures)}", format_facts(result_rows(result))]
    if result.is_comparison:
        parts.append(comparison_tables(result.figures))
    else:
        rows = chunk_rows(result.figures)
        shown = [rows[index] for index in spread(len(rows), _MAX_CHUNKS)]
        parts.append(format_table(CHUNK_HEADER, shown))
        if len(shown) < len(rows):
            parts.append(f"{len(shown)} of {len(rows)} chunks; --json has all of them")
    return "\n\n".join(parts)


def _layers_text(result: Result) -> str:
    from qvg_cli.report.run_figures import logit_rows
    from qvg_cli.report.tables import ATTENTION_HEADER, format_table, layer_rows

    header: tuple[str, ...] = ("layer", "logit rms, predicted")
    if result.is_comparison:
        header, rows = ("layer", *ATTENTION_HEADER), layer_rows(result.figures["arms"])
    else:
        rows = logit_rows(result.figures)
    if not rows:
        raise UsageError(
            f"{result.folder} has no figures of single layers",
            hint="a comparison measures them whose first cache is bf16: qvg compare bf16 int2",
        )
    return "Attention to packed keys, by layer:\n" + format_table(header, rows)


def _write_gallery(folder: Path) -> None:
    from qvg_cli.files import write_text
    from qvg_cli.report.html import gallery_line, gallery_page
    from qvg_cli.report.run_files import find_results, read_result
    from qvg_cli.report.unfinished import find_unfinished

    console = Console()
    lines = []
    for found in find_results(folder):
        try:
            lines.append(gallery_line(folder, read_result(found)))
        except UsageError as error:
            console.note(f"skipping: {error}")
    _note_unfinished(find_unfinished(folder))
    if not lines:
        raise UsageError(f"no run in {folder}", hint="create one with qvg generate --out FOLDER")
    page = folder / "index.html"
    write_text(page, gallery_page(folder, lines), errors="backslashreplace")
    console.note(f"{len(lines)} results")
    show_data(str(page))
