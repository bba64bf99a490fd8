"""A run is written beside the making of it: one chunk behind at most, with a preview that plays."""

import json
import threading

import numpy as np
import pytest
import torch

from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import QvgError
from qvg_cli.files import RunDir
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.runs.checkpoint import Checkpoint
from qvg_cli.runs.run import Run
from qvg_cli.video.io import count_frames, read_frames
from qvg_cli.video.parts import join_parts

SMALL = ("video.height=32", "video.width=64", "video.frames=12", "model.text_tokens=8", "prompt=red ball")


@pytest.fixture
def made(tiny_weights, tmp_path):
    """A run in a new folder, and its four chunks, made as they are asked for."""
    sets = (*SMALL, f"model.weights={tiny_weights}", "cache.preset=int2-qvg")
    config = load_config(Request(sets=sets)).config
    video = Planned(config, plan_video(config), "video")
    run = Run(video, RunDir(tmp_path), torch.device("cpu"), pytest.fail)
    return run, Engine.load_config(config, torch.device("cpu")).rollout(video, run)


def test_the_preview_plays_from_the_first_chunk_on(made):
    run, results = made
    seen = []
    for result in results:
        # When a chunk is handed over, the one before is whole.
        run.add(result)
        if (count := run.summary.num_frames - result.frames.shape[1]) > 0:
            assert count_frames(run.folder.preview) in (count, run.summary.num_frames)
            seen = list(read_frames(run.folder.preview))[:count]
    run.finish("complete")
    assert not run.folder.preview.exists()
    frames = list(read_frames(run.folder.video))
    assert (len(seen), len(frames)) == (33, 45)
    assert all(np.array_equal(one, other) for one, other in zip(seen, frames, strict=False))


def test_parts_that_were_joined_before_the_last_chunks_make_the_same_video(made, monkeypatch):
    run, results = made
    monkeypatch.setattr("qvg_cli.runs.run._MANY_PARTS", 2)
    chunks = list(results)
    for result in chunks:
        run.add(result)
    run.close()
    assert count_frames(run.folder.state / "joined.mp4") == 21
    parts = [run.folder.state / f"{chunk:05}.mp4" for chunk in range(4)]
    join_parts(parts, run.folder.path / "whole.mp4", num_frames=45)
    whole = (run.folder.path / "whole.mp4").read_bytes()
    run.finish("complete")
    assert run.folder.video.read_bytes() == whole


def test_parts_that_cannot_be_joined_early_are_joined_at_the_end(made, monkeypatch):
    run, results = made
    monkeypatch.setattr("qvg_cli.runs.run._MANY_PARTS", 2)
    (run.folder.state / "joined.mp4").mkdir()
    for result in results:
        run.add(result)
    run.finish("complete")
    assert count_frames(run.folder.video) == 45
    assert not run.folder.state.exists()


def test_one_chunk_is_written_while_the_next_is_made_and_no_more(made, monkeypatch):
    run, results = made
    save, may_write = Checkpoint.save, threading.Event()

    def save_when_told(*arguments, **options):
        assert may_write.wait(60)
        return save(*arguments, **options)

    monkeypatch.setattr(Checkpoint, "save", save_when_told)
    run.add(next(results))
    second = next(results)
    handed_over = threading.Thread(target=run.add, args=(second,))
    handed_over.start()
    handed_over.join(0.5)
    assert handed_over.is_alive()
    may_write.set()
    handed_over.join(60)
    assert not handed_over.is_alive()
    assert run.summary.times.figures()["writing"] >= 0.5
    assert (run.folder.state / "00000.json").exists()
    run.finish("interrupted")
    assert sorted(path.name for path in run.folder.state.glob("*.json"))[:2] == ["00000.json", "00001.json"]


def test_a_chunk_that_cannot_be_written_stops_the_run_with_those_before_it(made):
    run, results = made
    run.add(next(results))
    in_the_way = run.folder.state / "00001.latents.safetensors"
    in_the_way.mkdir()
    run.add(next(results))
    with pytest.raises(QvgError, match=r"cannot write .*00001\.latents\.safetensors"):
        run.add(next(results))
    in_the_way.rmdir()
    run.finish("failed")
    assert count_frames(run.folder.video) == run.summary.num_frames == 9
    assert [sample.chunk for sample in run.summary.samples] == [0]
    assert "the first 9 frames" in run.kept()
    assert run.suggestion() == f"resume with: qvg generate --resume {run.folder.path}"


def test_the_last_chunk_that_cannot_be_written_is_told_at_the_end(made):
    run, results = made
    run.add(next(results))
    run.add(next(results))
    (run.folder.state / "00002.latents.safetensors").mkdir()
    run.add(next(results))
    with pytest.raises(QvgError, match=r"00002\.latents\.safetensors"):
        run.finish("complete")
    assert run.summary.status == "failed"
    assert count_frames(run.folder.video) == run.summary.num_frames == 21


def test_an_only_chunk_that_cannot_be_written_is_told_and_leaves_nothing(made):
    run, results = made
    first = next(results)
    (run.folder.state / "00000.latents.safetensors").mkdir()
    run.add(first)
    with pytest.raises(QvgError, match=r"00000\.latents\.safetensors"):
        run.finish("complete")
    assert not run.folder.path.exists()


def test_the_history_makes_room_for_the_video(made, monkeypatch):
    run, results = made

    def join_where_is_room(parts, path, **options):
        if any(run.folder.state.glob("*.cache.safetensors")):
            raise QvgError("No space left on device")
        join_parts(parts, path, **options)

    monkeypatch.setattr("qvg_cli.runs.run.join_parts", join_where_is_room)
    for result in results:
        run.add(result)
    run.finish("complete")
    assert run.summary.status == json.loads(run.folder.memory.read_text())["status"] == "complete"
    assert count_frames(run.folder.video) == 45
    assert not run.folder.state.exists()


def test_a_run_without_its_page_is_not_complete(made):
    run, results = made
    for result in results:
        run.add(result)
    run.folder.page.mkdir()
    with pytest.raises(QvgError, match=r"report\.html"):
        run.finish("complete")
    assert run.summary.status == json.loads(run.folder.memory.read_text())["status"] == "failed"
    run.folder.page.rmdir()
    again = Run(run.video, run.folder, run.device, [].append)
    engine = Engine.load_config(run.video.config, run.device)
    assert not list(engine.rollout(run.video, again))
    again.finish("complete")
    assert json.loads(run.folder.memory.read_text())["status"] == "complete"
    assert run.folder.page.is_file()


def test_a_system_that_forgets_nothing_stops_no_run(made, monkeypatch):
    def refuse(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("os.posix_fadvise", refuse, raising=False)
    run, results = made
    run.add(next(results))
    run.finish("interrupted")
    assert run.summary.num_frames == 9


def test_times_add_up(made):
    run, results = made
    for result in results:
        run.add(result)
    run.finish("complete")
    times = run.summary.times.figures()
    parts = ("start", "text", "model", "vae", "writing", "idle")
    assert sum(times[name] for name in parts) == pytest.approx(times["total"], abs=0.01)
    assert json.loads(run.folder.memory.read_text())["times"] == run.figures()["times"] == times
    assert 0 < times["first_frame"] < times["total"]
    assert times["frames_per_second_with_vae"] < times["frames_per_second_without_vae"]
