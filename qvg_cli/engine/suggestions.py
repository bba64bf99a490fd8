"""The first settings with which a video fits a card, each tried with the same forecast. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qvg_cli.config.cache_presets import take_preset
from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.lengths import given_pixel_frames, shorter_lengths
from qvg_cli.errors import OutOfMemoryError, UsageError
from qvg_cli.models.registry import family_of, plan_video
from qvg_cli.planning.cards import MIB, Card
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.forecast import Forecast, forecast, no_suggestion
from qvg_cli.planning.ledger import total

_PRESETS = ("int4", "int3", "int2", "trit", "bit1")
"""Smaller caches to try, the closest to BF16 first."""
_Changes = Sequence[tuple[str, str | bool]]
_CHANGES: _Changes = (
    ("vae", "model"),
    ("transformer", "model"),
    ("weights", "fp8"),
    ("transformer", "group"),
)
"""Places for weights, settings of `memory`, the cheapest in time first."""
_CHANGES_OF_SEVERAL: _Changes = (("vae", "model"), ("weights_sharded", True))
"""The same for several processes, whose GPUs are beside each other."""
_TOO_MUCH = 1.25
"""A run is refused where it needs more than so many times all of a card's memory: no estimate is as wrong."""


def check_processes(config: RunConfig, num_processes: int) -> tuple[int, int]:
    """How many processes share the guidance, and how many the tokens of a call; or a `UsageError`."""
    if config.memory.weights_sharded and num_processes == 1:
        raise UsageError(
            "memory.weights_sharded=true needs several processes, and this is one",
            hint="start it with torchrun (qvg plan: --gpus N), or set memory.weights_sharded=false",
        )
    if num_processes == 1:
        return 1, 1
    heads = family_of(config).sizes(config, is_gpu=False).heads
    num_rows = config.num_rows if num_processes % config.num_rows == 0 else 1
    if num_processes < 1 or heads % (num_processes // num_rows):
        divisors = [count for count in range(1, heads + 1) if heads % count == 0]
        possible = sorted({count * rows for rows in (1, config.num_rows) for count in divisors} - {1})
        raise UsageError(
            f"{num_processes} processes cannot share the {heads} attention heads of {config.model.name}",
            hint=f"start {', '.join(map(str, possible))}",
        )
    return num_rows, num_processes // num_rows


def forecast_run(
    config: RunConfig, plan: VideoPlan, *, is_gpu: bool, num_processes: int = 1, is_first: bool = True
) -> Forecast:
    """What a run needs of the device, the disk and the download.

    Args:
        num_processes: That make the video together; what one of them needs is told.
        is_first: Whether it is the one that reads prompts and makes pixels.
    """
    sizes = family_of(config).sizes(config, is_gpu=is_gpu)
    num_rows, num_parts = check_processes(config, num_processes)
    return forecast(config, plan, sizes.share(num_rows, num_parts, is_first=is_first), is_gpu=is_gpu)


def verdict(found: Forecast, card: Card) -> str:
    """Whether a run fits: "fits", "tight" where it needs what a plan does not count on, or "does not fit"."""
    if found.device_bytes <= card.usable_bytes:
        return "fits"
    return "tight" if found.device_bytes <= card.memory_bytes else "does not fit"


@dataclass(frozen=True)
class Trial:
    """Tries settings against a limit, for several processes that make the video together.

    Attributes:
        has_text: Whether prompts are still to be read.
    """

    limit_bytes: int
    is_gpu: bool
    num_processes: int = 1
    has_text: bool = True

    def find(self, config: RunConfig, plan: VideoPlan) -> dict[str, int]:
        """Options with which a video stays within the limit, to the bytes that it needs then.

        The first smaller cache, the first place for weights or else both, and the longest video.
        """
        found: dict[str, int] = {}
        known = _CHANGES if self.num_processes == 1 else _CHANGES_OF_SEVERAL
        smaller = list(_smaller_caches(config, plan, self))
        places = list(_places(config, known)) if self.is_gpu else []
        for choices in (smaller, places):
            found |= self.first(choices, plan)
        if not found and self.is_gpu:
            both = [(f"{cache} {p}", moved) for cache, small in smaller for p, moved in _places(small, known)]
            found = self.first(both, plan)
        return found | self.longest(config, plan)

    def in_words(self, config: RunConfig, plan: VideoPlan, found: Forecast) -> str:
        """The same for a message; `found` is what the run needs as it is."""
        suggestions = self.find(config, plan)
        if not suggestions:
            return no_suggestion(found, self.limit_bytes, has_text=self.has_text)
        tried = ", or ".join(f"{options} ({needed / MIB:.0f} MiB)" for options, needed in suggestions.items())
        return f"settings that need less: {tried}"

    def forecast(self, config: RunConfig, plan: VideoPlan) -> Forecast:
        return forecast_run(config, plan, is_gpu=self.is_gpu, num_processes=self.num_processes)

    def needed(self, config: RunConfig, plan: VideoPlan) -> int:
        """Bytes at the fullest moment that is still to come."""
        found = self.forecast(config, plan)
        return found.device_bytes if self.has_text else found.peak.total_bytes

    def first(self, choices: Sequence[tuple[str, RunConfig]], plan: VideoPlan) -> dict[str, int]:
        """The first choice within the limit, if any."""
        for options, config in choices:
            needed = self.needed(config, plan)
            if needed <= self.limit_bytes:
                return {options: needed}
        return {}

    def longest(self, config: RunConfig, plan: VideoPlan) -> dict[str, int]:
        """The longest shorter video within the limit, if any; a longer one never needs less."""
        shorter = shorter_lengths(config, plan)
        low, high, found = 0, len(shorter), dict[str, int]()
        while low < high:
            middle = (low + high) // 2
            cut = plan_video(shorter[middle])
            needed = self.needed(shorter[middle], cut)
            if needed <= self.limit_bytes:
                new_frames = cut.num_pixel_frames - given_pixel_frames(config)
                found = {f"--frames {new_frames}": needed}
                low = middle + 1
            else:
                high = middle
        return found


def check_memory(config: RunConfig, plan: VideoPlan, card: Card, num_processes: int = 1) -> str | None:
    """What to tell before a run that may not fit such a card a process; `None` if it fits.

    `OutOfMemoryError` if it needs far more than the card has.
    """
    found = forecast_run(config, plan, is_gpu=True, num_processes=num_processes)
    if verdict(found, card) == "fits":
        return None
    if found.device_bytes == found.text_stage_bytes:
        what = "the text encoder"
    else:
        what = f"chunk {found.peak.chunk + 1} of {len(plan.chunks)}"
    message = (
        f"{what} needs about {found.device_bytes / MIB:.0f} MiB of GPU memory (estimated); "
        f"{card.usable_bytes / MIB:.0f} of the {card.memory_bytes / MIB:.0f} MiB on {card.name} are usable"
    )
    suggestions = Trial(card.usable_bytes, True, num_processes).in_words(config, plan, found)
    # Not for the text stage: a prompt that was read before needs none.
    if found.peak.total_bytes > _TOO_MUCH * card.memory_bytes:
        raise OutOfMemoryError(message, hint=suggestions)
    return f"{message}; {suggestions}"


def suggestions_after(config: RunConfig, plan: VideoPlan, *, is_gpu: bool, num_processes: int = 1) -> str:
    """What to try after a run that ran out of memory, whatever its forecast was."""
    found = forecast_run(config, plan, is_gpu=is_gpu, num_processes=num_processes)
    # A tenth less than what was too much; prompts have been read.
    limit_bytes = int(0.9 * found.peak.total_bytes)
    return Trial(limit_bytes, is_gpu, num_processes, has_text=False).in_words(config, plan, found)


def _smaller_caches(config: RunConfig, plan: VideoPlan, trial: Trial) -> Iterator[tuple[str, RunConfig]]:
    now = trial.forecast(config, plan)
    for preset in _PRESETS:
        smaller = config.model_copy(update={"cache": take_preset(config.cache, preset)})
        try:
            peak = trial.forecast(smaller, plan).cache_peak
        except UsageError:
            # A head size that cannot be packed.
            return
        if total(peak.peak_bytes) < total(now.cache_peak.peak_bytes):
            yield f"--cache {preset}", smaller


def _places(config: RunConfig, known: _Changes) -> Iterator[tuple[str, RunConfig]]:
    """Every place alone, then each together with those before it."""
    changes = [(name, value) for name, value in known if getattr(config.memory, name) != value]
    together = [changes[:count] for count in range(2, len(changes) + 1)]
    for chosen in [*([change] for change in changes), *together]:
        # Of two places of one part the later counts.
        places = dict(chosen)
        options = " ".join(f"--set memory.{name}={str(value).lower()}" for name, value in places.items())
        yield options, config.model_copy(update={"memory": config.memory.model_copy(update=places)})
