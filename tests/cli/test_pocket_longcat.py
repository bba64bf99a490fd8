"""The pocket LongCat as a user runs it: a clip, more of it, and another model's clip gone on from."""

import json
import subprocess
import sys

import numpy as np
import pytest

from qvg_cli.video.io import read_frames

CLIP, SEGMENT = 61, 24


def qvg(folder, command, *arguments):
    options = ["--backend", "longcat", "--pocket", "--json", *arguments]
    program = [sys.executable, "-m", "qvg_cli", command]
    result = subprocess.run([*program, *options], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    return made, np.stack(list(read_frames(folder / made["video"])))


def changes(frames):
    """Mean change of a pixel from each frame to the next, in levels."""
    return np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["guided", "distilled"])
def test_a_clip_goes_on_without_a_cut(tmp_path, mode):
    prompt, settings = "A large blue ball slides on sand", ["--set", f"sampler.mode={mode}"]
    _, clip = qvg(tmp_path, "generate", prompt, *settings)
    assert clip.shape == (CLIP, 128, 224, 3)
    red, blue = clip[..., 0].astype(int), clip[..., 2].astype(int)
    assert np.median((red - blue)[:, 110:]) > 20, "no sand"
    # The sky is blue too, but not so deep.
    ball = (blue - red > 0.58 * blue).mean(axis=(1, 2))
    assert 0.01 < ball.min() < ball.max() < 0.2, "no blue ball"

    [folder] = (tmp_path / "results" / "longcat").iterdir()
    made, longer = qvg(tmp_path, "extend", str(folder), "--segments", "2", *settings)
    assert len(longer) == CLIP + 2 * SEGMENT
    assert made["peak"]["ratio"] > 6
    np.testing.assert_array_equal(longer[:CLIP], clip)
    steps = changes(longer)
    assert steps.min() > 0.1, "it stands still"
    for joint in (CLIP, CLIP + SEGMENT):
        assert steps[joint - 1] < 1.5 * steps.max(initial=0, where=np.arange(len(steps)) != joint - 1)


@pytest.mark.slow
def test_another_models_clip_goes_on(tmp_path):
    program = [sys.executable, "-m", "qvg_cli", "generate", "A large red cone circles on snow", "--json"]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    clip = json.loads(result.stdout)["video"]
    mode = ["--set", "sampler.mode=distilled"]
    _, frames = qvg(tmp_path, "extend", clip, "A large red cone circles on snow", *mode)
    assert frames.shape == (81 + SEGMENT, 128, 224, 3)
    steps = changes(frames)
    assert steps[80] < 1.5 * np.delete(steps, 80).max()
