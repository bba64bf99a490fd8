"""A forecast on the terminal, 80 columns wide, and as JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from qvg_cli.config.resources import qvg_home
from qvg_cli.config.schema import RunConfig
from qvg_cli.hub.spec import read_downloads
from qvg_cli.planning.cards import MIB, Card
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.forecast import KINDS, Forecast, without_remedy
from qvg_cli.planning.ledger import total
from qvg_cli.report.tables import WIDTH, format_facts, format_table, spread
from qvg_cli.report.words import mib_text

SCHEMA = 1
_MAX_CHUNKS = 8
_BYTES_PER_PARAMETER = 2
_KIND_WORDS = {
    "transformer": "transformer",
    "VAE": "VAE",
    "text": "text states",
    "cache": "cache",
    "workspace": "attention workspace",
    "pass": "passing the transformer",
    "decoding": "VAE features and decoding",
}


@dataclass(frozen=True)
class Planning:
    """One cache of a plan.

    Attributes:
        verdict: None without a card.
        remedies: Options to the bytes that the device needs with them.
    """

    name: str
    config: RunConfig
    found: Forecast
    verdict: str | None
    remedies: Mapping[str, int]


def plan_text(plan: VideoPlan, plannings: Sequence[Planning], card: Card | None, num_videos: int) -> str:
    """Everything for a person."""
    blocks = [
        format_facts(_facts(plan, plannings, card, num_videos)),
        "Device memory in MiB at the fullest moment of each part; an estimate, but for\n"
        "the cache, which is exact:\n" + _kinds_table(plannings),
        "Device memory in MiB over the video:\n" + _time_table(plannings),
    ]
    if card is not None:
        blocks.append("\n".join(_verdict_line(planning, card) for planning in plannings))
    return "\n\n".join(blocks)


def plan_json(
    plan: VideoPlan, plannings: Sequence[Planning], card: Card | None, num_videos: int
) -> dict[str, Any]:
    """Everything for a program; bytes."""
    config = plannings[0].config
    return {
        "schema": SCHEMA,
        "backend": config.backend,
        "model": config.model.name,
        "height": plan.height,
        "width": plan.width,
        "fps": config.video.fps,
        "videos": num_videos,
        "latent_frames": plan.num_frames,
        "pixel_frames": plan.num_pixel_frames,
        "video_seconds": plan.num_pixel_frames / config.video.fps,
        "chunks": len(plan.chunks),
        "download": _download(config),
        "card": None
        if card is None
        else {"name": card.name, "memory_bytes": card.memory_bytes, "usable_bytes": card.usable_bytes},
        "caches": [_planning_json(planning) for planning in plannings],
    }


def _planning_json(planning: Planning) -> dict[str, Any]:
    found, cache = planning.found, planning.found.cache_peak
    return {
        "name": planning.name,
        "verdict": planning.verdict,
        "fits_with": dict(planning.remedies),
        "device_bytes": found.device_bytes,
        "text_stage_bytes": found.text_stage_bytes,
        "peak": {"chunk": found.peak.chunk, "bytes": found.peak.bytes_by_kind},
        "cache_peak": {
            "chunk": cache.chunk,
            "kinds": dict(sorted(cache.peak_bytes.items())),
            "bytes": total(cache.peak_bytes),
            "bf16_bytes": cache.bf16_peak_bytes,
        },
        "cache_end": {"bytes": total(found.samples[-1].end_bytes)},
        "latents_bytes": found.latents_bytes,
        "state_bytes": found.state_bytes,
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


def _facts(
    plan: VideoPlan, plannings: Sequence[Planning], card: Card | None, num_videos: int
) -> list[tuple[str, str]]:
    config, found = plannings[0].config, plannings[0].found
    seconds = plan.num_pixel_frames / config.video.fps
    video = (
        f"{plan.num_pixel_frames} frames ({plan.num_frames} latent), {plan.width} wide, {plan.height} high: "
        f"{seconds:.2f} s in {len(plan.chunks)} chunks"
    )
    states = ", ".join(
        f"{mib_text(planning.found.state_bytes)} MiB with {planning.name}" for planning in plannings
    )
    folder = (
        f"latents {mib_text(found.latents_bytes)} MiB; its state while it runs, at most: {states}; "
        "video and reports: not known"
    )
    shown = "none given and none found: --card NAME or SIZE"
    if card is not None:
        shown = (
            f"{card.name}, {mib_text(card.memory_bytes)} MiB, of which {mib_text(card.usable_bytes)} count"
        )
    return [
        ("model", config.model.name),
        ("video", video if num_videos == 1 else f"{num_videos} videos, each {video}"),
        ("download", _download_text(_download(config))),
        ("folder", folder),
        ("card", shown),
    ]


def _download(config: RunConfig) -> dict[str, Any]:
    """What is known of the download without asking the hub."""
    weights = config.model.weights
    known = read_downloads().get(weights)
    if known is None:
        return {"name": None, "is_there": True, "bytes": 0, "about_bytes": 0, "converted_bytes": 0}
    converts = [repository.convert for repository in known.config.repositories]
    converted = sum(_BYTES_PER_PARAMETER * convert.parameters for convert in converts if convert is not None)
    is_there, about_gb = (qvg_home() / weights).is_dir(), known.config.about_gb
    return {
        "name": weights,
        "is_there": is_there,
        "bytes": 0 if is_there else None,
        "about_bytes": 0 if is_there else None if about_gb is None else round(about_gb * 10**9),
        "converted_bytes": converted,
    }


def _download_text(download: Mapping[str, Any]) -> str:
    if download["name"] is None:
        return "none: the weights are built in, or in a folder"
    if download["is_there"]:
        return "none: the weights are there"
    converted = download["converted_bytes"]
    kept = f", and {mib_text(converted)} MiB for what is converted of it" if converted else ""
    about_bytes = download["about_bytes"]
    about = ("of unknown size" if about_bytes is None else f"about {about_bytes / 10**9:.3g} GB") + kept
    return f"{about}; qvg download {download['name']} --dry-run asks for the size"


def _kinds_table(plannings: Sequence[Planning]) -> str:
    rows = [["reading prompts, before all else"]]
    rows[0] += [mib_text(planning.found.text_stage_bytes) for planning in plannings]
    for kind in KINDS:
        values = [mib_text(planning.found.peak.bytes_by_kind[kind]) for planning in plannings]
        rows.append([f"  {_KIND_WORDS[kind]}", *values])
    rows.append(
        ["together, prompts read", *(mib_text(planning.found.peak.total_bytes) for planning in plannings)]
    )
    rows.append(["most at any moment", *(mib_text(planning.found.device_bytes) for planning in plannings)])
    rows.append(["in chunk", *(str(planning.found.peak.chunk + 1) for planning in plannings)])
    cached = [planning.found.cache_peak for planning in plannings]
    ratios = [
        f"{sample.bf16_peak_bytes / held:.2f}x" if (held := total(sample.peak_bytes)) else "-"
        for sample in cached
    ]
    rows.append(["cache under BF16", *ratios])
    return format_table(("", *(planning.name for planning in plannings)), rows)


def _time_table(plannings: Sequence[Planning]) -> str:
    moments = plannings[0].found.moments
    rows = [["prompts", "0", *(mib_text(planning.found.text_stage_bytes) for planning in plannings)]]
    for index in spread(len(moments), _MAX_CHUNKS):
        cells = [mib_text(planning.found.moments[index].total_bytes) for planning in plannings]
        rows.append([f"chunk {index + 1}", str(moments[index].num_frames), *cells])
    return format_table(("", "frames", *(planning.name for planning in plannings)), rows)


def _verdict_line(planning: Planning, card: Card) -> str:
    needed, usable = planning.found.device_bytes / MIB, card.usable_bytes / MIB
    line = f"{planning.name}: {planning.verdict}, {needed:.0f} of {usable:.0f} MiB"
    if planning.verdict == "fits":
        return line
    if not planning.remedies:
        return fill(f"{line}; {without_remedy(planning.found, card.usable_bytes)}", WIDTH)
    fits = [f"  {options} ({count / MIB:.0f} MiB)" for options, count in planning.remedies.items()]
    return "\n".join([f"{line}; it would fit with", *fits])
