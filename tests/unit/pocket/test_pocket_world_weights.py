"""The world's weights that ship: their form, and the walks that they make through the whole engine."""

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.pocket.camera_motion import name_moves
from scripts.pocket.evaluate_world import World, draw_walks, main, table, to_bytes
from scripts.pocket.landscape import Renderer
from scripts.pocket.prompts import Grammar
from scripts.pocket.walk_prompts import WalkGrammar


def test_its_words_are_words_of_the_text_encoder():
    assert WalkGrammar.load().words() <= set(Grammar.load().words())


@pytest.mark.slow
@pytest.mark.parametrize("pose", ["right-7", "w-7"])
def test_a_walk_goes_where_its_pose_says(tmp_path, pose):
    kind = pose.partition("-")[0]
    (walk,) = draw_walks([kind], 1, torch.Generator().manual_seed(1))
    image = tmp_path / "start.png"
    first = to_bytes(Renderer(torch.device("cpu")).render(walk.scene, walk.cameras[:1]))[0]
    Image.fromarray(first).save(image)
    world = World(torch.device("cpu"), ["video.frames=8"])
    frames = world.generate(walk, image, seed=0)
    assert frames.shape == (29, 128, 224, 3)
    assert np.abs(frames[0].astype(float) - first).mean() < 12
    assert name_moves(frames, walk.path.actions[:8]) == [(kind, kind)]


@pytest.mark.slow
def test_the_evaluation_counts_walks(tmp_path):
    walks = main(
        ["--out", str(tmp_path), "--kinds", "up", "left", "--scenes", "1", "--set", "video.frames=4"]
    )
    assert all(walk.agrees("renders") for walk in walks)
    assert (tmp_path / "table.md").read_text() == table(walks)
    assert {"left.png", "up.png", "report.json"} <= {path.name for path in tmp_path.iterdir()}
