"""A loaded model: the one place that joins plan, cache, prompts, noise, decoder and loop to a video."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self

import diffusers
import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache, open_cache
from qvg_cli.cache.probe import Probe, keys_alone
from qvg_cli.config.load import Layer, Request, make_request, option_layers, setting_layers
from qvg_cli.config.schema import CacheConfig, RunConfig
from qvg_cli.console import Console
from qvg_cli.device import make_current, resolve_device
from qvg_cli.engine.jobs import Planned, plan_jobs
from qvg_cli.engine.opening import Opening, load_latents, open_video
from qvg_cli.engine.parallel import NoDecoder, Parallel, SharedDecoder, start
from qvg_cli.engine.rollout import ChunkResult, Done, rollout, seeded_noise
from qvg_cli.engine.session import Session
from qvg_cli.engine.sources import Start, find_start
from qvg_cli.engine.video import Video
from qvg_cli.errors import UsageError
from qvg_cli.logs import timed
from qvg_cli.models.base import Pipeline
from qvg_cli.models.registry import check_keywords, family_of, load_config, load_pipeline, model_calls
from qvg_cli.planning.chunks import VideoPlan, prompt_begins
from qvg_cli.planning.ledger import total
from qvg_cli.planning.prompts import ScheduledPrompt
from qvg_cli.video.io import Frames


class Recorder(Protocol):
    """What keeps a video while it is made."""

    def begin(self, cache: KVCache) -> Done | None:
        """Start to keep it, or fill the empty `cache` with what an earlier process has kept; returns that."""

    def show_clip(self, frames: Frames) -> None:
        """Take frames `[n, height, width, 3]` uint8 of the clip that the video begins with."""


class Turn(AbstractContextManager[None]):
    """Lets one thread at a time use a model, with its device as the thread's current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        make_current(self._device)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Engine:
    """One loaded model, its settings, which are the defaults of its videos, and what they were resolved from.

    Several processes may make its videos together.

    Attributes:
        turn: Held while something is made; other threads wait for it.
    """

    def __init__(
        self,
        config: RunConfig,
        pipeline: Pipeline,
        device: torch.device,
        request: Request | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.config = config
        self.pipeline = pipeline
        self.device = device
        self._request = request or Request(backend=config.backend)
        self.parallel = parallel
        self.turn = Turn(device)
        if parallel is not None:
            pipeline.share(parallel.tokens, parallel.rows)

    @classmethod
    def load(
        cls,
        backend: str | None = None,
        *,
        pocket: bool = False,
        cache: str | None = None,
        device: str | None = None,
        file: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load the weights of a model.

        Args:
            backend: Name of the model, such as "self-forcing"; `None` with `pocket` or `file`, or for the
                built-in model.
            pocket: Use the small weights that ship with the package.
            cache: Preset of the cache, such as "int2" or "bf16".
            device: "auto", "cpu", "cuda" or "cuda:N".
            file: A YAML file of settings, such as a run's run.yaml.
            settings: Settings by their dotted names, such as `{"sampler.window": 12}`.

        Raises:
            UsageError: A setting is unknown or has an impossible value.
            MissingModelError: The weights are not there or not whole.

        Example:
            >>> engine = Engine.load(pocket=True, cache="int2")
        """
        request = make_request(
            backend, pocket=pocket, cache=cache, device=device, file=file, settings=settings
        )
        config = load_config(request).config
        return cls.load_config(config, resolve_device(config.device), request)

    @classmethod
    def load_config(
        cls,
        config: RunConfig,
        device: torch.device,
        request: Request | None = None,
        parallel: Parallel | None = None,
    ) -> Self:
        """Load the weights that a resolved configuration names, in every process of torchrun's."""
        # Its loading bars and advice would stand among our own lines.
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        make_current(device)
        parallel = parallel or start(config, device)
        with timed("model"):
            pipeline = load_pipeline(config, device)
        return cls(config, pipeline, device, request, parallel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        segments: int | None = None,
        seed: int | None = None,
        schedule: Mapping[float, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: bool = False,
        on_chunk: Callable[[ChunkResult], None] = lambda chunk: None,
        **options: Any,
    ) -> Video:
        """Generate a video.

        Args:
            prompt: Text prompt; `None` takes the one of the settings.
            seconds: Length, rounded up to a whole chunk.
            frames: Length in pixel frames, instead of `seconds`.
            segments: Number of segments after the first clip (LongCat-Video).
            seed: Seed of the noise and the codecs.
            schedule: Later prompts, by the second at which each starts.
            settings: Other settings by their dotted names, such as `{"video.fps": 24}`.
            progress: Show a bar, in a terminal or a notebook.
            on_chunk: Called with every chunk when it is complete.
            options: Options of the model's family, such as `pose="w-8"` or `window=12`.

        Raises:
            UsageError: The request does not fit the model; the message names the nearest that does.

        Example:
            >>> video = engine.generate("a large red ball bounces on grass", seconds=2, seed=1)
            >>> video.save("ball.mp4")
        """
        check_keywords(Engine.generate, options)
        length = {"seconds": seconds, "frames": frames, "segments": segments}
        planned, notes = self._plan(prompt, seed, settings, options, length, schedule)
        return self._make(planned, notes, on_chunk, progress=progress)

    def extend(
        self,
        video: str | Path,
        prompt: str | None = None,
        *,
        seconds: float | None = None,
        frames: int | None = None,
        segments: int | None = None,
        seed: int | None = None,
        schedule: Mapping[float, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: bool = False,
        on_chunk: Callable[[ChunkResult], None] = lambda chunk: None,
        **options: Any,
    ) -> Video:
        """Go on from a video: the new one has its frames and then new ones.

        Args:
            video: The folder of a run, whose latents are used, so that nothing is lost; or any video file.
            prompt: What comes next; `None` takes the last one of the run.
            seconds: And `frames` and `segments`: what is added; `schedule` counts from there. All else is
                as for `generate`.

        Raises:
            UsageError: The model cannot go on from it.

        Example:
            >>> longer = engine.extend("results/self-forcing/NAME", seconds=5)
        """
        check_keywords(Engine.extend, options)
        start, length = find_start(Path(video)), {"seconds": seconds, "frames": frames, "segments": segments}
        planned, notes = self._plan(prompt, seed, settings, options, length, schedule, start)
        return self._make(planned, notes, on_chunk, progress=progress)

    def session(
        self,
        prompt: str | None = None,
        *,
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
        on_step: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Session:
        """Begin a video that has no end yet; its chunks are those of `generate`, bit for bit.

        Args:
            prompt: Text prompt; `None` takes the one of the settings.
            seed: Seed of the noise and the codecs.
            settings: Other settings by their dotted names.
            on_step: Called after every model call; what it raises ends the session.
            options: Options of the model's family, such as `image="street.jpg"` or `window=12`.

        Raises:
            UsageError: The request does not fit the model.

        Example:
            >>> session = engine.session("a large red ball bounces on grass", seed=1)
            >>> chunk = session.step()
        """
        check_keywords(Engine.session, options)
        self._refuse_several()
        planned, _ = self._plan(prompt, seed, settings, options, {})
        config = planned.config
        if config.prompt_changes:
            raise UsageError("a session takes no schedule", hint="pass each new prompt to step()")
        planner = family_of(config).open_planner(config)
        with self.turn:
            return Session(config, self.pipeline.with_config(config), planner, self.turn, on_step=on_step)

    def take_up(self, run: str | Path, *, on_step: Callable[[], None] = lambda: None) -> Session:
        """Go on with a run as with a session, after its last frame and with its own settings.

        Args:
            run: Its folder.
            on_step: Called after every model call; what it raises ends the session.

        Raises:
            UsageError: There is no such run, it is of another model, or it cannot go on.

        Example:
            >>> session = engine.take_up("results/hyworldplay/NAME")
            >>> chunk = session.step(pose="w-4")
        """
        self._refuse_several()
        start = find_start(Path(run))
        if start.run is None:
            raise UsageError(f"{run} is not the folder of a run", hint="qvg extend continues any video")
        config = load_config(Request(file=start.run.config)).config
        config = config.model_copy(update={"device": self.config.device, "memory": self.config.memory})
        if (config.backend, config.model) != (self.config.backend, self.config.model):
            raise UsageError(
                f"{run} was made with {config.model.name}, but {self.config.model.name} is loaded",
                hint=f"load {config.backend} to continue it",
            )
        if config.source is not None and config.source.image is None:
            raise UsageError(f"{run} continues another video", hint="use qvg extend")
        planner = family_of(config).open_planner(config)
        made = load_latents(start.run.latents, config.video.frames, planner.geometry)
        pipeline = self.pipeline.with_config(config)
        with self.turn:
            return Session(config, pipeline, planner, self.turn, made=made, on_step=on_step)

    def rollout(
        self,
        video: Planned,
        recorder: Recorder | None = None,
        *,
        prompt_embeds: Mapping[int, Tensor] | None = None,
        others: Mapping[str, CacheConfig] | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Iterator[ChunkResult]:
        """Begin a planned video, whose chunks are made as they are asked for.

        Args:
            recorder: Keeps it, and knows what of it is there.
            prompt_embeds: What `encode_prompts` gave for it; `None` encodes its prompts here.
            others: Caches by name whose losses are measured on the keys of this one, which are exact.
            on_step: Called after every model call.
        """
        make_current(self.device)
        config, plan, parallel = video.config, video.plan, self.parallel
        pipeline = self.pipeline.with_config(config)
        is_first = parallel is None or parallel.rank == 0
        if parallel is not None and is_first:
            parallel.begin(video)
        if prompt_embeds is None and is_first:
            with timed("prompts"):
                prompt_embeds = self.encode_prompts(video)
        if parallel is not None:
            prompt_embeds = parallel.share_tensors(prompt_embeds)
        assert prompt_embeds is not None
        begins = sorted(prompt_embeds)
        cache = open_cache(config.cache, plan, pipeline.cache_shape, config.seed)
        probe = None
        if others and parallel is None:
            packed = {
                name: open_cache(keys_alone(other), plan, pipeline.cache_shape, config.seed)
                for name, other in others.items()
            }
            probe = Probe(cache, packed, config.seed)
        denoiser = pipeline.denoiser(cache, family_of(config).planner(config), prompt_embeds[0], config.seed)
        done = None if recorder is None else recorder.begin(cache)
        show_clip = (lambda frames: None) if recorder is None else recorder.show_clip
        if is_first:
            opening = open_video(config, plan, pipeline, denoiser.device, show_clip)
        if parallel is not None:
            done = _share_done(parallel, done, plan, cache)
            context, num_shown = parallel.share_tensors(
                (opening.context, opening.num_shown) if is_first else None
            )
            decoder = SharedDecoder(opening.decoder, parallel) if is_first else NoDecoder(parallel)
            opening = Opening(decoder, context, num_shown)
        results = rollout(
            plan.chunks[len(done.chunks) if done else 0 :],
            denoiser,
            opening.decoder,
            seeded_noise(plan, config.seed, pipeline.latents_dtype, denoiser.device),
            prompt_at=lambda index: prompt_embeds[max(begin for begin in begins if begin <= index)],
            context=opening.context,
            num_shown=opening.num_shown,
            done=done,
            probe=probe,
            on_step=on_step,
        )
        return results if parallel is None else parallel.make(results)

    def read_prompts(self, videos: Sequence[Planned]) -> None:
        """Encode every prompt of the videos at once, so that the text encoder is loaded once."""
        self.pipeline.read_prompts([prompt for video in videos for prompt in _prompts(video.config)])

    def encode_prompts(self, video: Planned) -> Mapping[int, Tensor]:
        """The embeddings of a video's prompts, by the index of the chunk that each begins with."""
        self.read_prompts([video])
        begins = prompt_begins(video.plan, [change.frame for change in video.config.prompt_changes])
        prompts = _prompts(video.config)
        return {
            begin: self.pipeline.encode_prompt(prompt)
            for begin, prompt in zip((0, *begins), prompts, strict=True)
        }

    def request(
        self,
        prompt: str | None = None,
        *,
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        file: Path | None = None,
    ) -> Request:
        """What a video of this model asks for, its own settings over those that the model was loaded with."""
        layers = list(self._request.options)
        if prompt is not None:
            layers.append(Layer("prompt", {"prompt": prompt}))
        if seed is not None:
            layers.append(Layer("seed", {"seed": seed}))
        layers += setting_layers(settings or {})
        layers += option_layers(options or {})
        return replace(self._request, file=file or self._request.file, options=layers)

    def check(self, config: RunConfig) -> None:
        """Make sure that the loaded model can make a video of `config`; `UsageError` if it needs another."""
        for name in ("model", "memory", "device"):
            if getattr(config, name) != getattr(self.config, name):
                raise UsageError(
                    f"settings of {name} are fixed when the model is loaded", hint="pass them to Engine.load"
                )

    def _refuse_several(self) -> None:
        if self.parallel is not None:
            raise UsageError("a session runs in one process", hint="start it without torchrun")

    def _make(
        self,
        planned: Planned,
        notes: tuple[str, ...],
        on_chunk: Callable[[ChunkResult], None],
        *,
        progress: bool,
    ) -> Video:
        clip = _Clip()
        results: list[ChunkResult] = []
        num_frames = 0
        calls = model_calls(planned.config, planned.plan)
        with self.turn, Console(is_quiet=not progress).progress(calls) as bar:
            for result in self.rollout(planned, clip, on_step=bar.step):
                for part in results[-1].pixels if results else ():
                    part.wait()
                results.append(result)
                num_frames += result.num_frames
                held = total(result.memory.end_bytes) / 2**20
                bar.chunk_done(f"{num_frames} frames, KV cache {held:.2f} MiB")
                on_chunk(result)
        return Video.of(planned.config, results, notes, clip.parts)

    def _plan(
        self,
        prompt: str | None,
        seed: int | None,
        settings: Mapping[str, Any] | None,
        family_options: Mapping[str, Any],
        length: Mapping[str, Any],
        schedule: Mapping[float, str] | None = None,
        start: Start | None = None,
    ) -> tuple[Planned, tuple[str, ...]]:
        # A run goes on with its own settings unless others are given.
        file = start.settings_for(self.config.backend) if start is not None else None
        request = self.request(prompt, seed=seed, settings=settings, options=family_options, file=file)
        notes: list[str] = []
        later = [
            ScheduledPrompt(text, "seconds", begin, f"schedule[{begin:g}]")
            for begin, text in (schedule or {}).items()
        ]
        (planned,) = plan_jobs(request, notes.append, schedule=later or None, start=start, **length)
        self.check(planned.config)
        return planned, tuple(notes)


def _prompts(config: RunConfig) -> list[str]:
    return [config.prompt, *(change.prompt for change in config.prompt_changes)]


def _share_done(parallel: Parallel, done: Done | None, plan: VideoPlan, cache: KVCache) -> Done | None:
    """What the first process has found of the video, in every process."""
    shared = parallel.share_tensors(
        None if done is None else (len(done.chunks), done.latents, done.has_history)
    )
    if shared is None:
        return None
    num_chunks, latents, has_history = shared
    chunks = plan.chunks[:num_chunks]
    if has_history and parallel.rank:
        # Nothing is left of it, else each would compute its part again.
        cache.restore(chunks, [()] * len(cache.layers), [{}] * len(cache.layers))
    return Done(chunks, latents, has_history)


class _Clip:
    """Keeps the frames of the clip that a video in memory begins with."""

    def __init__(self) -> None:
        self.parts: list[Frames] = []

    def begin(self, cache: KVCache) -> None:
        return None

    def show_clip(self, frames: Frames) -> None:
        self.parts.append(frames)
