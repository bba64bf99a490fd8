"""Measure a pocket checkpoint: reconstruction, and what a scripted detector finds in generated clips.

    python -m scripts.pocket.evaluate --weights qvg_cli/data/pocket --out build/evaluation

Prompts come from the held-out combinations of the grammar, noise from seeds that training does not use. The
detector is checked first on true renders of the same scenes and on their VAE reconstructions. Writes
report.json, table.md and contact sheets: a row a clip, `SHEET_COLUMNS` frames spread over its length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from scripts.pocket.causal import rollout
from scripts.pocket.detect import Blob, Finding, detect, find_blob
from scripts.pocket.latents import tokenize
from scripts.pocket.prompts import Grammar, SceneSpec
from scripts.pocket.scenes import CAMERAS, HEIGHT, SHAPES, WIDTH, Scenes, make_scenes, render
from scripts.pocket.text import encode_text
from scripts.pocket.training import autocast, psnr
from scripts.pocket.vae import denormalize_latents

SEED = 987_654
CLIP_FRAMES = 21
# The decoder's feature caches settle on these latent frames before the ones that are judged.
SETTLE_FRAMES = 7
SHEET_COLUMNS = 6
# Seconds of a rollout -> its latent frames, and what it is called in the table.
ROLLOUTS = {5: (CLIP_FRAMES, "5-second videos"), 60: (240, "last 5 seconds of 60-second videos")}


class Checkpoint:
    """Stock models of one checkpoint folder, in the precision of evaluation."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.vae = AutoencoderKLWan.from_pretrained(folder / "vae").float().to(device).eval()
        self.transformer = (
            WanTransformer3DModel.from_pretrained(folder / "transformer").float().to(device).eval()
        )
        self.text_encoder = (
            UMT5EncoderModel.from_pretrained(folder / "text_encoder").float().to(device).eval()
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    @torch.no_grad()
    def generate(self, prompts: list[str], frames: int, seed: int) -> Tensor:
        """Normalised latents `[B, 16, frames, h, w]`, one rollout for all prompts."""
        text = encode_text(self.text_encoder, tokenize(self.tokenizer, prompts).to(self.device))
        generator = torch.Generator().manual_seed(seed)
        with autocast(self.device):
            return rollout(
                self.transformer,
                text,
                frames=frames,
                height=HEIGHT // 8,
                width=WIDTH // 8,
                generator=generator,
            )

    @torch.no_grad()
    def decode(self, latents: Tensor, *, batch: int = 10) -> np.ndarray:
        """Decode normalised latents to `[B, T, H, W, 3]` uint8."""
        clips = []
        for part in latents.split(batch):
            with autocast(self.device):
                video = self.vae.decode(denormalize_latents(self.vae, part)).sample.float()
            clips.append(to_bytes(video / 2 + 0.5))
        return np.concatenate(clips)

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Encode and decode `[B, 3, T, H, W]` in [0, 1] in fp32."""
        mean = self.vae.encode(video * 2 - 1).latent_dist.mode()
        return self.vae.decode(mean).sample / 2 + 0.5


def to_bytes(video: Tensor) -> np.ndarray:
    return (video.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()


def render_clips(scenes: Scenes, frames: int, *, start: int = 0) -> Tensor:
    """True pixels `[B, 3, frames, H, W]` from pixel frame `start` on."""
    device = scenes.phase.device
    times = (start + torch.arange(frames, device=device)).float()[None]
    return torch.cat([render(scenes[i : i + 1], times) for i in range(len(scenes.phase))])


def make_templates(device: torch.device) -> dict[str, list[Blob]]:
    """Outlines of every shape from renders at all sizes and cameras."""
    templates: dict[str, list[Blob]] = {}
    generator = torch.Generator().manual_seed(SEED + 1)
    for shape in SHAPES:
        specs = [
            SceneSpec(size, "red", shape, "rest", "grass", "day", camera)
            for size in ("small", "large")
            for camera in CAMERAS
        ]
        frames = to_bytes(render_clips(make_scenes(specs, generator).to(device), 2, start=40))
        blobs = [find_blob(frame.astype(np.float32) / 255) for clip in frames for frame in clip]
        templates[shape] = [blob for blob in blobs if blob is not None]
    return templates


def judge(
    videos: np.ndarray, specs: list[SceneSpec], templates: dict[str, list[Blob]], processes: int
) -> dict:
    """Number of clips in which each concept, and all three, are found; and the clips that miss one."""
    run = partial(detect, templates=templates)
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
            findings: list[Finding] = list(pool.map(run, videos, chunksize=2))
    else:
        findings = [run(video) for video in videos]
    hits = {
        concept: [getattr(f, concept) == getattr(s, concept) for f, s in zip(findings, specs, strict=True)]
        for concept in ("color", "shape", "motion")
    }
    rates = {concept: sum(values) for concept, values in hits.items()}
    rates["all"] = sum(all(values) for values in zip(*hits.values(), strict=True))
    misses = [
        {"clip": i, "named": vars(spec), "found": vars(finding)}
        for i, (spec, finding) in enumerate(zip(specs, findings, strict=True))
        if not all(values[i] for values in hits.values())
    ]
    return {"clips": len(specs), "found": rates, "misses": misses}


def table(report: dict) -> str:
    """The rollouts of a report as a Markdown table."""
    lines = ["| | pairs | color | shape | motion | all three |", "|---|---|---|---|---|---|"]
    for seconds, (_, name) in ROLLOUTS.items():
        if part := report.get(f"generated_{seconds}_seconds"):
            counts = [part["clips"], *part["found"].values()]
            lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"


def any_scene_is_left(grammar: Grammar, without: list[str]) -> bool:
    """Whether some held-out scene of promised values has none of the values `without`."""
    kept = [[value for value in values if value not in without] for values in grammar.concepts.values()]
    return any(SceneSpec(*values).is_held_out for values in itertools.product(*kept))


def draw_specs(
    grammar: Grammar, count: int, without: list[str], generator: torch.Generator
) -> list[SceneSpec]:
    """Held-out scenes of promised values that have none of the values `without`; one must be left."""
    specs: list[SceneSpec] = []
    while len(specs) < count:
        spec = grammar.sample_spec(generator, held_out=True)
        if not set(vars(spec).values()) & set(without):
            specs.append(spec)
    return specs


def contact_sheet(videos: np.ndarray, path: Path) -> None:
    """Write clips as rows of frames spread evenly over their length."""
    columns = np.linspace(0, videos.shape[1] - 1, SHEET_COLUMNS).astype(int)
    rows = [np.concatenate(list(clip[columns]), axis=1) for clip in videos]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def evaluate(arguments: argparse.Namespace) -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grammar, generator = Grammar.load(), torch.Generator().manual_seed(SEED)
    specs = draw_specs(grammar, arguments.clips, arguments.without, generator)
    prompts = [grammar.sample_prompt(spec, generator) for spec in specs]
    checkpoint, templates = Checkpoint(arguments.weights, device), make_templates(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    score = partial(judge, templates=templates, processes=arguments.processes)
    report: dict = {}
    start = time.monotonic()

    def note(name: str, value: object) -> None:
        report[name] = value
        (arguments.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        shown = value["found"] if isinstance(value, dict) and "found" in value else value
        print(f"{time.monotonic() - start:6.1f} s  {name}: {shown}", flush=True)

    if "reconstruction" in arguments.parts:
        count = min(arguments.checks, len(specs))
        scenes = make_scenes(specs[:count], generator).to(device)
        truth = render_clips(scenes, 4 * (CLIP_FRAMES - 1) + 1, start=200)
        again = torch.cat([checkpoint.reconstruct(clip) for clip in truth.split(2)])
        note(
            "reconstruction_psnr",
            round(float(np.mean([psnr(t, a) for t, a in zip(truth, again, strict=True)])), 2),
        )
        note("detector_on_renders", score(to_bytes(truth), specs[:count]))
        note("detector_on_reconstructions", score(to_bytes(again), specs[:count]))
    for seconds, (frames, _) in ROLLOUTS.items():
        if str(seconds) not in arguments.parts:
            continue
        batches = [prompts[i : i + arguments.batch] for i in range(0, len(prompts), arguments.batch)]
        latents = torch.cat([checkpoint.generate(b, frames, SEED + i) for i, b in enumerate(batches)])
        tail = latents[:, :, -(CLIP_FRAMES + SETTLE_FRAMES) :]
        videos = checkpoint.decode(tail)[:, -(4 * (CLIP_FRAMES - 1) + 1) :]
        note(f"generated_{seconds}_seconds", score(videos, specs))
        (arguments.out / "table.md").write_text(table(report), encoding="utf-8")
        contact_sheet(videos[: arguments.rows], arguments.out / f"last_5_of_{seconds}_seconds.png")
    return report


def main() -> None:
    grammar = Grammar.load()
    promised = [value for values in grammar.concepts.values() for value in values]
    parts = ["reconstruction", *map(str, ROLLOUTS)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="folder with vae/, transformer/, ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=100, help="prompt/seed pairs")
    parser.add_argument(
        "--checks", type=int, default=40, help="true clips for the PSNR and the detector's own check"
    )
    parser.add_argument("--batch", type=int, default=100, help="prompts of one rollout")
    parser.add_argument("--processes", type=int, default=8, help="processes of the detector")
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        choices=promised,
        metavar="VALUE",
        help="values of the grammar to leave out",
    )
    parser.add_argument("--rows", type=int, default=8, help="clips on a contact sheet")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="what to measure")
    arguments = parser.parse_args()
    for name in ("clips", "checks", "batch", "processes", "rows"):
        if (count := getattr(arguments, name)) < 1:
            parser.error(f"--{name} {count} is below 1")
    if not any_scene_is_left(grammar, arguments.without):
        parser.error(f"--without {' '.join(arguments.without)} leaves no held-out scene; leave out fewer")
    evaluate(arguments)


if __name__ == "__main__":
    main()
