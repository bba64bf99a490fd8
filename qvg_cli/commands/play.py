"""`qvg play`: a page on this machine on which keys walk through a world."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qvg_cli.commands import options
from qvg_cli.commands.completion import complete_runs
from qvg_cli.commands.options import OUT, option, with_options
from qvg_cli.console import Console, show_data
from qvg_cli.errors import MissingModelError, UsageError
from qvg_cli.models.registry import load_config
from qvg_cli.quick_start import quick_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvg_cli.config.load import Request
    from qvg_cli.config.schema import RunConfig
    from qvg_cli.play.server import PlayServer

_DEFAULT_BACKEND = "hyworldplay"
_NEEDED = ("starlette", "uvicorn", "websockets")


@with_options
def play(
    model: options.Model,
    size: options.Size,
    family: options.PlayFamily,
    seed: options.Seed,
    cache: options.Cache,
    output: options.Output,
    prompt: str | None = typer.Argument(
        None, metavar="PROMPT", help="Prompt of the first world [default: the demo prompt of the model]."
    ),
    record: str | None = option(
        "--record NAME", "Save the walk as a run of this name [default: the first words of the prompt]."
    ),
    resume: Path | None = option(
        "--resume FOLDER", "Continue a saved walk, or any run of the same model.", complete=complete_runs
    ),
    host: str = option(
        "--host <str>",
        "Address to listen on. If other machines can reach it, the URL gets a token.",
        default="127.0.0.1",
    ),
    port: int = option(
        "--port <int range>", "Port to listen on; 0 picks a free one.", default=8000, min=0, max=65535
    ),
    no_browser: bool = option("--no-browser", "Do not open a browser."),
    out: Path = OUT,
) -> None:
    """Walk through a world in the browser.

    W A S D and the arrow keys move the camera, chunk by chunk. Models without a camera work too: a key
    continues the video, and the prompt can change at every chunk. Every walk is saved as a run when it ends,
    also with Ctrl-C: qvg generate --config with its run.yaml reproduces the video. The paths of the videos go
    to stdout.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingModelError(
            f"qvg play needs {', '.join(missing)}", hint='install with: pip install "qvg[play]"'
        )
    from qvg_cli.play.access import is_loopback, page_address

    console = Console(is_quiet=output.quiet)
    is_new = prompt is not None or model.config is not None or "--image" in family.given()
    if resume is not None and is_new:
        raise UsageError("--resume and a PROMPT, --config or --image were both given", hint="use one of them")
    if model.backend is None and model.config is None and resume is None:
        console.note(f"no --backend given: using the built-in demo model of {_DEFAULT_BACKEND}")
        model = replace(model, backend=_DEFAULT_BACKEND, pocket=True)
    request = model.request(size, family, seed, cache, prompt=prompt)
    if resume is not None:
        settings = resume / "run.yaml"
        if not settings.is_file():
            raise UsageError(f"{resume} is not the folder of a run", hint="use one that contains run.yaml")
        request = replace(request, file=settings)
    config = load_config(request).config
    with quick_start(config.device):
        from qvg_cli.play.server import listen, serve

    # Before the weights are read: a port that is taken costs no waiting.
    with listen(host, port) as listening:
        token = None if is_loopback(host) else secrets.token_urlsafe(16)
        server, first = _open(request, config, out, record, resume, console)
        address = page_address(host, listening.getsockname()[1], token)
        try:
            if token is None:
                console.note(f"play at {address}")
            else:
                console.show_secret(f"play at {address}")
            console.note("press Ctrl-C to stop; the walk is saved")
            if not no_browser:
                _open_browser(address)
            serve(server.app(first, token), listening)
        except KeyboardInterrupt:
            # The way to end it.
            pass
        finally:
            server.close()
            for run in server.player.saved:
                show_data(str(run.video))


def _open(
    request: Request,
    config: RunConfig,
    out: Path,
    record: str | None,
    resume: Path | None,
    console: Console,
) -> tuple[PlayServer, Callable[[], None]]:
    """The server, and what its player begins with."""
    from qvg_cli.device import resolve_device
    from qvg_cli.engine.engine import Engine
    from qvg_cli.engine.jobs import check_weights, plan_jobs
    from qvg_cli.engine.sources import find_start
    from qvg_cli.files import RunDir, prepare_folder
    from qvg_cli.play.server import PlayServer
    from qvg_cli.play.walk import recover
    from qvg_cli.video.io import check_encoder

    check_encoder()
    # What cannot begin is told here, not on the page; a walk has no length to speak of.
    (planned,) = plan_jobs(request, lambda text: None)
    check_weights(planned)
    device = resolve_device(config.device)
    folder = prepare_folder(out / config.backend)
    if resume is not None:
        if recover(resume, device):
            console.note(f"the walk in {resume} was interrupted; it is saved up to its last complete chunk")
        find_start(resume)
    console.note(f"loading {config.model.name} on {device}, cache {config.cache.preset}")
    engine = Engine.load_config(config, device, request)
    server = PlayServer(engine, folder, record=record, note=console.note)
    if resume is None:
        return server, server.player.begin
    return server, lambda: server.player.take_up(RunDir(resume))


def _open_browser(address: str) -> None:
    """Open a browser where there is a screen; one in a terminal would only be in the way."""
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_screen:
        import webbrowser

        webbrowser.open(address)
