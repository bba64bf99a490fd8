"""Everything a comparison leaves in its folder: compare.json, the plots and the page."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qvg_cli.comparison.quality import DIVERGENCE_DB, WINDOW_SECONDS, mean_figures
from qvg_cli.comparison.video import ComparedVideo
from qvg_cli.config.schema import RunConfig
from qvg_cli.files import write_text, write_whole
from qvg_cli.report.comparison import SCHEMA, attention_losses, variant_costs, with_baseline
from qvg_cli.report.html import comparison_page
from qvg_cli.report.plots import save_attention_plot, save_cost_plot, save_quality_plot
from qvg_cli.report.provenance import provenance
from qvg_cli.report.run_files import COMPARISON, Result
from qvg_cli.report.tables import has_attention

SIDE_BY_SIDE = "side-by-side.mp4"


@dataclass
class ComparisonWriter:
    """Collects compared videos, and writes the report on those there are.

    Attributes:
        configs: Of every variant's first video, the baseline's first.
        compared: What exactly was compared, in words.
        is_probed: Whether the baseline's runs measured what the other variants do to attention.
    """

    folder: Path
    names: Sequence[str]
    configs: Sequence[RunConfig]
    device: torch.device
    compared: str
    is_probed: bool
    _videos: list[dict[str, Any]] = field(default_factory=list)
    _memories: list[list[Any]] = field(default_factory=list)
    _pages: list[ComparedVideo] = field(default_factory=list)

    @property
    def num_videos(self) -> int:
        return len(self._videos)

    def add(
        self, config: RunConfig, side_by_side: Path, runs: Sequence[Result], video: ComparedVideo
    ) -> None:
        """Take in one video: the settings of its baseline's run, and the runs of all variants."""
        self._memories.append([run.figures for run in runs])
        self._pages.append(video)
        self._videos.append(
            {
                "prompt": config.prompt,
                "seed": config.seed,
                "side_by_side": self._relative(side_by_side),
                "arms": [
                    {"name": name, "run": self._relative(run.folder), **figures}
                    for name, run, figures in zip(self.names, runs, [{}, *video.figures], strict=True)
                ],
            }
        )

    def write(self, status: str) -> dict[str, Any]:
        """Write compare.json, whose content is returned, its plots and report.html."""
        content = self._content(status)
        write_text(self.folder / COMPARISON, json.dumps(content, indent=1) + "\n")
        write_whole(self.folder / "quality.png", lambda path: save_quality_plot(content, path))
        write_whole(self.folder / "costs.png", lambda path: save_cost_plot(content, path))
        if has_attention(content["arms"]):
            write_whole(self.folder / "attention.png", lambda path: save_attention_plot(content, path))
        write_text(self.folder / "report.html", comparison_page(self.folder, content, self._pages))
        return content

    def _content(self, status: str) -> dict[str, Any]:
        config, memory = self.configs[0], self._memories[0][0]
        taken = ("height", "width", "fps", "latent_frames", "pixel_frames", "video_seconds")
        return {
            "schema": SCHEMA,
            "status": status,
            "compared": self.compared,
            "backend": config.backend,
            "model": config.model.name,
            **{name: memory[name] for name in taken},
            "window_seconds": WINDOW_SECONDS,
            "divergence_psnr_db": DIVERGENCE_DB,
            "arms": self._variants(),
            "videos": self._videos,
            "settings": config.model_dump(mode="json", exclude={"cache"}),
            "provenance": provenance(self.device),
        }

    def _variants(self) -> list[dict[str, Any]]:
        variants = []
        baseline = [memories[0] for memories in self._memories] if self.is_probed else []
        for index, name in enumerate(self.names):
            figures = [video["arms"][index] for video in self._videos]
            variants.append(
                {
                    "name": name,
                    "cache": self.configs[index].cache.model_dump(mode="json"),
                    **variant_costs([memories[index] for memories in self._memories]),
                    "quality": mean_figures(figures) if index else None,
                    "attention": attention_losses(baseline, name) if index else None,
                }
            )
        return with_baseline(variants)

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()
