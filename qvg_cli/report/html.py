"""Pages that a person can open anywhere and send to anyone: one file each, nothing from a network, no script.

Pictures are part of the page; videos are named by their path beside it, and while one is missing its poster
shows. All text of users is escaped by the templates.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.report import tables
from qvg_cli.report.comparison import db_text, frame_time, summary_lines, window_label
from qvg_cli.report.pictures import poster_jpeg
from qvg_cli.report.run_figures import CHUNK_HEADER, chunk_rows, logit_rows, result_rows, short_rows, title_of
from qvg_cli.report.run_files import Result
from qvg_cli.report.words import short_prompt

if TYPE_CHECKING:
    from qvg_cli.comparison.video import ComparedVideo

_TEMPLATES = Environment(
    loader=PackageLoader("qvg_cli.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def run_page(run: Result) -> str:
    """The page of one run, made from the files in its folder."""
    settings = run.folder / "run.yaml"
    return _TEMPLATES.get_template("run.html").render(
        title=title_of(run.figures),
        video=_video(run.folder, run.folder / "video.mp4", run.figures),
        rows=result_rows(run),
        plot=_data_uri(run.folder / "memory.png", "image/png"),
        chunk_header=CHUNK_HEADER,
        chunks=chunk_rows(run.figures),
        layers=logit_rows(run.figures),
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else None,
    )


def comparison_page(folder: Path, comparison: Mapping[str, Any], videos: Sequence[ComparedVideo]) -> str:
    """The page of a comparison whose plots are in `folder`."""
    fps, variants = comparison["fps"], comparison["arms"]
    shown = []
    for video, compared in zip(comparison["videos"], videos, strict=True):
        stills = [
            {"time": frame_time(still.frame, fps), "picture": _encode(still.jpeg, "image/jpeg")}
            for still in compared.stills
        ]
        arms = video["arms"]
        about = {
            "title": short_prompt(video["prompt"]),
            "source": quote(video["side_by_side"]),
            "poster": stills[len(stills) // 2]["picture"],
            "stills": stills,
            "rows": tables.quality_rows([{"name": each["name"], "quality": each} for each in arms], fps),
            "runs": [(each["name"], quote(each["run"])) for each in arms],
        }
        shown.append({**video, **about})
    return _TEMPLATES.get_template("compare.html").render(
        title=f"{', '.join(variant['name'] for variant in variants[1:])} vs {variants[0]['name']}",
        comparison=comparison,
        summary=summary_lines(comparison),
        cost_header=tables.COST_HEADER,
        costs=tables.cost_rows(variants),
        quality_header=tables.quality_header(variants),
        has_lpips=tables.has_lpips(variants),
        quality=tables.quality_rows(variants, fps),
        attention_header=tables.ATTENTION_HEADER,
        attention=tables.attention_rows(variants),
        layers=tables.layer_rows(variants),
        attention_plot=_data_uri(folder / "attention.png", "image/png"),
        windows=_window_rows(comparison),
        quality_plot=_data_uri(folder / "quality.png", "image/png"),
        cost_plot=_data_uri(folder / "costs.png", "image/png"),
        videos=shown,
        settings=format_yaml(comparison["settings"]),
        caches=format_yaml({variant["name"]: variant["cache"] for variant in variants}),
        provenance=format_yaml(comparison["provenance"]),
    )


def gallery_line(root: Path, result: Result) -> dict[str, Any]:
    """What the gallery page in `root` shows of a result, with its video by a path relative to `root`."""
    relative = os.path.relpath(result.folder, root)
    has_page = (result.folder / "report.html").is_file()
    video = result.figures["videos"][0]["side_by_side"] if result.is_comparison else "video.mp4"
    return {
        "title": title_of(result.figures),
        "video": _video(root, result.folder / video, result.figures),
        "rows": short_rows(result),
        "folder": relative,
        "page": quote(os.fsencode(f"{relative}/report.html")) if has_page else None,
    }


def gallery_page(root: Path, lines: Sequence[Mapping[str, Any]], *, reload_seconds: int | None = None) -> str:
    """The page of the `gallery_line`s of results, loaded anew after some seconds while more come."""
    template, title = _TEMPLATES.get_template("gallery.html"), f"Videos in {root.resolve().name}"
    return template.render(title=title, lines=lines, reload_seconds=reload_seconds)


def _window_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """A row a window: its time, then what was measured of every variant but the baseline."""
    rows = []
    variants = comparison["arms"][1:]
    for index, window in enumerate(variants[0]["quality"]["windows"]):
        row = [window_label(window, comparison["fps"])]
        for variant in variants:
            figures = variant["quality"]["windows"][index]
            row += [db_text(figures["psnr_db"]), f"{figures['ssim']:.4f}"]
            if tables.has_lpips(comparison["arms"]):
                row.append(f"{figures['lpips']:.4f}")
        rows.append(row)
    return rows


def _video(base: Path, path: Path, figures: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Source and poster of a video for a page in `base`; `None` if there is no video."""
    if not path.is_file():
        return None
    poster = poster_jpeg(path, figures["video_seconds"])
    return {
        "source": quote(os.fsencode(Path(os.path.relpath(path, base)).as_posix())),
        "poster": _encode(poster, "image/jpeg") if poster else None,
    }


def _data_uri(path: Path, kind: str) -> str | None:
    return _encode(path.read_bytes(), kind) if path.is_file() else None


def _encode(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
