"""A planned video in, a run folder out, told to the user. What was made survives whatever stops it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.schema import RunConfig
from qvg_cli.console import Console, show_data
from qvg_cli.device import attention_words, resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.suggestions import check_memory, remedies_after
from qvg_cli.errors import Interrupted, MissingModelError, QvgError, is_out_of_memory
from qvg_cli.interrupts import hold_interrupts
from qvg_cli.logs import run_log, timed
from qvg_cli.models.text import PromptWarning
from qvg_cli.planning.cards import Card
from qvg_cli.runs.checkpoint import RunState
from qvg_cli.runs.folder import RunDir
from qvg_cli.runs.identity import identify
from qvg_cli.runs.writer import Recording
from qvg_cli.video.io import check_encoder

LOG = logging.getLogger(__name__)


def resume_video(video: Planned, run: RunDir, console: Console, *, is_json: bool) -> None:
    """Go on with a run that was cut off, from its last whole chunk.

    Raises:
        UsageError: It was another run.
        QvgError: It failed again; what was made is kept.
    """
    check_encoder()
    device = resolve_device(video.config.device)
    state = RunState.open(run.state, identify(video.config, device.type), console.note)
    try:
        warn_of_memory(video, device, console)
        engine = load(video.config, device, console)
    except BaseException:
        state.close()
        raise
    recording = Recording(video, run, device, console.note, state=state)
    make_video(recording, engine, console, is_json=is_json)


def warn_of_memory(
    video: Planned, device: torch.device, console: Console, *, name: str | None = None
) -> None:
    """Say before the wait that a video may not fit the GPU, and what would.

    Args:
        name: The variant that it belongs to; `None` for a video that is not compared.

    Raises:
        OutOfMemoryError: It needs far more than there is.
    """
    if device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)
        card = Card(torch.cuda.get_device_name(device), memory, free)
        # What is missing is told when it is loaded.
        with suppress(MissingModelError):
            if warning := check_memory(video.config, video.plan, card):
                console.note(warning if name is None else f"{name}: {warning}")


def load(config: RunConfig, device: torch.device, console: Console) -> Engine:
    """The engine of `config`, with a word to the user before the wait."""
    attention = attention_words(config, device)
    cache = cache_label(config.cache)
    console.note(f"loading {config.model.name} on {device}, cache {cache}, attention by {attention}")
    return Engine.load_config(config, device)


@contextmanager
def prompts_heard(console: Console) -> Iterator[None]:
    """Tell the user what there is to say about encoding prompts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PromptWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        console.note(text)


def read_prompts(engine: Engine, videos: Sequence[Planned], console: Console) -> None:
    """Encode every prompt of the videos at once."""
    with prompts_heard(console):
        engine.read_prompts(videos)


def make_video(
    recording: Recording,
    engine: Engine,
    console: Console,
    *,
    is_json: bool = False,
    is_shown: bool = True,
    prompt_embeds: Mapping[int, Tensor] | None = None,
) -> None:
    """Make one video into its folder, and say what was made of it, however it ends.

    Args:
        is_shown: Whether the summary and the paths are shown.
        prompt_embeds: What `Engine.encode_prompts` gave for it; `None` encodes its prompts here.

    Raises:
        Interrupted: Ctrl-C; the part made so far is in the folder.
    """
    try:
        with run_log(recording.log):
            _make_video(recording, engine, console, prompt_embeds)
    finally:
        if recording.samples and is_shown:
            console.note(recording.summary())
            show_data(json.dumps(recording.figures()) if is_json else str(recording.video_path))


def _make_video(
    recording: Recording, engine: Engine, console: Console, prompt_embeds: Mapping[int, Tensor] | None
) -> None:
    config, plan = recording.video.config, recording.video.plan
    LOG.info("video of %d frames in %d chunks: %s", plan.num_pixel_frames, len(plan.chunks), recording.log)
    try:
        if prompt_embeds is None:
            with timed("prompts"), prompts_heard(console):
                prompt_embeds = engine.encode_prompts(recording.video)
        results = engine.rollout(
            recording.video, recording, prompt_embeds=prompt_embeds, on_step=lambda: progress.step()
        )
        with console.progress(len(plan.chunks), recording.num_done) as progress:
            for result in results:
                with hold_interrupts(), timed("put away", logging.DEBUG):
                    recording.add(result)
                LOG.info("%s", recording.log_line(result))
                progress.chunk_done(recording.status_line())
        with hold_interrupts(), timed("video and reports"):
            recording.finish("complete")
    except KeyboardInterrupt:
        LOG.info("stopped with Ctrl-C")
        with hold_interrupts():
            recording.finish("interrupted")
        raise Interrupted(f"stopped; {recording.kept()}", hint=recording.remedy()) from None
    except Exception as error:
        LOG.error("failed", exc_info=error)
        try:
            recording.finish("failed")
        except QvgError as second:
            error.add_note(str(second))
        error.add_note(recording.kept())
        if remedy := recording.remedy():
            error.add_note(remedy)
        if is_out_of_memory(error):
            error.add_note(recording.memory_note())
            with suppress(QvgError):
                error.add_note(remedies_after(config, plan, is_gpu=recording.is_on_gpu))
        raise
