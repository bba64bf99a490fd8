"""A planned video becomes a run, and the user is told. What was made survives whatever stops it."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.schema import CacheConfig, RunConfig
from qvg_cli.console import Console
from qvg_cli.device import attention_words
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.suggestions import check_memory, suggestions_after
from qvg_cli.environment import find_launch
from qvg_cli.errors import MissingModelError, QvgError, interruption, is_out_of_memory
from qvg_cli.interrupts import Stopped, choose_moments, hold_interrupts, stop_if_asked
from qvg_cli.logs import run_log, timed
from qvg_cli.models.registry import model_calls
from qvg_cli.models.text import PromptWarning
from qvg_cli.planning.cards import Card
from qvg_cli.runs.run import Run

LOG = logging.getLogger(__name__)


def warn_of_memory(
    video: Planned, device: torch.device, console: Console, *, name: str | None = None
) -> None:
    """Say before the wait that a video may not fit the GPU, by the `name` of its variant, and what would."""
    if device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)
        card = Card(torch.cuda.get_device_name(device), memory, free)
        # What is missing is told when it is loaded.
        with suppress(MissingModelError):
            if warning := check_memory(video.config, video.plan, card, find_launch().num_processes):
                console.note(warning if name is None else f"{name}: {warning}")


def load(config: RunConfig, device: torch.device, console: Console) -> Engine:
    """The engine of `config`, with a word to the user before the wait."""
    attention = attention_words(config, device)
    cache = cache_label(config.cache)
    if config.cache.matrices is not None:
        cache += f" with the matrices {config.cache.matrices}"
    console.note(f"loading {config.model.name} on {device}, cache {cache}, attention: {attention}")
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


def make_video(
    run: Run,
    engine: Engine,
    console: Console,
    *,
    on_end: Callable[[Run], None] = lambda run: None,
    prompt_embeds: Mapping[int, Tensor] | None = None,
    others: Mapping[str, CacheConfig] | None = None,
) -> None:
    """Make one video into its folder, and say what was made of it, however it ends.

    Args:
        on_end: Called with the run in the end, if anything was made.
        prompt_embeds: What `Engine.encode_prompts` gave for it; `None` encodes its prompts here.
        others: As `Engine.rollout` has it.
    """
    plan = run.video.plan
    with run_log(run.folder.log):
        LOG.info(
            "video of %d frames in %d chunks: %s", plan.num_pixel_frames, len(plan.chunks), run.folder.log
        )
        try:
            if prompt_embeds is None:
                with run.summary.times.measure("text"), timed("prompts"), prompts_heard(console):
                    prompt_embeds = engine.encode_prompts(run.video)

            def end_step() -> None:
                progress.step()
                stop_if_asked(in_chunk=True)

            results = engine.rollout(
                run.video, run, prompt_embeds=prompt_embeds, others=others, on_step=end_step
            )
            num_done = run.summary.resumed_after or 0
            calls = model_calls(run.video.config, plan)
            with choose_moments(), console.progress(calls, num_done) as progress:
                for result in results:
                    with hold_interrupts():
                        run.add(result)
                    progress.chunk_done(run.summary.status_line())
                    if result.chunk.index + 1 < len(plan.chunks):
                        stop_if_asked()
            with hold_interrupts():
                run.finish("complete")
        except KeyboardInterrupt as stop:
            LOG.info("stopped by %s", stop if isinstance(stop, Stopped) else "Ctrl-C")
            with hold_interrupts():
                run.finish("interrupted")
            raise interruption(stop, f"stopped; {run.kept()}", hint=run.suggestion()) from None
        except Exception as error:
            # torchrun ends all when one process has failed, and may be faster than the files.
            with hold_interrupts():
                LOG.error("failed", exc_info=error)
                _keep(run, error)
            raise
        finally:
            with hold_interrupts():
                if run.summary.records:
                    console.note(str(run.summary))
                    on_end(run)


def _keep(run: Run, error: Exception) -> None:
    """Keep what was made before `error`, and add to it what the user needs to know."""
    try:
        run.finish("failed")
    except Exception as second:
        error.add_note(str(second))
    error.add_note(run.kept())
    if suggestion := run.suggestion():
        error.add_note(suggestion)
    if is_out_of_memory(error):
        error.add_note(run.summary.memory_note())
        with suppress(QvgError):
            error.add_note(
                suggestions_after(
                    run.video.config,
                    run.video.plan,
                    is_gpu=run.device.type == "cuda",
                    num_processes=find_launch().num_processes,
                )
            )
