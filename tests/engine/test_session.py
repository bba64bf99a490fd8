"""A video that is made step by step is the one that is made at once, and can be gone on with later."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.engine.engine import Engine
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.video.io import VideoWriter


def joined(chunks):
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def open_two(engine):
    return engine.session(seed=1), engine.session(seed=2)


def save(folder, session, chunks):
    """The files by which a run is known."""
    folder.mkdir()
    (folder / "run.yaml").write_text(format_yaml(session.config.model_dump(mode="json")))
    save_file({"latents": joined(chunks).contiguous()}, folder / "latents.safetensors")
    frames = np.concatenate([chunk.frames for chunk in chunks])
    with VideoWriter(folder / "video.mp4", height=32, width=64, fps=16) as writer:
        writer.write(frames)
    return folder


@pytest.mark.parametrize("context", ["append", "rebuild", "incremental"])
def test_a_walk_move_by_move_is_the_walk_of_the_whole_pose(walk_engine, context):
    # Back where it began, so that old frames are recalled; a window that drops others.
    settings = {"sampler.context": context, "sampler.window": 12}
    moves = ["w-3", "left-4", "left-4", "right-4", "right-4", "w-4"]
    session = walk_engine.session(seed=3, settings=settings)
    chunks = [session.step(pose=move) for move in moves]
    whole = walk_engine.generate(seed=3, settings={**settings, "walk.pose": ",".join(moves)})
    assert joined(chunks).equal(whole.latents)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)
    assert session.num_frames == len(whole.frames)
    assert any(chunk.plan.reads and chunk.plan.reads[0] != chunk.plan.makes[0] - 8 for chunk in chunks)


def test_a_changed_prompt_is_that_of_a_schedule(text_engine):
    first, then = "A small red cube rests on sand", "A large green ball bounces on grass"
    session = text_engine.session(first, seed=1)
    chunks = [session.step(), session.step(prompt=then), session.step()]
    begin = len(chunks[0].frames)
    whole = text_engine.generate(first, seed=1, frames=session.num_frames, schedule={begin / 16: then})
    assert joined(chunks).equal(whole.latents)
    unchanged = text_engine.generate(first, seed=1, frames=session.num_frames)
    assert not joined(chunks).equal(unchanged.latents)
    assert session.config.prompt_changes == whole.config.prompt_changes
    assert session.config.video.frames == whole.config.video.frames


def test_a_prompt_of_the_first_step_is_that_of_the_video(text_engine):
    session = text_engine.session("A small red cube rests on sand")
    chunk = session.step(prompt="A large green ball bounces on grass")
    whole = text_engine.generate("A large green ball bounces on grass", frames=session.num_frames)
    assert chunk.latents.equal(whole.latents)
    assert session.config.prompt == session.prompt == "A large green ball bounces on grass"
    assert not session.config.prompt_changes


def test_segments_step_by_step_are_those_of_the_whole_video(segment_engine):
    session = segment_engine.session(seed=2)
    chunks = [session.step() for _ in range(3)]
    whole = segment_engine.generate(seed=2, segments=2)
    assert joined(chunks).equal(whole.latents)
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)


@pytest.mark.parametrize(
    ("family", "preset", "steps"),
    [
        ("walk", "int2", [{"pose": pose} for pose in ("w-3", "left-4", "w-4", "right-2,w-2")]),
        ("walk", "int2-shaped", [{"pose": pose} for pose in ("w-3", "left-4", "w-4", "right-2,w-2")]),
        ("text", "int2-shaped", [{}, {"prompt": "A large green ball bounces on grass"}, {}, {}]),
        ("segment", "int2-shaped", [{}, {}, {}, {}]),
        pytest.param(
            *("text", "int2", [{}, {"prompt": "A large green ball bounces on grass"}, {}, {}]),
            marks=pytest.mark.slow,
        ),
        pytest.param("segment", "int2", [{}, {}, {}, {}], marks=pytest.mark.slow),
    ],
)
def test_a_saved_video_goes_on_as_if_it_had_not_ended(family, preset, steps, request, tmp_path):
    engine = request.getfixturevalue(f"{family}_engine")
    session = engine.session(seed=5, settings={"cache.preset": preset})
    chunks = [session.step(**step) for step in steps[:3]]
    run = save(tmp_path / "run", session, chunks)
    following = session.step(**steps[3])
    taken_up = engine.take_up(run)
    assert taken_up.num_frames == session.num_frames - len(following.frames)
    again = taken_up.step(**steps[3])
    assert again.latents.equal(following.latents)
    assert np.array_equal(again.frames, following.frames)
    assert again.plan == following.plan
    assert taken_up.config == session.config


def test_a_run_of_another_model_is_not_taken_up(text_engine, walk_engine, tmp_path):
    session = text_engine.session()
    run = save(tmp_path / "run", session, [session.step()])
    with pytest.raises(UsageError, match=r"was made with Self-Forcing"):
        walk_engine.take_up(run)


def test_a_walk_along_a_file_is_not_taken_up(walk_engine, tmp_path):
    session = walk_engine.session()
    run = save(tmp_path / "run", session, [session.step(pose="w-3")])
    config = session.config.model_dump(mode="json")
    config["walk"]["pose"] = "path.json"
    (run / "run.yaml").write_text(format_yaml(config))
    with pytest.raises(UsageError, match=r"path\.json"):
        walk_engine.take_up(run)


def test_pixels_come_before_the_chunk_is_whole(walk_engine):
    parts, calls = [], []
    session = walk_engine.session(on_step=lambda: calls.append(len(parts)))
    chunk = session.step(pose="w-3", on_frames=parts.append)
    # The pass that fills the cache comes after them.
    assert calls[-2:] == [0, 4]
    assert [len(part) for part in parts] == [1, 4, 4, 4]
    assert np.array_equal(np.concatenate(parts), chunk.frames)


def test_what_a_model_call_raises_ends_the_session(walk_engine):
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == 4:
            raise InterruptedError

    session = walk_engine.session(on_step=stop)
    first = session.step(pose="w-3")
    with pytest.raises(InterruptedError):
        session.step(pose="w-4")
    with pytest.raises(QvgError, match="ended"):
        session.step(pose="w-4")
    assert first.latents.shape[2] == 4


@pytest.mark.parametrize(
    ("family", "steps"),
    [
        ("text", [{}, {"prompt": "A large green ball bounces on grass"}]),
        ("walk", [{"pose": "w-3"}, {"pose": "left-4"}]),
    ],
)
def test_sessions_of_one_engine_take_turns(family, steps, request):
    engine = request.getfixturevalue(f"{family}_engine")
    alone = [[session.step(**step) for step in steps] for session in open_two(engine)]
    one, other = open_two(engine)
    pairs = [(one.step(**step), other.step(**step)) for step in steps]
    for chunks, expected in zip(zip(*pairs, strict=True), alone, strict=True):
        assert joined(chunks).equal(joined(expected))


def test_sessions_in_threads_wait_for_each_other(text_engine):
    def make(session):
        return joined([session.step() for _ in range(2)])

    alone = [make(session) for session in open_two(text_engine)]
    with ThreadPoolExecutor(2) as pool:
        assert all(map(torch.equal, pool.map(make, open_two(text_engine)), alone))


def test_a_session_takes_its_own_picture_and_sampler(tmp_path):
    # A trained VAE, which keeps colours.
    size = {"video.height": 32, "video.width": 64, "sampler.steps": [1000, 500]}
    walk_engine = Engine.load("hyworldplay", pocket=True, device="cpu", settings=size)
    picture = tmp_path / "red.png"
    Image.new("RGB", (64, 32), (200, 30, 30)).save(picture)
    red = walk_engine.session(settings={"walk.image": str(picture)}).step(pose="w-3")
    meadow = walk_engine.session().step(pose="w-3")
    assert red.frames[0, ..., 0].mean() > meadow.frames[0, ..., 0].mean() + 40
    fewer = walk_engine.session(settings={"sampler.steps": [1000]}).step(pose="w-3")
    assert not fewer.latents.equal(meadow.latents)


def test_the_path_grows_with_the_moves(walk_engine):
    session = walk_engine.session()
    session.step(pose="w-3")
    session.step(pose="right-4")
    assert session.viewmats.shape == (8, 4, 4)
    assert session.config.walk.pose == "w-3,right-4"
    session.step(pose="right-2,a-2")
    assert session.config.walk.pose == "w-3,right-6,a-2"
    assert session.config.video.frames == 12
