"""The `qvg` program: its commands, and the one place that turns an error into a message and an exit code.

Nothing heavy is imported here, so that `qvg --help` answers at once.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from qvg_cli import __version__, lean_imports
from qvg_cli.commands.batch import batch
from qvg_cli.commands.clean import clean, disk
from qvg_cli.commands.compare import compare
from qvg_cli.commands.doctor import doctor
from qvg_cli.commands.download import download
from qvg_cli.commands.extend import extend
from qvg_cli.commands.generate import generate
from qvg_cli.commands.options import FAMILY_PANEL, PANELS, family_help
from qvg_cli.commands.plan import plan
from qvg_cli.commands.play import play
from qvg_cli.commands.show import show
from qvg_cli.console import drop_stream, show_data, show_error, visible
from qvg_cli.environment import check_environment, find_launch
from qvg_cli.errors import NoAnswerError, QvgError, UsageError, shown_error, unknown_name
from qvg_cli.interrupts import last_stop, stop_on_signals
from qvg_cli.logs import set_up
from qvg_cli.models.registry import FAMILIES
from qvg_cli.redaction import redact

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the run failed; partial results are kept
  2    invalid arguments or settings
  3    weights, access or ffmpeg are missing
  4    out of memory
  75   stopped by SIGTERM or SIGUSR1; partial results are kept, and --resume continues
  130  interrupted (Ctrl-C); partial results are kept"""

_EXAMPLES = {
    "generate": """
  qvg generate "a small blue cube slides from side to side on sand"
  qvg generate --seconds 20 --cache bf16 --seed 3
  qvg generate --prompts prompts.txt --out videos --json
  qvg generate --config results/self-forcing/NAME/run.yaml
  qvg generate --resume results/self-forcing/NAME""",
    "extend": """
  qvg extend results/self-forcing/NAME --seconds 5
  qvg extend results/self-forcing/NAME "a small blue cube rests on sand"
  qvg extend clip.mp4 "waves roll in" --backend self-forcing
  qvg extend clip.mp4 "waves roll in" --backend longcat --segments 10""",
    "batch": """
  qvg batch prompts.jsonl --out videos
  qvg batch prompts.jsonl --out /shared/videos --ray auto --backend self-forcing
  qvg batch prompts.jsonl --out s3://bucket/videos --ray auto --gpus-per-worker 2
  qvg batch --status videos""",
    "download": """
  qvg download --list
  qvg download self-forcing --dry-run
  qvg download self-forcing --revision gdhe17/Self-Forcing=main""",
    "compare": """
  qvg compare bf16 int2
  qvg compare bf16 int2 int2-qvg --seconds 20 --seeds 3
  qvg compare bf16 int2 --prompts prompts.txt --out comparisons
  qvg compare results/self-forcing/A results/self-forcing/B""",
    "plan": """
  qvg plan --backend self-forcing --seconds 45 --cache int2 --cache bf16
  qvg plan --backend longcat --segments 10 --gpu "RTX 4090" --gpus 2
  qvg plan --backend hyworldplay --pose w-40,a-40 --gpu 24GiB --json""",
    "play": """
  qvg play
  qvg play --backend hyworldplay --image street.jpg --record street
  qvg play --backend self-forcing --pocket
  qvg play --resume results/hyworldplay/NAME""",
    "show": """
  qvg show
  qvg show results/self-forcing/NAME
  qvg show --gallery results""",
}
"""By command."""


class _Command(TyperCommand):
    """A command whose errors become a message, a hint and an exit code."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List arguments, then the options that most need, then the others by purpose and by family."""
        families = [f"Options of {name}" for name in FAMILIES]
        titles = [title for panel in PANELS for title in (families if panel == FAMILY_PANEL else [panel])]
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is None:
                continue
            panel = getattr(param, "rich_help_panel", None)
            if panel == FAMILY_PANEL:
                for family, said in family_help(param.opts[0]).items():
                    panels[f"Options of {family}"].append((record[0], said))
            else:
                kind = "Arguments" if isinstance(param, TyperArgument) else "Options"
                panels[panel or kind].append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def invoke(self, ctx: Any) -> Any:
        try:
            with stop_on_signals():
                check_environment()
                set_up(is_verbose=bool(ctx.params.get("verbose")))
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, typer.Exit | typer.TyperException | typer.Abort):
                raise
            if ctx.params.get("debug") and sys.stderr is not None:
                sys.stderr.write(visible(redact("".join(traceback.format_exception(error)))))
            stop = None if isinstance(error, QvgError) else last_stop()
            raise typer.Exit(_tell(stop or error)) from None


def _tell(error: BaseException, where: str = "") -> int:
    """Show an error; the exit code that goes with it."""
    shown = shown_error(error)
    show_error(where + "; ".join([str(shown), *getattr(error, "__notes__", ())]), shown.hint)
    return shown.exit_code


app = typer.Typer(
    name="qvg",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"qvg {__version__}")
        raise typer.Exit


@app.callback()
def qvg(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Generate long videos with autoregressive video diffusion models and a 2-bit KV cache."""


for _run in (generate, extend, batch, download, compare, plan, play, show, doctor, disk, clean):
    _shown = f"\b\nExamples:{_EXAMPLES[_run.__name__]}\n\n" if _run.__name__ in _EXAMPLES else ""
    app.command(cls=_Command, epilog=_shown + EXIT_CODES)(_run)


@app.command("help", cls=_Command, epilog=EXIT_CODES)
def help_(
    context: typer.Context,
    command: Annotated[
        str | None, typer.Argument(metavar="COMMAND", help="Name of a command.", show_default=False)
    ] = None,
) -> None:
    """Show help, for qvg or for one command."""
    assert context.parent is not None
    commands = context.parent.command.commands  # type: ignore[attr-defined]
    if command is None:
        show_data(context.parent.get_help())
        return
    if command not in commands:
        raise unknown_name("command", command, sorted(commands))
    shown = commands[command]
    show_data(shown.get_help(typer.Context(shown, info_name=command, parent=context.parent)))


def _follow(rank: int) -> int:
    """Make the videos of the first process with it; the exit code."""
    from qvg_cli.engine.follow import follow

    try:
        follow()
    except NoAnswerError:
        # The first process tells it.
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _tell(error, where=f"process {rank}: ")
    return 0


def main() -> None:
    lean_imports.begin()
    try:
        launch = find_launch()
    except UsageError as error:
        sys.exit(_tell(error))
    if launch.rank:
        sys.exit(_follow(launch.rank))
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            # Help whose reader has read enough.
            ended.code = 0
        if launch.num_processes > 1 and not ended.code:
            from qvg_cli.engine.parallel import end_others

            end_others()
        raise
    except OSError as error:
        # Help that cannot be written: what a command does is caught where it runs.
        if sys.stdout is not None:
            drop_stream(sys.stdout)
        show_error(f"cannot write to stdout: {error.strerror}")
        sys.exit(1)


def program() -> None:
    """`main` in a process of its own, ended at once: Python would take a second to take torch apart."""
    try:
        main()
    except SystemExit as ended:
        if ended.code or find_launch().num_processes > 1:
            raise
        atexit._run_exitfuncs()
        try:
            # After them, as Python does: they may print.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        except OSError:
            # Python says what it cannot write.
            raise ended from None
        os._exit(0)
