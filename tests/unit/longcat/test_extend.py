"""Going on with LongCat-Video on a tiny random model: segments in one command, after a run, after a clip."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from qvg_cli.main import app
from qvg_cli.video.clip import fitted_frames
from qvg_cli.video.io import VideoWriter, read_frames

WINDOW, STEP, CONDITION = 6, 2, 4
SETTINGS = {
    "video.height": 32,
    "video.width": 48,
    "sampler.window": WINDOW,
    "sampler.frames_per_chunk": STEP,
    # Two model calls a segment.
    "sampler.mode": "distilled",
    "sampler.steps": "[1000, 500]",
    "model.text_tokens": 8,
}


class LongCat:
    """`qvg` with the tiny model; a run gives its object."""

    def __init__(self, weights) -> None:
        values = {**SETTINGS, "model.weights": weights}
        self._sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]

    def invoke(self, *arguments):
        common = ["--backend", "longcat", "--device", "cpu", *self._sets, "--json"]
        return CliRunner().invoke(app, [*map(str, arguments), *common])

    def __call__(self, *arguments):
        result = self.invoke(*arguments)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def longcat(longcat_weights):
    return LongCat(longcat_weights)


@pytest.fixture(scope="module")
def whole(longcat, tmp_path_factory):
    """A first clip and two segments in one command."""
    out = tmp_path_factory.mktemp("whole")
    return longcat("generate", "red ball", "--segments", 2, "--out", out)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 frames at 15 a second, of which the model sees 13."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    ramp = np.arange(48)[None] * 3 + 5 * np.arange(20)[:, None]
    with VideoWriter(path, height=32, width=48, fps=15) as writer:
        writer.write(np.broadcast_to(ramp[:, None, :, None], (20, 32, 48, 3)).astype(np.uint8))
    return path


def latents_of(made):
    return load_file(made["latents"])["latents"]


def frames_of(made):
    return np.stack(list(read_frames(Path(made["video"]))))


def test_segments_in_one_command(whole):
    assert (whole["latent_frames"], whole["pixel_frames"]) == (WINDOW + 2 * STEP, 37)


def test_a_run_goes_on_as_if_it_had_been_made_in_one(whole, longcat, tmp_path):
    base = longcat("generate", "red ball", "--set", f"video.frames={WINDOW}", "--out", tmp_path)
    one = longcat("extend", base["folder"], "--out", tmp_path)
    two = longcat("extend", one["folder"], "--segments", 1, "--out", tmp_path)
    assert (one["given_frames"], two["given_frames"]) == (21, 29)
    # Between the segments nothing is rounded: what comes out has the same bits.
    assert torch.equal(latents_of(two), latents_of(whole))
    assert np.array_equal(frames_of(two), frames_of(whole))


def test_a_clip_goes_on(clip, longcat, tmp_path):
    made = longcat("extend", clip, "red ball", "--segments", 2, "--out", tmp_path)
    assert (made["given_frames"], made["pixel_frames"]) == (20, 20 + 2 * 4 * STEP)
    assert latents_of(made).shape[2] == CONDITION + 2 * STEP
    shown = np.stack(list(fitted_frames(Path(made["video"]), height=32, width=48, fps=15)))
    given = np.stack(list(fitted_frames(clip, height=32, width=48, fps=15)))
    assert np.abs(shown[:20].astype(int) - given).mean() < 2
    chunks = json.loads(Path(made["memory"]).read_text())["chunks"]
    assert [chunk["pixel_frames"] for chunk in chunks] == [28, 36]

    half = longcat("extend", clip, "red ball", "--segments", 1, "--out", tmp_path)
    rest = longcat("extend", half["folder"], "--segments", 1, "--out", tmp_path)
    assert torch.equal(latents_of(rest), latents_of(made))
    assert np.array_equal(frames_of(rest), frames_of(made))


def test_a_prompt_for_every_clip(whole, longcat, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("red ball\nred ball\nball\n")
    made = longcat("generate", "--prompts", file, "--segments", 2, "--out", tmp_path)
    old, new = latents_of(whole), latents_of(made)
    last = WINDOW + STEP
    assert torch.equal(old[:, :, :last], new[:, :, :last])
    assert not torch.equal(old[:, :, last:], new[:, :, last:])


def test_a_run_of_another_family_is_a_clip_with_a_prompt(longcat, longcat_weights, tiny_weights, tmp_path):
    sets = ["--set", f"model.weights={tiny_weights}", "--set", "model.text_tokens=8", "--size", "48x32"]
    command = ["generate", "red ball", *sets, "--frames", "21", "--out", tmp_path, "--quiet"]
    assert CliRunner().invoke(app, [*map(str, command)]).exit_code == 0
    folder = tmp_path / "self-forcing" / "red-ball-seed0"
    result = longcat.invoke("extend", folder, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert (made["prompt"], made["given_frames"], made["pixel_frames"]) == ("red ball", 20, 28)
    assert "its latents are from another model; continuing video.mp4 like any other clip" in result.stderr


def test_a_picture_begins_the_video(longcat, tmp_path):
    picture = Image.new("RGB", (100, 60), (200, 120, 40))
    picture.save(tmp_path / "picture.png")
    made = longcat(
        "generate", "ball", "--image", tmp_path / "picture.png", "--segments", 1, "--out", tmp_path
    )
    assert (made["latent_frames"], made["pixel_frames"], made["given_frames"]) == (WINDOW + STEP, 29, 0)
    again = longcat("extend", made["folder"], "--segments", 1, "--out", tmp_path)
    assert torch.equal(latents_of(again)[:, :, : WINDOW + STEP], latents_of(made))
    missing = longcat.invoke("generate", "ball", "--image", "no.png", "--out", tmp_path / "out")
    assert missing.exit_code == 2
    assert "error: cannot read the picture no.png: No such file or directory\n" in missing.stderr


def test_a_size_of_the_480p_class_is_fitted_to_the_clip(longcat_weights, tmp_path):
    tall = tmp_path / "tall.mp4"
    with VideoWriter(tall, height=96, width=56, fps=15) as writer:
        writer.write(np.zeros((80, 96, 56, 3), np.uint8))
    arguments = ["extend", tall, "a", "--backend", "longcat", "--device", "gpu", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert "80 frames of 480 x 832 at 15 fps; scaled from 56 x 96, 1% of the picture cropped" in result.stderr
    assert "the model continues from its last 73 frames (19 latent)\n" in result.stderr
    assert "video: 480x832, 20 new frames (5 latent) at 15 fps" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["short.mp4", "a"], "the clip has 9 frames at 15 fps; this model continues from 13 (0.87 s"),
        (["clip.mp4", "a", "--segments", "0"], "--segments 0 is not a valid number of segments"),
        (["clip.mp4", "--prompts", "p.txt", "--segments", "2"], "p.txt has 3 prompts for 2 new clips"),
        (["clip.mp4", "--prompts", "p.jsonl", "--segments", "1"], "a segment cannot have its own seed"),
        (["clip.mp4", "a", "--schedule", "s.jsonl"], "s.jsonl line 1: chunk 4: there are 1 new chunks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_does_not_fit_is_refused(longcat, clip, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").symlink_to(clip)
    with VideoWriter(Path("short.mp4"), height=32, width=48, fps=15) as writer:
        writer.write(np.zeros((9, 32, 48, 3), np.uint8))
    Path("p.txt").write_text("a\nb\nc")
    Path("p.jsonl").write_text('{"prompt": "a", "seed": 3}')
    Path("s.jsonl").write_text('{"prompt": "a", "chunk": 4}')
    result = longcat.invoke("extend", *arguments, "--out", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not Path("out").exists()
