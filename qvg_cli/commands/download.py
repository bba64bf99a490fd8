"""`qvg download`: the published weights of a model onto this machine, only what is needed of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from qvg_cli.commands.completion import complete_backends
from qvg_cli.commands.options import DEBUG, QUIET, VERBOSE, option
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from qvg_cli.hub.plan import DownloadPlan
    from qvg_cli.hub.spec import Download

_COMMIT_DIGITS = 12


def download(
    names: list[str] | None = typer.Argument(
        None,
        metavar="NAME",
        help="Models, e.g. self-forcing; lpips, for qvg compare --lpips; taehv, for video.decoder=taehv.",
        autocompletion=complete_backends,
    ),
    list_: bool = option("--list", "List models, their sizes and what is downloaded (works offline)."),
    dry_run: bool = option("--dry-run", "Show files, sizes and free space, and exit."),
    revision: list[str] | None = option(
        "--revision REPOSITORY=REVISION",
        "Branch, tag or commit of a repository (repeatable) [default: the commit of the last download, or "
        "else the revision in the YAML of the model].",
    ),
    quiet: bool = QUIET,
    verbose: bool = VERBOSE,
    debug: bool = DEBUG,
) -> None:
    """Download model weights.

    Files go to the Hugging Face cache (HF_HOME), converted checkpoints and links to QVG_HOME [default:
    ~/.cache/qvg]. An interrupted download continues where it stopped. The path of the weights goes to stdout.
    """
    from qvg_cli.hub.spec import read_downloads

    del verbose, debug
    known = read_downloads()
    if not names and list_:
        show_data(_overview(known))
        return
    if not names:
        raise UsageError("no model given", hint=f"available: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown_name("model", name, tuple(known))
    if list_:
        show_data("\n\n".join(_about(known[name]) for name in names))
        return
    console = Console(is_quiet=quiet)
    for name in names:
        if (other := known[name].weights_of) is not None:
            console.note(f"{name} uses the weights of {other}")
    chosen = [known[name] for name in dict.fromkeys(known[name].weights_of or name for name in names)]
    revisions = _parse_revisions(revision or (), chosen)
    if dry_run:
        from qvg_cli.hub.plan import check_space, plan_download
        from qvg_cli.hub.record import read_record

        plans = [plan_download(each, read_record(each.name), revisions) for each in chosen]
        show_data("\n\n".join("\n".join(_plan_lines(plan)) for plan in plans))
        check_space(plans)
    else:
        _download_all(chosen, revisions, console, is_quiet=quiet)


def _parse_revisions(texts: Sequence[str], chosen: Sequence[Download]) -> dict[str, str]:
    known = [config.repository for each in chosen for config in each.config.repositories]
    revisions = {}
    for text in texts:
        repository, _, revision = text.partition("=")
        if not revision or repository not in known:
            raise UsageError(
                f"--revision {text} is not REPOSITORY=REVISION for a repository of this download",
                hint=f"repositories: {', '.join(known)}",
            )
        revisions[repository] = revision
    return revisions


def _download_all(
    chosen: Sequence[Download], revisions: Mapping[str, str], console: Console, *, is_quiet: bool
) -> None:
    import logging
    from contextlib import ExitStack

    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity

    from qvg_cli.config.resources import qvg_home
    from qvg_cli.hub.plan import check_space, plan_download
    from qvg_cli.hub.record import is_whole, read_record
    from qvg_cli.hub.store import locked, refuse_strangers

    if is_quiet:
        disable_progress_bars()
        set_verbosity(logging.ERROR)
    with ExitStack() as stack:
        plans: list[DownloadPlan] = []
        folders: list[Path] = []
        for each in sorted(chosen, key=lambda each: each.name):
            stack.enter_context(locked(each.name, console.note))
            record = read_record(each.name)
            is_asked = any(config.repository in revisions for config in each.config.repositories)
            is_there = record is not None and record.config == each.config and is_whole(each.name, record)
            folders.append(qvg_home() / each.name)
            if is_there and not is_asked:
                note = "is already downloaded; --revision REPOSITORY=main gets a newer version"
                console.note(f"{each.name} {note}")
                continue
            refuse_strangers(each.name)
            plans.append(plan_download(each, record, revisions))
            console.note("\n".join(_plan_lines(plans[-1])))
        check_space(plans)
        for plan in plans:
            _fetch(plan, console)
    for folder in folders:
        show_data(str(folder))


def _fetch(plan: DownloadPlan, console: Console) -> None:
    from qvg_cli.hub.fetch import fetch
    from qvg_cli.hub.plan import size_text
    from qvg_cli.hub.store import assemble

    # Small files first: a wrong set-up shows before the first gigabyte.
    files = sorted(set(plan.files), key=lambda file: file.size)
    paths = {}
    for number, file in enumerate(files, 1):
        if file.missing_bytes:
            console.note(f"file {number}/{len(files)}: {file.path}, {size_text(file.missing_bytes)}")
        paths[file] = fetch(file, console.note)
    assemble(plan, paths, console.note)
    console.note(f"{plan.download.name} downloaded. Try: {plan.download.use}")


def _overview(known: Mapping[str, Download]) -> str:
    """What `--list` says without names: a table, the checkpoints of a family below its own model."""
    from qvg_cli.report.tables import format_table

    families = dict.fromkeys(each.family for each in known.values())
    rows = []
    for family in families:
        members = [each for each in known.values() if each.family == family]
        for each in sorted(members, key=lambda each: each.name != family):
            size, state = _size_and_state(each)
            rows.append([each.name if each.name == family else f"  {each.name}", size, f"  {state}"])
    table = format_table(("model", "size", "  state"), rows, left=(2,))
    return (
        f"{table}\n\n?: run qvg download NAME --dry-run for the size\n"
        "qvg download --list NAME shows licence and repositories"
    )


def _size_and_state(download: Download) -> tuple[str, str]:
    """How large it is, and whether it is on this machine, without asking the hub."""
    from qvg_cli.hub.plan import size_text
    from qvg_cli.hub.record import is_whole, read_record

    place = download.weights_of or download.name
    shared = "" if download.weights_of is None else f" (weights of {place})"
    record = read_record(place)
    if record is not None:
        state = "downloaded" if is_whole(place, record) else "incomplete"
        return size_text(record.num_bytes), state + shared
    about = download.config.about_gb
    return "?" if about is None else f"{about:g} GB", f"not downloaded{shared}"


def _about(download: Download) -> str:
    from qvg_cli.config.resources import qvg_home
    from qvg_cli.hub.record import read_record

    place = download.weights_of or download.name
    record = read_record(place)
    size, state = _size_and_state(download)
    size = "size: see --dry-run" if size == "?" else size
    where = f" in {qvg_home() / place}" if record is not None else ""
    lines = [f"{download.name}: {download.summary}", f"  {size}, {state}{where}", f"  {download.licence}"]
    if download.claims:
        lines.append(f"  {download.claims}")
    commits = {found.repository: found.commit for found in record.repositories} if record is not None else {}
    for config in download.config.repositories:
        commit = commits.get(config.repository)
        lines.append(f"  {config.repository} at {f'commit {commit}' if commit else config.revision}")
    return "\n".join(lines)


def _plan_lines(plan: DownloadPlan) -> Iterator[str]:
    from pathlib import Path

    from huggingface_hub import constants

    from qvg_cli.config.resources import qvg_home
    from qvg_cli.hub.plan import free_bytes, size_text

    yield f"{plan.download.name}: {plan.download.summary}"
    yield f"licence: {plan.download.licence}"
    for repository in plan.repositories:
        snapshot = repository.snapshot
        commit = snapshot.commit[:_COMMIT_DIGITS]
        origin = "the commit of the last download" if repository.is_same_commit else f"of {snapshot.revision}"
        licence = f", licence on the model card: {snapshot.licence}" if snapshot.licence else ""
        yield f"https://huggingface.co/{snapshot.repository} at {commit} ({origin}){licence}"
        for file in repository.files:
            missing, size = file.missing_bytes, file.size
            part = "" if missing == size else f"{size_text(missing)} "
            state = f"{part}to download" if missing else "there"
            yield f"  {size_text(size):>11}  {file.path}  ({state})"
    cache = Path(constants.HF_HUB_CACHE)
    yield f"to download: {size_text(plan.missing_bytes)}; free at {cache}: {size_text(free_bytes(cache))}"
    if converted := plan.download.config.converted_bytes:
        home = qvg_home()
        yield f"to convert: {size_text(converted)}; free at {home}: {size_text(free_bytes(home))}"
