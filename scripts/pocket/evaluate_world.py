"""Measure the pocket world: does the camera in the frames move as the pose says?

    python -m scripts.pocket.evaluate_world --out build/world-evaluation

Every walk begins in the first frame of a scene whose combination of values training never drew, and is made
by the engine that `qvg generate --backend hyworldplay --pocket` runs. `camera_motion.py` names the move of
each stretch of a walk from the decoded frames; a walk agrees if all its stretches do. The detector is checked
on true renders of walks, and on what the VAE makes of these. Writes report.json, table.md and contact sheets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayPipeline, WalkModels
from qvg_cli.models.hyworldplay.plan import plan_video
from qvg_cli.models.hyworldplay.trajectory import Array, Trajectory
from qvg_cli.models.registry import load_config
from scripts.pocket.camera_motion import name_moves
from scripts.pocket.landscape import Landscape, Renderer, draw_landscape
from scripts.pocket.training import psnr
from scripts.pocket.vae import decode_unclamped, encode_mean
from scripts.pocket.walk_prompts import WalkGrammar
from scripts.pocket.walks import draw_pose, walk_cameras

SEED = 987_654
# Kinds of walks: the pose, or none for one that is drawn, and its latent frames.
KINDS: dict[str, tuple[str | None, int]] = {
    "w": ("w-15", 16),
    "s": ("s-15", 16),
    "a": ("a-15", 16),
    "d": ("d-15", 16),
    "left": ("left-15", 16),
    "right": ("right-15", 16),
    "up": ("up-7", 8),
    "down": ("down-7", 8),
    "several moves": (None, 24),
}
CHECK_FRAMES = 8
SHEET_COLUMNS = 6


@dataclass
class Walk:
    """One scene and the walk through it."""

    kind: str
    pose: str
    prompt: str
    scene: Landscape
    path: Trajectory
    cameras: Array
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def agrees(self, stage: str) -> bool:
        return all(asked == shown for asked, shown in self.pairs[stage])


def draw_walks(kinds: list[str], count: int, generator: torch.Generator) -> list[Walk]:
    """`count` unseen scenes for each kind of walk."""
    grammar = WalkGrammar.load()
    walks = []
    for kind in kinds:
        pose, frames = KINDS[kind]
        for _ in range(count):
            words = pose or draw_pose(frames, generator)
            spec = grammar.sample_spec(generator, held_out=True)
            path, cameras = walk_cameras(words, frames)
            scene = draw_landscape(spec, cameras, generator)
            walks.append(Walk(kind, words, grammar.sample_prompt(spec, generator), scene, path, cameras))
    return walks


class World:
    """The backend on the built-in weights, or on those of another folder."""

    def __init__(self, device: torch.device, sets: list[str]) -> None:
        self.device, self.sets = device, sets
        self.models: WalkModels | None = None

    def generate(self, walk: Walk, image: Path, seed: int) -> np.ndarray:
        """Frames `[T, H, W, 3]` uint8 of a walk into a picture."""
        sets = [f"walk.pose={walk.pose}", f"walk.image={image}", f"video.frames={len(walk.path)}", *self.sets]
        request = Request(backend="hyworldplay", pocket=True, sets=tuple(sets))
        config = load_config(request).config.model_copy(update={"prompt": walk.prompt, "seed": seed})
        self.models = self.models or WalkModels(config, self.device)
        engine = Engine(config, HyWorldPlayPipeline(config, self.models), self.device)
        chunks = engine.rollout(Planned(config, plan_video(config), walk.kind))
        return np.concatenate([chunk.frames[0].cpu().numpy() for chunk in chunks])

    @torch.no_grad()
    def reconstruct(self, video: torch.Tensor) -> torch.Tensor:
        """What the VAE makes of `[3, T, H, W]` in [0, 1]."""
        assert self.models is not None
        vae = self.models.vae
        latents = encode_mean(vae, (video[None] * 2 - 1).to(vae.dtype))
        return decode_unclamped(vae, latents)[0].float().clamp(-1, 1) / 2 + 0.5


def to_bytes(video: torch.Tensor) -> np.ndarray:
    """`[3, T, H, W]` in [0, 1] to `[T, H, W, 3]` uint8."""
    return (video.clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def table(walks: list[Walk]) -> str:
    """Walks that agree, of each kind, as a Markdown table."""
    stages = [stage for stage in ("renders", "reconstructions", "generated") if stage in walks[0].pairs]
    lines = [f"| walk | scenes | {' | '.join(stages)} |", "|---" * (2 + len(stages)) + "|"]
    kinds = list(dict.fromkeys(walk.kind for walk in walks))
    for name, own in [*((kind, [w for w in walks if w.kind == kind]) for kind in kinds), ("together", walks)]:
        counts = [str(sum(walk.agrees(stage) for walk in own)) for stage in stages]
        lines.append(f"| {name} | {len(own)} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def contact_sheet(videos: list[np.ndarray], path: Path) -> None:
    """Write videos as rows of frames spread evenly over their length."""
    rows = [
        np.concatenate(list(video[np.linspace(0, len(video) - 1, SHEET_COLUMNS).astype(int)]), axis=1)
        for video in videos
    ]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def evaluate(arguments: argparse.Namespace) -> list[Walk]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    renderer, world = Renderer(device), World(device, arguments.set)
    walks = draw_walks(arguments.kinds, arguments.scenes, torch.Generator().manual_seed(SEED))
    arguments.out.mkdir(parents=True, exist_ok=True)
    start, first_of_kind, decibels = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for index, walk in enumerate(walks):
            image = Path(folder) / f"{index}.png"
            Image.fromarray(to_bytes(renderer.render(walk.scene, walk.cameras[:1]))[0]).save(image)
            frames = world.generate(walk, image, seed=index)
            made = walk.path.actions[: 1 + (len(frames) - 1) // 4]
            walk.pairs["generated"] = name_moves(frames, made)
            if arguments.checks:
                truth = renderer.render(walk.scene, walk.cameras[: 1 + 4 * (CHECK_FRAMES - 1)])
                again, actions = world.reconstruct(truth), walk.path.actions[:CHECK_FRAMES]
                walk.pairs["renders"] = name_moves(to_bytes(truth), actions)
                walk.pairs["reconstructions"] = name_moves(to_bytes(again), actions)
                decibels.append(psnr(truth, again))
            first_of_kind.setdefault(walk.kind, []).append(frames)
            print(f"{time.monotonic() - start:6.1f} s  {walk.pose}: {walk.pairs}", flush=True)
    for kind, videos in first_of_kind.items():
        contact_sheet(videos[: arguments.rows], arguments.out / f"{kind.replace(' ', '-')}.png")
    contact_sheet([videos[0] for videos in first_of_kind.values()], arguments.out / "walks.png")
    report = {
        "reconstruction_psnr": round(float(np.mean(decibels)), 2) if decibels else None,
        "walks": [{"kind": w.kind, "pose": w.pose, "prompt": w.prompt, **w.pairs} for w in walks],
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (arguments.out / "table.md").write_text(table(walks), encoding="utf-8")
    print(table(walks))
    return walks


def main(words: list[str] | None = None) -> list[Walk]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--scenes", type=int, default=10, help="unseen scenes of each kind")
    parser.add_argument("--checks", action=argparse.BooleanOptionalAction, default=True,
                        help="try the detector on true renders and on reconstructions too")  # fmt: skip
    parser.add_argument("--rows", type=int, default=4, help="walks on a contact sheet")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as qvg's --set")
    arguments = parser.parse_args(words)
    for name in ("scenes", "rows"):
        if (count := getattr(arguments, name)) < 1:
            parser.error(f"--{name} {count} is below 1")
    return evaluate(arguments)


if __name__ == "__main__":
    main()
