"""A forecast on the terminal and as JSON. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.resources import matrices_file, qvg_home
from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.suggestions import Trial, forecast_run, verdict
from qvg_cli.hub.spec import read_download
from qvg_cli.models.registry import family_of
from qvg_cli.planning.cards import Card, find_card, parse_card
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.planning.forecast import KINDS, Forecast, is_for_gpu, no_suggestion
from qvg_cli.planning.ledger import total
from qvg_cli.planning.time_forecast import CARD, RATES, decoding_seconds, transformer_seconds
from qvg_cli.report.tables import format_facts, format_table, spread, terminal_width
from qvg_cli.report.words import memory_text, mib_text

SCHEMA = 1
_MAX_CHUNKS = 8
_DURATION = ("card", "transformer_seconds", "decoding_seconds")
_KIND_WORDS = {
    "transformer": "transformer weights",
    "VAE": "VAE weights",
    "text": "text K/V (cross-attention)",
    "cache": "KV cache",
    "workspace": "attention workspace",
    "pass": "transformer activations",
    "decoding": "VAE activations",
}


@dataclass(frozen=True)
class CacheForecast:
    """What a video needs with one cache.

    Attributes:
        forecast: Bytes over the video, of the device and of the run's folder.
        verdict: "fits", "tight" or "does not fit"; `None` without a card.
        suggestions: Options with which it would fit, to the bytes that the device needs then.
        others: The same of each GPU but the first, where several make the video together.
        duration: On one GPU: the card, the transformer's seconds and the VAE's; `None` if that is not known.
    """

    name: str
    config: RunConfig
    forecast: Forecast
    verdict: str | None
    suggestions: Mapping[str, int]
    others: Forecast | None = None
    duration: tuple[str, float, float] | None = None


@dataclass(frozen=True)
class Plan:
    """What a video needs before it is made; printed, it is the text of `qvg plan`.

    Attributes:
        caches: One for each cache that was asked for.
        card: That it has to fit; `None` where there is none.
        num_videos: That are planned alike.
        num_gpus: That make the video together; the first, which also decodes, is the one of `forecast`.
    """

    video: VideoPlan
    caches: tuple[CacheForecast, ...]
    card: Card | None
    num_videos: int = 1
    num_gpus: int = 1

    @property
    def chunks(self) -> tuple[ChunkPlan, ...]:
        return self.video.chunks

    @property
    def forecast(self) -> Forecast:
        """Bytes over the video, with the first cache."""
        return self.caches[0].forecast

    @property
    def verdict(self) -> str | None:
        """Whether it fits the card with the first cache: "fits", "tight" or "does not fit"."""
        return self.caches[0].verdict

    @property
    def suggestions(self) -> Mapping[str, int]:
        """Options with which the first cache would fit, to the bytes that the device needs then."""
        return self.caches[0].suggestions

    def __str__(self) -> str:
        blocks = [
            format_facts(_facts(self)),
            "Peak GPU memory [MiB]; the KV cache is exact, the rest an estimate:\n"
            + _kinds_table(self.caches),
            "GPU memory over the video [MiB]:\n" + _time_table(self.caches),
        ]
        if self.num_gpus > 1:
            blocks.append("\n".join(_others_line(cache, self.num_gpus) for cache in self.caches))
        if self.card is not None:
            blocks.append("\n".join(_verdict_line(cache, self.card) for cache in self.caches))
        return "\n\n".join(blocks)

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """Everything for a program; bytes."""
        config, plan, card = self.caches[0].config, self.video, self.card
        names = ("name", "memory_bytes", "usable_bytes")
        return {
            "schema": SCHEMA,
            "backend": config.backend,
            "model": config.model.name,
            "height": plan.height,
            "width": plan.width,
            "fps": config.video.fps,
            "decoder": config.video.decoder,
            "videos": self.num_videos,
            "gpus": self.num_gpus,
            "latent_frames": plan.num_frames,
            "pixel_frames": plan.num_pixel_frames,
            "video_seconds": plan.num_pixel_frames / config.video.fps,
            "chunks": len(plan.chunks),
            "download": _download(config),
            "card": card and {name: getattr(card, name) for name in names},
            "caches": [_cache_json(cache) for cache in self.caches],
        }


def make_plan(videos: Sequence[Planned], card: str | None, *, num_videos: int = 1, num_gpus: int = 1) -> Plan:
    """The plan of the same video with each of several caches.

    Args:
        card: A name or a size; `None` takes the card of this machine, if it has one.
        num_videos: That are planned alike.
        num_gpus: Such cards that make the video together.
    """
    found = parse_card(card) if card is not None else find_card()
    if videos[0].config.device == "cpu":
        found = None
    caches = tuple(_forecast_cache(video, found, num_gpus) for video in videos)
    return Plan(videos[0].plan, caches, found, num_videos, num_gpus)


def _forecast_cache(video: Planned, card: Card | None, num_gpus: int) -> CacheForecast:
    config, plan = video.config, video.plan
    is_gpu = is_for_gpu(config, has_card=card is not None)
    found = forecast_run(config, plan, is_gpu=is_gpu, num_processes=num_gpus)
    others = None
    if num_gpus > 1:
        others = forecast_run(config, plan, is_gpu=is_gpu, num_processes=num_gpus, is_first=False)
    said = None if card is None else verdict(found, card)
    suggestions = {}
    if card is not None and said != "fits":
        suggestions = Trial(card.usable_bytes, is_gpu, num_gpus).find(config, plan)
    duration, name = None, CARD if card is None else card.name
    if is_gpu and name in RATES and num_gpus == 1:
        sizes = family_of(config).sizes(config, is_gpu=True)
        seconds = transformer_seconds(config, plan, sizes, name)
        duration = (name, round(seconds, 1), round(decoding_seconds(plan, sizes, name), 1))
    return CacheForecast(cache_label(config.cache), config, found, said, suggestions, others, duration)


def _cache_json(cache: CacheForecast) -> dict[str, Any]:
    found, peak = cache.forecast, cache.forecast.cache_peak
    return {
        "name": cache.name,
        "verdict": cache.verdict,
        "fits_with": dict(cache.suggestions),
        "device_bytes": found.device_bytes,
        "others_device_bytes": None if cache.others is None else cache.others.device_bytes,
        "text_stage_bytes": found.text_stage_bytes,
        "peak": {"chunk": found.peak.chunk, "bytes": found.peak.bytes_by_kind},
        "cache_peak": {
            "chunk": peak.chunk,
            "kinds": dict(sorted(peak.peak_bytes.items())),
            "bytes": total(peak.peak_bytes),
            "bf16_bytes": peak.bf16_peak_bytes,
        },
        "cache_end": {"bytes": total(found.samples[-1].end_bytes)},
        "latents_bytes": found.latents_bytes,
        "state_bytes": found.state_bytes,
        "host_bytes": found.host_bytes,
        "transformer_seconds": {CARD: round(found.transformer_seconds, 1)},
        "duration": cache.duration and dict(zip(_DURATION, cache.duration, strict=True)),
        "over_time": [
            {
                "chunk": moment.chunk,
                "pixel_frames": moment.num_frames,
                "is_decoding": moment.is_decoding,
                "bytes": moment.bytes_by_kind,
            }
            for moment in found.moments
        ],
    }


def _duration_text(caches: Sequence[CacheForecast]) -> str:
    """How long the video takes on one GPU, in words."""
    known = [(cache.name, *cache.duration) for cache in caches if cache.duration is not None]
    if not known:
        return "not known for this GPU"
    each = ", ".join(f"{model + vae:.0f} s with {name}" for name, _, model, vae in known)
    _, card, _, vae = known[0]
    basis = "from rates measured there" if card == CARD else "not measured there"
    return f"about {each} on one {card} ({vae:.0f} s of it decoding; {basis}), without start-up and compiling"


def _facts(planned: Plan) -> list[tuple[str, str]]:
    plan, card, num_videos, count = planned.video, planned.card, planned.num_videos, planned.num_gpus
    config, found = planned.caches[0].config, planned.forecast
    seconds, chunks = plan.num_pixel_frames / config.video.fps, len(plan.chunks)
    video = (
        f"{plan.width}x{plan.height}, {plan.num_pixel_frames} frames ({plan.num_frames} latent) at "
        f"{config.video.fps} fps, {seconds:.2f} s in {chunks} chunk{'s' if chunks != 1 else ''}"
    )
    states = ", ".join(f"{memory_text(each.forecast.state_bytes)} ({each.name})" for each in planned.caches)
    latents = memory_text(found.latents_bytes)
    folder = f"latents {latents}; checkpoint while it runs, at most {states}; plus video and reports"
    shown = 'no GPU found; pass --gpu "RTX 4090" or --gpu 24GiB to check the fit'
    if card is not None:
        usable = memory_text(card.usable_bytes)
        shown = f"{card.name}, {memory_text(card.memory_bytes)}, of which {usable} are usable"
    return [
        ("model", config.model.name),
        ("video", video if num_videos == 1 else f"{num_videos} videos, each {video}"),
        *([("decoder", config.video.decoder)] if config.video.decoder != "vae" else []),
        ("download", _download_text(_download(config))),
        ("disk", folder),
        *[
            ("matrices", f"{matrices}, {memory_text(matrices_file(matrices).stat().st_size)} with the model")
            for matrices in dict.fromkeys(each.config.cache.matrices for each in planned.caches)
            if matrices is not None
        ],
        ("GPU", shown),
        *([("GPUs", f"{count}; the tables are for the first one, which decodes")] if count > 1 else []),
        *([("time", _duration_text(planned.caches))] if count == 1 else []),
        ("host", f"at most about {memory_text(found.host_bytes)} of CPU memory"),
    ]


def _download(config: RunConfig) -> dict[str, Any]:
    """What is known of the download without asking the hub."""
    weights = config.model.weights
    known = read_download(weights)
    if known is None:
        return {"name": None, "is_there": True, "bytes": 0, "about_bytes": 0, "converted_bytes": 0}
    is_there, about_gb = (qvg_home() / weights).is_dir(), known.config.about_gb
    return {
        "name": weights,
        "is_there": is_there,
        "bytes": 0 if is_there else None,
        "about_bytes": 0 if is_there else None if about_gb is None else round(about_gb * 10**9),
        "converted_bytes": known.config.converted_bytes,
    }


def _download_text(download: Mapping[str, Any]) -> str:
    if download["name"] is None:
        return "none: built-in weights, or a local folder"
    if download["is_there"]:
        return "none: already downloaded"
    converted = download["converted_bytes"]
    kept = f", plus {memory_text(converted)} for the converted checkpoint" if converted else ""
    about_bytes = download["about_bytes"]
    about = ("of unknown size" if about_bytes is None else f"about {about_bytes / 10**9:.3g} GB") + kept
    return f"{about}; qvg download {download['name']} --dry-run shows the exact size"


def _kinds_table(caches: Sequence[CacheForecast]) -> str:
    rows = [["text encoder (before generation)"]]
    rows[0] += [mib_text(cache.forecast.text_stage_bytes) for cache in caches]
    for kind in KINDS:
        values = [mib_text(cache.forecast.peak.bytes_by_kind[kind]) for cache in caches]
        if set(values) != {"0.00"}:
            rows.append([f"  {_KIND_WORDS[kind]}", *values])
    rows.append(["total (generation)", *(mib_text(cache.forecast.peak.total_bytes) for cache in caches)])
    rows.append(["peak", *(mib_text(cache.forecast.device_bytes) for cache in caches)])
    rows.append(["peak at chunk", *(str(cache.forecast.peak.chunk + 1) for cache in caches)])
    cached = [cache.forecast.cache_peak for cache in caches]
    held = [(sample.bf16_peak_bytes, total(sample.peak_bytes)) for sample in cached]
    ratios = [f"{bf16 / packed:.2f}x" if packed else "-" for bf16, packed in held]
    rows.append(["KV-cache compression vs BF16", *ratios])
    return format_table(("", *(cache.name for cache in caches)), rows)


def _time_table(caches: Sequence[CacheForecast]) -> str:
    moments = caches[0].forecast.moments
    rows = [["text encoder", "0", *(mib_text(cache.forecast.text_stage_bytes) for cache in caches)]]
    for index in spread(len(moments), _MAX_CHUNKS):
        cells = [mib_text(cache.forecast.moments[index].total_bytes) for cache in caches]
        rows.append([f"chunk {index + 1}", str(moments[index].num_frames), *cells])
    return format_table(("", "frames", *(cache.name for cache in caches)), rows)


def _others_line(cache: CacheForecast, num_gpus: int) -> str:
    """What there is to know of the GPUs after the first, and of all together."""
    assert cache.others is not None
    held = num_gpus * total(cache.forecast.cache_peak.peak_bytes)
    return fill(
        f"{cache.name}: every other GPU needs at most {memory_text(cache.others.device_bytes)}; "
        f"KV cache of all {num_gpus} GPUs {memory_text(held)}; transformer on {num_gpus} {CARD} about "
        f"{cache.forecast.transformer_seconds:.3g} s (estimated; not known for other GPUs)",
        terminal_width(),
    )


def _verdict_line(cache: CacheForecast, card: Card) -> str:
    needed, usable = memory_text(cache.forecast.device_bytes), memory_text(card.usable_bytes)
    line = f"{cache.name}: {cache.verdict}, {needed} of {usable}"
    if cache.verdict == "fits":
        return line
    if not cache.suggestions:
        return fill(f"{line}; {no_suggestion(cache.forecast, card.usable_bytes)}", terminal_width())
    fits = [f"  {options} ({memory_text(count)})" for options, count in cache.suggestions.items()]
    return "\n".join([f"{line}; it would fit with", *fits])
