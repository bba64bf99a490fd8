"""Measure the pocket LongCat: what the detector finds in its clips, and what shows where a clip goes on.

    python -m scripts.pocket.evaluate_longcat --weights qvg_cli/data/pocket --out build/evaluation

Prompts come from the held-out combinations of the grammar. Each way of sampling makes the same base clips,
from the same noise, and goes on from them segment by segment as the pipeline does: the newest frames are
encoded again, and what comes after them is decoded behind them. Rendered clips are gone on from as well,
where it is known what comes next. Writes report.json, table.md, the prompts and contact sheets: a row a clip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor

from qvg_cli.models.longcat.model import open_longcat
from qvg_cli.models.longcat.pipeline import DISTILLED_ADAPTER
from qvg_cli.models.longcat.schedule import (
    Schedule,
    distilled_schedule,
    guided_schedule,
    guided_schedule_with_tail,
)
from qvg_cli.models.vae import StreamingDecoder, encode_frames
from qvg_cli.models.wan.lora import Lora
from qvg_cli.planning.chunks import pixel_frames
from scripts.pocket.distill import SHIFT, STEPS
from scripts.pocket.evaluate import (
    SEED,
    SHEET_COLUMNS,
    draw_specs,
    judge,
    make_templates,
    render_clips,
    to_bytes,
)
from scripts.pocket.longcat import (
    CONDITION_FRAMES,
    GUIDANCE,
    NEW_FRAMES,
    WINDOW_FRAMES,
    Prompts,
    WindowForward,
    sample,
)
from scripts.pocket.prompts import Grammar
from scripts.pocket.scenes import HEIGHT, WIDTH, make_scenes
from scripts.pocket.training import autocast, psnr
from scripts.pocket.windows import TextReader

GUIDED_STEPS = 20
BASE_PIXEL_FRAMES = pixel_frames(WINDOW_FRAMES)
SEGMENT_PIXEL_FRAMES = 4 * NEW_FRAMES
# Frames of the second kind of sheet, counted from the first of a segment.
AROUND_JOINT = (-4, -1, 0, 3)


@dataclass(frozen=True)
class Way:
    """One way of sampling; `guidance` is none for the distilled one."""

    name: str
    start: Schedule
    continuation: Schedule
    guidance: float | None


def guided_way(steps: int, guidance: float) -> Way:
    """Two rows a step."""
    name = f"guided, {steps} steps, scale {guidance:g}"
    return Way(name, guided_schedule(steps, SHIFT), guided_schedule_with_tail(steps, SHIFT), guidance)


def distilled_way() -> Way:
    """One row a step, with the adapter."""
    schedule = distilled_schedule(STEPS, SHIFT)
    return Way(f"distilled, {len(STEPS)} steps", schedule, schedule, None)


class Maker:
    """Clips of one way of sampling, many at a time; pixels are in -1 .. 1 and never rounded."""

    def __init__(self, weights: Path, way: Way, device: torch.device) -> None:
        adapters = [Lora(weights / DISTILLED_ADAPTER)] if way.guidance is None else []
        model = open_longcat(weights / "dit", adapters).load(dtype=torch.float32, device=device)
        self.forward, self.way, self.device = WindowForward(model), way, device
        self.vae = AutoencoderKLWan.from_pretrained(weights / "vae").float().to(device).eval()
        reader = TextReader(weights, device)
        self.read, self.empty = reader.read, reader.read([""])

    def latents(self, texts: list[str], seed: int, condition: Tensor | None = None) -> Tensor:
        """A window's new frames, `[B, 16, F, h, w]`."""
        frames = WINDOW_FRAMES if condition is None else NEW_FRAMES
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(texts), 16, frames, HEIGHT // 8, WIDTH // 8, generator=generator)
        negative = None
        if self.way.guidance is not None:
            states, mask = self.empty.states, self.empty.mask
            negative = Prompts(states.expand(len(texts), -1, -1), mask.expand(len(texts), -1))
        with autocast(self.device):
            return sample(
                self.forward,
                self.way.start if condition is None else self.way.continuation,
                noise.to(self.device),
                self.read(texts),
                condition=condition,
                negative=negative,
                guidance=self.way.guidance or 1.0,
            )

    @torch.no_grad()
    def start(self, texts: list[str], seed: int) -> Tensor:
        """Base clips `[B, 3, T, H, W]`."""
        latents = self.latents(texts, seed)
        with autocast(self.device):
            return StreamingDecoder(self.vae).decode_float(latents).float()

    @torch.no_grad()
    def go_on(self, shown: Tensor, texts: list[str], seed: int) -> Tensor:
        """The frames of one segment after `shown`."""
        newest = shown[:, :, -pixel_frames(CONDITION_FRAMES) :]
        with autocast(self.device):
            condition = encode_frames(self.vae, newest, torch.Generator().manual_seed(seed))
        latents, decoder = self.latents(texts, seed, condition), StreamingDecoder(self.vae)
        with autocast(self.device):
            decoder.decode_float(condition)
            return decoder.decode_float(latents).float()


