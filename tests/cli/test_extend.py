"""`qvg extend`: a run goes on as if it had been made longer, a clip goes on where it ends."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from qvg_cli.engine.engine import Engine
from qvg_cli.errors import QvgError
from qvg_cli.video.clip import fitted_frames
from qvg_cli.video.io import VideoWriter, count_frames, read_frames


def moving(num_frames, height=32, width=64):
    """Frames of a ramp that wanders to the right."""
    ramp = np.arange(width)[None, :] + 4 * np.arange(num_frames)[:, None]
    frames = np.broadcast_to((ramp % width * 255 // width)[:, None, :, None], (num_frames, height, width, 3))
    return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """40 frames at 16 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, height=32, width=64, fps=16) as writer:
        writer.write(moving(40))
    return path


@pytest.fixture
def extended(qvg, tiny):
    """Runs `qvg extend` on the tiny model and gives its object."""

    def run(*arguments):
        result = qvg("extend", *arguments, *tiny.arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def latents_of(made):
    return load_file(made["latents"])["latents"]


@pytest.fixture(scope="module")
def longer(tiny, tmp_path_factory):
    """What `finished` would have been with 12 frames more."""
    out = tmp_path_factory.mktemp("longer")
    result = tiny("a red ball", "--frames", 45, "--seed", 5, "--out", out, "--json")
    return json.loads(result.stdout)


def test_a_run_goes_on_as_if_it_had_been_longer(finished, longer, qvg, tmp_path):
    _, made = finished
    # No setting is given: they are the run's.
    result = qvg("extend", made["folder"], "--frames", 12, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    more = json.loads(result.stdout)
    assert Path(more["folder"]).name == "a-red-ball-seed5-extended-int2-qvg"
    assert torch.equal(latents_of(more), latents_of(longer))
    for ours, theirs in zip(
        read_frames(Path(more["video"])), read_frames(Path(longer["video"])), strict=True
    ):
        assert np.array_equal(ours, theirs)
    assert (more["pixel_frames"], more["given_frames"], more["seed"]) == (45, 33, 5)
    assert "33 pixel frames) of " in result.stderr
    assert "12 new frames (3 latent) at 16 fps, 0.75 s in 1 chunk\n" in result.stderr


def test_its_video_file_stands_for_the_run(finished, longer, extended, tmp_path):
    _, made = finished
    more = extended(made["video"], "--seconds", 0.7, "--out", tmp_path)
    assert torch.equal(latents_of(more), latents_of(longer))


def test_another_prompt_changes_what_is_new(finished, longer, extended, tmp_path):
    _, made = finished
    more = extended(made["folder"], "ball", "--frames", 12, "--out", tmp_path)
    old, new = latents_of(longer), latents_of(more)
    assert torch.equal(old[:, :, :9], new[:, :, :9])
    assert not torch.equal(old[:, :, 9:], new[:, :, 9:])
    assert yaml.safe_load(Path(more["config"]).read_text())["prompt"] == "ball"


def test_a_clip_goes_on_where_it_ends(clip, extended, qvg, tmp_path):
    made = extended(clip, "a red ball", "--frames", 24, "--out", tmp_path)
    assert Path(made["folder"]).name == "clip-extended-int2-qvg"
    assert (made["pixel_frames"], made["given_frames"]) == (64, 40)
    shown = np.stack(list(fitted_frames(Path(made["video"]), height=32, width=64, fps=16)))
    assert np.abs(shown[:40].astype(int) - moving(40)).mean() < 3
    # Its last 33 frames are nine latent ones.
    assert latents_of(made).shape[2] == 9 + 6
    chunks = json.loads(Path(made["memory"]).read_text())["chunks"]
    assert [chunk["pixel_frames"] for chunk in chunks] == [16, 28, 40, 52, 64]

    again = qvg("generate", "--config", made["config"], "--out", tmp_path / "again", "--json")
    assert again.exit_code == 0, again.stderr
    assert torch.equal(latents_of(json.loads(again.stdout)), latents_of(made))


def test_a_finished_run_after_a_clip_cannot_be_compared(clip, extended, qvg, tmp_path):
    made = extended(clip, "a red ball", "--frames", 12, "--out", tmp_path)
    refused = qvg("compare", made["folder"], made["folder"], "--out", tmp_path)
    assert refused.exit_code == 2
    assert "starts from the clip" in refused.stderr


def test_an_extended_clip_goes_on_without_loss(clip, extended, tmp_path):
    at_once = extended(clip, "a red ball", "--frames", 24, "--out", tmp_path)
    half = extended(clip, "a red ball", "--frames", 12, "--out", tmp_path)
    whole = extended(half["folder"], "--frames", 12, "--out", tmp_path)
    assert Path(whole["folder"]).name == "clip-extended-int2-qvg-3"
    assert torch.equal(latents_of(whole), latents_of(at_once))
    assert (whole["pixel_frames"], whole["given_frames"]) == (64, 52)
    assert count_frames(Path(whole["video"])) == 64


def test_a_clip_of_another_size_and_rate_is_fitted(qvg, tiny, tmp_path):
    path = tmp_path / "big.mp4"
    with VideoWriter(path, height=72, width=128, fps=30) as writer:
        writer.write(moving(60, 72, 128))
    result = qvg("extend", path, "a red ball", *tiny.arguments, "--frames", 12, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["pixel_frames"] == 32 + 12
    assert (
        "big.mp4: 32 frames of 64 x 32 at 16 fps; scaled from 128 x 72, 11% of the picture cropped; "
        "from 30 fps with frames dropped\n"
    ) in result.stderr


def test_latents_that_do_not_fit_are_not_used(finished, extended, qvg, tiny, tmp_path):
    _, made = finished
    result = qvg("extend", made["folder"], "--size", "96x48", "--frames", 12, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert (
        "its latents have another size or frame rate; continuing video.mp4 like any other "
        "clip" in result.stderr
    )
    assert json.loads(result.stdout)["given_frames"] == 33


def test_a_run_that_fills_the_positions_is_a_clip(finished, qvg, tiny, tmp_path):
    """Its latents stand for more frames than it has; only their number counts here."""
    _, made = finished
    shutil.copytree(made["folder"], tmp_path / "long")
    save_file({"latents": torch.zeros(1, 16, 1023, 4, 8)}, tmp_path / "long" / "latents.safetensors")
    result = qvg("extend", tmp_path / "long", "--frames", 12, "--out", tmp_path / "out", "--device", "gpu")
    assert "its 1023 latent frames leave no room in the positions of the model; continuing" in result.stderr
    assert "the model continues from its last 33 frames (9 latent)\n" in result.stderr


def test_a_run_that_is_not_finished_is_refused(finished, qvg, tmp_path):
    _, made = finished
    shutil.copytree(made["folder"], tmp_path / "run")
    (tmp_path / "run" / "state").mkdir()
    result = qvg("extend", tmp_path / "run", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"hint: finish it: qvg generate --resume {tmp_path}/run\n" in result.stderr


def test_a_run_whose_clip_has_gone_is_a_clip_itself(clip, extended, qvg, tmp_path):
    shutil.copy(clip, tmp_path / "gone.mp4")
    half = extended(tmp_path / "gone.mp4", "a red ball", "--frames", 12, "--out", tmp_path)
    (tmp_path / "gone.mp4").unlink()
    result = qvg("extend", half["folder"], "--frames", 12, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert "gone.mp4 that it begins with is gone; continuing video.mp4" in result.stderr
    assert json.loads(result.stdout)["given_frames"] == 52


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "a"], "error: no video nowhere.mp4\n"),
        (["text.mp4", "a"], "error: text.mp4 is not a video that can be read\n"),
        ([".", "a"], "error: . is not the folder of a run: it lacks run.yaml, latents."),
        (["short.mp4", "a"], "error: the clip has 5 frames at 16 fps; this model continues from 9 or"),
        (["short.mp4"], "error: no PROMPT given for the continuation of short.mp4\n"),
        (["tall.mp4", "a"], "of its frames 29% would be left in a video 224 wide and 128 high, at least 70%"),
        (["clip.mp4", "--schedule", "s.jsonl"], "error: no PROMPT given for the continuation of clip.mp4\n"),
        (["clip.mp4", "a", "--seconds", "0"], "error: --seconds 0.0 is not a valid length\n"),
        (["clip.mp4", "a", "--frames", "4080"], "positions; longest: 1023 latent frames (4089 pixel frames)"),
        (["clip.mp4", "a", "--segments", "2"], "error: --segments is not an option of self-forcing\n"),
        (["clip.mp4", "a", "--backend", "hyworldplay"], "error: hyworldplay cannot continue a given"),
        (["clip.mp4", "a", "--set", "video.frames=30"], "error: --set video.frames=30 does not set"),
        (["clip.mp4", "a", "--seconds", "1", "--segments", "2"], "error: --seconds and --segments were both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_does_not_fit_is_refused(clip, qvg, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    for name, num_frames, height, width in (("short", 5, 128, 224), ("tall", 9, 64, 32)):
        with VideoWriter(Path(f"{name}.mp4"), height=height, width=width, fps=16) as writer:
            writer.write(moving(num_frames, height, width))
    Path("text.mp4").write_text("not a video")
    Path("s.jsonl").write_text('{"chunk": 2, "prompt": "a"}')
    result = qvg("extend", *arguments, "--out", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not Path("out").exists()


def test_the_pocket_model_goes_on_from_a_clip(qvg, tmp_path, monkeypatch):
    """A clip whose tones are not those of the model."""
    monkeypatch.chdir(tmp_path)
    frames = np.full((9, 64, 112, 3), (90, 140, 80), np.uint8)
    frames[:, :32] = (150, 190, 230)
    for index in range(len(frames)):
        frames[index, 30:45, 40 + index : 55 + index] = (200, 30, 30)
    with VideoWriter(tmp_path / "box.mp4", height=64, width=112, fps=16) as writer:
        writer.write(frames)
    command = ["extend", "box.mp4", "a medium red cube slides", "--frames", "12", "--json"]
    result = qvg(*command, "--size", "112x64")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    shown = np.stack(list(fitted_frames(tmp_path / made["video"], height=64, width=112, fps=16)))
    assert len(shown) == 21
    # No cut: the tones of the sky and the ground are those of the clip.
    for rows in (slice(0, 24), slice(48, 64)):
        tones = shown[:, rows].mean(axis=(1, 2))
        assert np.abs(tones[9] - tones[8]).max() < 4


@pytest.mark.parametrize("has_clip", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_extension_that_was_cut_off_goes_on(finished, clip, qvg, tiny, tmp_path, monkeypatch, has_clip):
    start = clip if has_clip else finished[1]["folder"]
    arguments = ("extend", start, "a red ball", *tiny.arguments, "--frames", 36, "--out", tmp_path, "--json")
    whole = json.loads(qvg(*arguments).stdout)
    rollout = Engine.rollout

    def fail_late(*given, **options):
        for number, result in enumerate(rollout(*given, **options)):
            yield result
            if number == 3:
                raise QvgError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "rollout", fail_late)
        cut = json.loads(qvg(*arguments).stdout)
    assert cut["status"] == "failed"
    assert "VIDEO and --resume were both given" in qvg(*arguments, "--resume", cut["folder"]).stderr
    if has_clip:
        # The frames of a clip are written anew by every process.
        (Path(cut["folder"]) / "state" / "clip.mp4").write_bytes(b"broken")
    result = qvg("extend", "--resume", cut["folder"], "--json")
    assert "resuming after chunk 4 of " in result.stderr
    again = json.loads(result.stdout)
    assert torch.equal(latents_of(again), latents_of(whole))
    for ours, theirs in zip(*(read_frames(Path(made["video"])) for made in (again, whole)), strict=True):
        assert np.array_equal(ours, theirs)
    for key in ("status", "given_frames", "pixel_frames", "peak"):
        assert again[key] == whole[key]
