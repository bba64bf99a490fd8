"""The run itself: a planned video in, a run folder out. What was made survives whatever stops it."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import diffusers
import torch
import transformers
from torch import Tensor

from qvg_cli.backends.base import Pipeline
from qvg_cli.backends.loading import attention_words
from qvg_cli.backends.pair import GuidedPipeline, check_devices, lead
from qvg_cli.backends.registry import load_pipeline
from qvg_cli.backends.text import PromptWarning
from qvg_cli.cache_settings import cache_label
from qvg_cli.cards import Card
from qvg_cli.commands.jobs import Planned
from qvg_cli.commands.opening import open_video
from qvg_cli.commands.recording import Recording
from qvg_cli.commands.remedies import check_memory, remedies_after
from qvg_cli.config import RunConfig
from qvg_cli.console import Console, show_data
from qvg_cli.device import resolve_device
from qvg_cli.errors import MissingModelError, QvgError, interruption, is_out_of_memory
from qvg_cli.interrupts import Stopped, choose_moments, hold_interrupts, stop_if_asked
from qvg_cli.launch import find_launch
from qvg_cli.logs import run_log, timed
from qvg_cli.plan import prompt_begins
from qvg_cli.resume.identity import identify
from qvg_cli.resume.state import RunState
from qvg_cli.rollout import rollout
from qvg_cli.run_dir import RunDir
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
        pipeline = load(video.config, device, console)
    except BaseException:
        state.close()
        raise
    recording = Recording(video, run, device, state=state)
    make_and_show(recording, run, pipeline, console, is_json=is_json)


def warn_of_memory(
    video: Planned, device: torch.device, console: Console, *, name: str | None = None
) -> None:
    """Say before the wait that a video may not fit the GPU, and what would.

    Args:
        name: Of the arm that it belongs to; none for a video that is not compared.

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


def load(config: RunConfig, device: torch.device, console: Console) -> Pipeline:
    """The pipeline of `config`, with a word to the user before the wait."""
    attention = attention_words(config, device)
    cache = cache_label(config.cache)
    console.note(f"loading {config.model.name} on {device}, cache {cache}, attention by {attention}")
    return open_pipeline(config, device, console)


def open_pipeline(config: RunConfig, device: torch.device, console: Console) -> Pipeline:
    """The pipeline of `config`, in this process, or also in a second one where torchrun has started it.

    Raises:
        UsageError: The processes that torchrun has started cannot make this run.
    """
    launch = find_launch(os.environ)
    launch.check(config)
    check_devices(device, launch)
    quiet_libraries()
    with timed("model"):
        pipeline = load_pipeline(config, device)
    if launch.num_processes == 1:
        return pipeline
    console.note("two processes: each computes one row of the guidance, with a cache of its own")
    return lead(cast(GuidedPipeline, pipeline), config, device, launch)


def load_to_follow(config: RunConfig, device: torch.device) -> GuidedPipeline:
    """The pipeline of `config` in a second process, which says nothing."""
    quiet_libraries()
    return cast(GuidedPipeline, load_pipeline(config, device))


def make_and_show(
    recording: Recording, run: RunDir, pipeline: Pipeline, console: Console, *, is_json: bool
) -> None:
    """Make one video, and say what was made of it, however it ends."""
    try:
        make_video(recording, pipeline, console)
    finally:
        if recording.samples:
            console.note(recording.summary())
            show_data(json.dumps(recording.figures()) if is_json else str(run.video))


def quiet_libraries() -> None:
    """Keep the loading bars and advice of the model libraries out of our own lines."""
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def encode_prompt(pipeline: Pipeline, prompt: str, console: Console) -> Tensor:
    """The prompt's text states; says so if the model reads only a part of it."""
    with _heard(console):
        return pipeline.encode_prompt(prompt)


def read_prompts(pipeline: Pipeline, videos: Sequence[Planned], console: Console) -> None:
    """Let the pipeline read every prompt of the videos at once."""
    prompts = []
    for video in videos:
        prompts += [video.config.prompt, *(change.prompt for change in video.config.prompt_changes)]
    with _heard(console):
        pipeline.read_prompts(prompts)


@contextmanager
def _heard(console: Console) -> Iterator[None]:
    """Tell the user what there is to say about reading prompts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PromptWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        console.note(text)


def encode_prompts(pipeline: Pipeline, video: Planned, console: Console) -> Mapping[int, Tensor]:
    """The text states of a video's prompts, by the index of the chunk that each begins with."""
    read_prompts(pipeline, [video], console)
    begins = prompt_begins(video.plan, [change.frame for change in video.config.prompt_changes])
    prompts = [video.config.prompt, *(change.prompt for change in video.config.prompt_changes)]
    return {
        begin: encode_prompt(pipeline, prompt, console)
        for begin, prompt in zip((0, *begins), prompts, strict=True)
    }


def make_video(
    recording: Recording,
    pipeline: Pipeline,
    console: Console,
    *,
    prompt_embeds: Mapping[int, Tensor] | None = None,
) -> None:
    """Make one video into its folder.

    Args:
        prompt_embeds: See `encode_prompts`; none encodes them here.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the part made so far is in the folder.
    """
    with run_log(recording.log):
        _make_video(recording, pipeline, console, prompt_embeds)


def _make_video(
    recording: Recording, pipeline: Pipeline, console: Console, prompt_embeds: Mapping[int, Tensor] | None
) -> None:
    config, plan = recording.video.config, recording.video.plan
    LOG.info("video of %d frames in %d chunks: %s", plan.num_pixel_frames, len(plan.chunks), recording.log)
    try:
        if prompt_embeds is None:
            with timed("prompts"):
                prompt_embeds = encode_prompts(pipeline, recording.video, console)
        changes = {begin: embeds for begin, embeds in prompt_embeds.items() if begin}
        session = pipeline.start(plan, prompt_embeds[0], config.seed, changes)
        noise = pipeline.noise(plan, config.seed)
        done = recording.begin(session.cache, console.note)
        opening = open_video(config, plan, pipeline, session.device, recording.show_clip)
        num_done = 0 if done is None else done.num_chunks
        with choose_moments(), console.progress(len(plan.chunks), num_done) as progress:

            def end_step() -> None:
                progress.step()
                stop_if_asked(in_chunk=True)

            for result in rollout(
                plan,
                session,
                opening.decoder,
                noise,
                context=opening.context,
                num_shown=opening.num_shown,
                done=done,
                on_step=end_step,
            ):
                with hold_interrupts(), timed("put away", logging.DEBUG):
                    recording.add(result, session.cache)
                LOG.info("%s", recording.log_line(result))
                progress.chunk_done(recording.status_line())
                if result.chunk.index + 1 < len(plan.chunks):
                    stop_if_asked()
        with hold_interrupts(), timed("video and reports"):
            recording.finish("complete")
    except KeyboardInterrupt as stop:
        LOG.info("stopped by %s", stop if isinstance(stop, Stopped) else "Ctrl-C")
        with hold_interrupts():
            recording.finish("interrupted")
        raise interruption(stop, f"stopped; {recording.kept()}", hint=recording.remedy()) from None
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
