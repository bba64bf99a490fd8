"""Plots of a comparison: what the variants lose over the video's time, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvg_cli.plotting import new_figure
from qvg_cli.report.tables import has_lpips
from qvg_cli.report.words import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart with any colour vision (Okabe and Ito) and, by their dashes, without colour.
_COLORS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", "-.", ":")
_Draw = Callable[["Axes", Mapping[str, Any]], None]


def save_quality_plot(comparison: Mapping[str, Any], path: Path) -> None:
    """PSNR, SSIM and, if measured, LPIPS of every frame, means over the videos where there are several."""
    drawn: list[_Draw] = [_draw_psnr, _draw_ssim]
    if has_lpips(comparison["arms"]):
        drawn.append(partial(_draw_frames, name="lpips", label="LPIPS per frame", bottom=0))
    _save(path, comparison, *drawn)


def save_cost_plot(comparison: Mapping[str, Any], path: Path) -> None:
    """What the cache holds after each chunk, and how long each chunk took."""
    _save(path, comparison, _draw_cache, _draw_seconds)


def save_attention_plot(comparison: Mapping[str, Any], path: Path) -> None:
    """What packing does to attention in the chunks that were measured."""
    logits = partial(_draw_losses, name="logit_rms", times=1, label="error of logits, rms [nats]")
    shift = partial(_draw_losses, name="token_shift", times=100, label="token shift [%]")
    _save(path, comparison, logits, shift)


def _save(path: Path, comparison: Mapping[str, Any], *draw: _Draw) -> None:
    with new_figure(8, 3 * len(draw), dpi=130) as figure:
        all_axes = figure.subplots(len(draw), 1, sharex=True)
        for axes, draw_one in zip(all_axes, draw, strict=True):
            draw_one(axes, comparison)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        all_axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        all_axes[-1].set_xlabel("video time [s]")
        figure.savefig(path, format="png")


def _draw_psnr(axes: Axes, comparison: Mapping[str, Any]) -> None:
    # A gap where frames are equal: their PSNR is infinite.
    _draw_frames(axes, comparison, "psnr_db", "PSNR per frame [dB]")
    axes.axhline(comparison["divergence_psnr_db"], color="#9a9a9a", linewidth=1)
    title = f"Compared with {comparison['arms'][0]['name']}; no line where equal"
    axes.set_title(title, loc="left", fontsize=10)


def _draw_ssim(axes: Axes, comparison: Mapping[str, Any]) -> None:
    _draw_frames(axes, comparison, "ssim", "SSIM per frame")
    axes.ticklabel_format(axis="y", useOffset=False)


def _draw_frames(
    axes: Axes, comparison: Mapping[str, Any], name: str, label: str, bottom: float | None = None
) -> None:
    fps = comparison["fps"]
    for index, variant in enumerate(comparison["arms"][1:], start=1):
        videos = [video["arms"][index]["frames"][name] for video in comparison["videos"]]
        means = []
        for values in zip(*videos, strict=True):
            known = [value for value in values if value is not None]
            means.append(math.fsum(known) / len(known) if known else math.nan)
        seconds = [frame / fps for frame in range(len(means))]
        axes.plot(seconds, means, label=variant["name"], **_style(index))
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    axes.set_ylabel(label)


def _draw_losses(axes: Axes, comparison: Mapping[str, Any], name: str, times: float, label: str) -> None:
    for index, variant in enumerate(comparison["arms"]):
        if losses := variant.get("attention"):
            seconds = [chunk["pixel_frames"] / comparison["fps"] for chunk in losses["chunks"]]
            values = [times * chunk[name] for chunk in losses["chunks"]]
            axes.plot(seconds, values, marker="o", label=variant["name"], **_style(index))
    axes.set_xlim(0, 1.03 * _chunk_seconds(comparison)[-1])
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set_ylabel(label)


def _draw_cache(axes: Axes, comparison: Mapping[str, Any]) -> None:
    seconds = _chunk_seconds(comparison)
    variants = comparison["arms"]
    bf16 = [chunk["bf16_end_bytes"] for chunk in variants[0]["chunks"]]
    gray: dict[str, Any] = {"color": "#b0b0b0", "linewidth": 4}
    curves = [("BF16, same frames", bf16, gray)]
    for index, variant in enumerate(variants):
        curves.append((variant["name"], [chunk["end_bytes"] for chunk in variant["chunks"]], _style(index)))
    for label, held, style in curves:
        # What is held after a chunk is held while the next one is made.
        axes.step(seconds, [0.0, *(value / MIB for value in held)], where="post", label=label, **style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("KV cache after each chunk [MiB]")


def _draw_seconds(axes: Axes, comparison: Mapping[str, Any]) -> None:
    ends = _chunk_seconds(comparison)[1:]
    for index, variant in enumerate(comparison["arms"]):
        axes.plot(ends, [chunk["seconds"] for chunk in variant["chunks"]], marker=".", **_style(index))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("time per chunk [s]")


def _chunk_seconds(comparison: Mapping[str, Any]) -> list[float]:
    fps = comparison["fps"]
    return [0.0, *(chunk["pixel_frames"] / fps for chunk in comparison["arms"][0]["chunks"])]


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLORS[index % len(_COLORS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 1.8,
    }
