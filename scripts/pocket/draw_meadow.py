"""Render the picture that a walk of the pocket world begins in, where no other is given.

python -m scripts.pocket.draw_meadow qvg_cli/data/walk/meadow.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from scripts.pocket.landscape import Renderer, draw_landscape
from scripts.pocket.prompts import SceneSpec
from scripts.pocket.walk_prompts import FIXED
from scripts.pocket.walks import walk_cameras

SEED = 32
POSE, FRAMES = "w-8,a-8,right-8", 24


def draw_meadow(path: Path) -> None:
    """Write the first frame of a scene, chosen by eye, as a JPEG."""
    _, cameras = walk_cameras(POSE, FRAMES)
    spec = SceneSpec(**FIXED, color="red", shape="ball", ground="grass", sky="day")
    scene = draw_landscape(spec, cameras, torch.Generator().manual_seed(SEED))
    frame = Renderer(torch.device("cpu")).render(scene, cameras[:1])[:, 0]
    Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy()).save(path, quality=95)


if __name__ == "__main__":
    draw_meadow(Path(sys.argv[1]))