def jumps(video: np.ndarray, joints: list[int]) -> dict[str, float]:
    """Mean change of a pixel from frame to frame, in levels, of `[B, T, H, W, 3]` bytes: elsewhere and at the
    frames `joints`, and how many joints change more than the most that the same clip changes elsewhere."""
    steps = np.stack(
        [
            np.abs(video[:, t].astype(np.int16) - video[:, t - 1]).mean(axis=(1, 2, 3))
            for t in range(1, video.shape[1])
        ],
        axis=1,
    )
    at = np.array(joints) - 1
    inside = np.delete(steps, at, axis=1)
    return {
        "inside": round(float(inside.mean()), 2),
        "at_joints": round(float(steps[:, at].mean()), 2),
        "joints": int(steps[:, at].size),
        "joints_above_all_inside": int((steps[:, at] > inside.max(axis=1, keepdims=True)).sum()),
    }


class Evaluation:
    """The clips that all ways of sampling are asked for, and how they are judged."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        grammar, generator = Grammar.load(), torch.Generator().manual_seed(SEED)
        self.arguments, self.device = arguments, device
        self.specs = draw_specs(grammar, arguments.clips, [], generator)
        self.prompts = [grammar.sample_prompt(spec, generator) for spec in self.specs]
        scenes = make_scenes(self.specs[: arguments.checks], generator).to(device)
        self.truth = render_clips(scenes, BASE_PIXEL_FRAMES, start=200) * 2 - 1
        self.judge = partial(judge, templates=make_templates(device), processes=arguments.processes)

    def measure(self, way: Way) -> dict[str, Any]:
        """Make and judge all clips of one way; their contact sheets are written."""
        maker, arguments = Maker(self.arguments.weights, way, self.device), self.arguments
        video = self._in_batches(lambda part, seed: maker.start(self.prompts[part], seed))
        found: dict[str, Any] = {"base": self.judge(to_bytes(video / 2 + 0.5), self.specs)}
        joints = [BASE_PIXEL_FRAMES + n * SEGMENT_PIXEL_FRAMES for n in range(arguments.segments)]
        for joint in joints:
            shown = video.to(self.device)
            after = self._in_batches(
                lambda part, seed, shown=shown, joint=joint: maker.go_on(
                    shown[part], self.prompts[part], seed + 1000 * joint
                )
            )
            video = torch.cat([video, after], dim=2)
        frames = to_bytes(video / 2 + 0.5)
        if joints:
            found["end"] = self.judge(frames[:, -BASE_PIXEL_FRAMES:], self.specs)
            found["jumps"] = jumps(frames, joints)
            found["psnr_to_true_continuation"] = self._truth_psnr(maker)
        self._write_sheets(frames[: arguments.rows], joints, way)
        return found

    def _in_batches(self, make: Callable[[slice, int], Tensor]) -> Tensor:
        size = self.arguments.batch
        lows = range(0, len(self.prompts), size)
        return torch.cat([make(slice(low, low + size), SEED + low).cpu() for low in lows])

    def _truth_psnr(self, maker: Maker) -> float:
        """How near the segment after a rendered clip is to what the renderer shows there, in dB."""
        given, count = pixel_frames(CONDITION_FRAMES), len(self.truth)
        after = maker.go_on(self.truth[:, :, :given], self.prompts[:count], SEED)
        pairs = zip(self.truth[:, :, given:], after, strict=True)
        return round(float(np.mean([psnr(true / 2 + 0.5, made / 2 + 0.5) for true, made in pairs])), 2)

    def _write_sheets(self, frames: np.ndarray, joints: list[int], way: Way) -> None:
        name = way.name.replace(",", "").replace(" ", "-")
        even = np.linspace(0, frames.shape[1] - 1, SHEET_COLUMNS).astype(int)
        write_sheet(frames[:, even], self.arguments.out / f"{name}.png")
        if joints:
            around = [joint + step for joint in joints for step in AROUND_JOINT]
            write_sheet(frames[:, around], self.arguments.out / f"{name}-joints.png")


def write_sheet(videos: np.ndarray, path: Path) -> None:
    """Clips `[B, T, H, W, 3]` as rows, all their frames beside each other."""
    rows = [np.concatenate(list(clip), axis=1) for clip in videos]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def table(report: dict[str, Any]) -> str:
    """A report as Markdown: what was found of the clips, then what shows at their joints."""
    lines = ["| | pairs | color | shape | motion | all three |", "|---|---|---|---|---|---|"]
    parts = {"base": "base clip", "end": "end, after the segments"}
    for way, found in report.items():
        for key, name in parts.items():
            if key in found:
                counts = [found[key]["clips"], *found[key]["found"].values()]
                lines.append(f"| {way}: {name} | {' | '.join(map(str, counts))} |")
    lines += ["", "| | change a frame | at joints | above all others of the clip | PSNR to the truth |"]
    lines.append("|---|---|---|---|---|")
    for way, found in report.items():
        if "jumps" in found:
            jump = found["jumps"]
            above = f"{jump['joints_above_all_inside']} of {jump['joints']}"
            values = [jump["inside"], jump["at_joints"], above, found["psnr_to_true_continuation"]]
            lines.append(f"| {way} | {' | '.join(map(str, values))} |")
    return "\n".join(lines) + "\n"


def evaluate(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluation, begin = Evaluation(arguments, device), time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "prompts.txt").write_text("\n".join(evaluation.prompts) + "\n", encoding="utf-8")
    ways = [guided_way(steps, scale) for steps in arguments.guided_steps for scale in arguments.guidance]
    if arguments.distilled:
        ways.insert(1, distilled_way())
    report: dict[str, Any] = {}
    for way in ways:
        report[way.name] = evaluation.measure(way)
        (arguments.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        (arguments.out / "table.md").write_text(table(report), encoding="utf-8")
        part = report[way.name]
        shown = {key: part[key]["found"] for key in ("base", "end") if key in part}
        print(f"{time.monotonic() - begin:6.1f} s  {way.name}: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="folder with dit/, lora/, vae/, ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=100, help="prompt/seed pairs")
    parser.add_argument("--segments", type=int, default=2, help="segments after each base clip")
    parser.add_argument("--checks", type=int, default=20, help="rendered clips to go on from")
    parser.add_argument("--guided-steps", type=int, nargs="*", default=[GUIDED_STEPS])
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE], help="scales to try")
    parser.add_argument("--distilled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch", type=int, default=100, help="clips made together")
    parser.add_argument("--processes", type=int, default=8, help="processes of the detector")
    parser.add_argument("--rows", type=int, default=8, help="clips on a contact sheet")
    arguments = parser.parse_args()
    for name in ("clips", "checks", "batch", "processes", "rows"):
        if (count := getattr(arguments, name)) < 1:
            parser.error(f"--{name} {count} is below 1")
    evaluate(arguments)


if __name__ == "__main__":
    main()
