"""The server of `qvg play`, spoken to as a browser does: one walks, others watch, nothing is lost."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from websockets.exceptions import ConnectionClosed, InvalidStatus

from qvg_cli.engine.engine import Engine
from qvg_cli.errors import UsageError
from qvg_cli.files import RunDir
from qvg_cli.play.server import MAX_PICTURE_BYTES, listen
from qvg_cli.play.walk import recover
from qvg_cli.video.io import count_frames

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def png(color, size=(64, 32), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)), dtype=float)


def made_again(run):
    """The latents that the settings of a saved walk make at once."""
    engine = Engine.load(file=run / "run.yaml")
    return engine.generate(engine.config.prompt if not engine.config.prompt_changes else None).latents


def test_a_key_makes_one_chunk_and_then_nothing(play, pocket_engine):
    browser = play(pocket_engine).browser()
    browser.wait(lambda: browser.is_ready() and browser.frames)
    # The picture that the walk begins in.
    assert len(browser.frames) == 1
    browser.rest(0.5)
    assert len(browser.frames) == 1
    browser.tap("w")
    browser.wait_made(13)
    browser.wait(lambda: len(browser.frames) == 14)
    browser.rest(0.7)
    assert [number for number, _ in browser.frames] == list(range(1, 15))
    assert pixels(browser.frames[-1][1]).shape == (32, 64, 3)
    state = browser.last("state")
    assert state["frames"] == 13
    assert 0 < state["cache_bytes"] < state["bf16_bytes"]
    points = browser.last("path")["points"]
    assert [round(ahead, 2) for _, ahead, _ in points] == [0.08, 0.16, 0.24]


def test_a_key_that_is_held_repeats_and_two_share_a_chunk(play, walk_engine):
    session = play(walk_engine)
    browser = session.browser()
    browser.wait(browser.is_ready)
    browser.send(type="hold", keys=["w", "left"])
    browser.wait(lambda: browser.last("state")["frames"] >= 13 + 16)
    browser.send(type="hold", keys=[])
    browser.wait(browser.is_ready)
    browser.send(type="save")
    browser.wait(lambda: browser.last("saved"))
    pose = (session.out / browser.last("saved")["name"] / "pose.txt").read_text()
    assert pose.startswith("w-2,left-1,w-2,left-2")


def test_moves_wait_in_their_order_until_they_are_stopped(play, walk_engine):
    browser = play(walk_engine).browser(shows=False)
    browser.wait(browser.is_ready)
    for key in ("w", "a", "right"):
        browser.tap(key)
    browser.wait(lambda: browser.last("state")["frames"] == 13)
    assert browser.last("state")["moves"][-1] == ["right"]
    browser.send(type="stop")
    browser.wait(lambda: browser.last("state")["moves"] == [])


def test_the_next_chunk_waits_for_a_browser_that_has_not_shown_the_last(play, walk_engine):
    browser = play(walk_engine).browser(shows=False)
    browser.wait(browser.is_ready)
    browser.send(type="hold", keys=["w"])
    browser.wait_made(13)
    browser.rest(1.5)
    held_up = browser.last("state")["frames"]
    assert held_up <= 13 + 16
    browser.send(type="shown", frame=browser.frames[-1][0])
    browser.wait(lambda: browser.last("state")["frames"] > held_up)


def test_a_second_browser_watches_and_may_not_play(play, walk_engine):
    session = play(walk_engine)
    player, viewer = session.browser(), None
    player.wait(player.is_ready)
    viewer = session.browser()
    viewer.wait(lambda: viewer.last("seat"))
    assert not viewer.last("seat")["player"]
    viewer.tap("w")
    viewer.wait(lambda: viewer.last("error"))
    assert "you are watching" in viewer.last("error")["message"]
    player.tap("w")
    player.wait_made(13)
    viewer.wait(lambda: len(viewer.frames) == 14)
    # The newest frame was there when it came.
    assert viewer.frames[0][0] == 1


def test_a_lost_player_comes_back_with_the_ticket(play, walk_engine):
    session = play(walk_engine)
    first = session.browser()
    first.wait(first.is_ready)
    first.tap("w")
    first.wait_made(13)
    first.close()
    stranger = session.browser()
    stranger.wait(lambda: stranger.last("seat"))
    assert stranger.last("seat") == {"type": "seat", "player": False, "is_free": False, "watching": 0}
    again = session.browser(ticket=first.last("welcome")["ticket"])
    again.wait(lambda: again.last("seat") and again.frames)
    assert again.last("seat")["player"]
    assert len(again.last("path")["points"]) == 4
    again.tap("a")
    again.wait_made(29)


def test_the_same_browser_in_two_tabs_speaks_through_the_newer(play, walk_engine):
    session = play(walk_engine)
    first = session.browser()
    first.wait(lambda: first.last("welcome"))
    second = session.browser(ticket=first.last("welcome")["ticket"])
    second.wait(lambda: second.last("seat"))
    assert second.last("seat")["player"]
    with pytest.raises(ConnectionClosed) as closed:
        first.rest(5)
    assert closed.value.rcvd.code == 4001


def test_garbage_is_told_once_and_harms_nothing(play, walk_engine):
    garbage = (
        "no JSON",
        "[]",
        '{"type": "dance"}',
        '{"type": "hold", "keys": ["q"]}',
        '{"type": "hold", "keys": ["w", "w", "w", "w", "w"]}',
        '{"type": "world", "prompt": 3}',
        '{"type": "world", "picture": "../../etc/passwd"}',
        '{"type": "take_up", "name": "../elsewhere"}',
        '{"type": "shown", "frame": -1}',
        b"\xff\xfe\x00",
    )
    browser = play(walk_engine).browser()
    browser.wait(browser.is_ready)
    for each in garbage:
        browser.socket.send(each)
    browser.wait(lambda: sum(message["type"] == "error" for message in browser.messages) >= len(garbage))
    browser.rest(0.3)
    assert sum(message["type"] == "error" for message in browser.messages) == len(garbage)
    browser.tap("w")
    browser.wait_made(13)


def test_a_huge_message_ends_its_own_socket_alone(play, walk_engine):
    session = play(walk_engine)
    player, rude = session.browser(), session.browser()
    player.wait(player.is_ready)
    rude.socket.send(json.dumps({"type": "prompt", "text": "x" * 100_000}))
    with pytest.raises(ConnectionClosed) as closed:
        rude.rest(5)
    assert closed.value.rcvd.code == 1009
    player.tap("w")
    player.wait_made(13)


def test_other_sites_are_kept_out(play, walk_engine):
    session = play(walk_engine)
    own = f"127.0.0.1:{session.port}"
    assert session.fetch("/")[0] == 200
    assert session.fetch("/", Host=f"localhost:{session.port}")[0] == 200
    status, body, _ = session.fetch("/", Host="evil.example")
    assert status == 403
    assert b"evil.example" in body
    assert session.fetch("/picture", png("red"), Origin="http://evil.example")[0] == 403
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus):
            session.browser(**headers)
    session.browser(Origin=f"http://{own}")


def test_a_token_is_asked_for(play, walk_engine):
    session = play(walk_engine, token="secret")
    assert session.fetch("/")[0] == 403
    assert session.fetch("/?key=other")[0] == 403
    assert session.fetch("/?key=secret", Host="machine.lan")[0] == 200
    with pytest.raises(InvalidStatus):
        session.browser()
    browser = session.browser(query="&key=secret")
    browser.wait(browser.is_ready)


def test_the_page_runs_its_own_script_alone(play, walk_engine):
    _, body, headers = play(walk_engine).fetch("/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in body


def test_an_uploaded_picture_begins_a_world_that_can_be_made_again(play, pocket_engine):
    session = play(pocket_engine)
    browser = session.browser()
    browser.wait(browser.is_ready)
    status, body, _ = session.fetch("/picture", png((200, 30, 30)))
    assert status == 200
    browser.send(type="world", prompt="A red ball on grass", picture=json.loads(body)["picture"], seed=4)
    browser.wait(lambda: browser.last("flush") and len(browser.frames) > 1)
    red, green, blue = pixels(browser.frames[-1][1]).mean(axis=(0, 1))
    assert red > 150
    assert max(green, blue) < 80
    browser.tap("w")
    browser.wait_made(13)
    session.end()
    (run,) = session.out.iterdir()
    assert run.name == "a-red-ball-on-grass-seed4"
    assert (run / "picture.png").read_bytes() == png((200, 30, 30))
    assert load_file(run / "latents.safetensors")["latents"].equal(made_again(run))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture at all", "not a picture"),
        (png("red")[:60], "picture"),
        (b"GIF89a" + bytes(20), "picture"),
        (bytes(MAX_PICTURE_BYTES + 1), "larger than 20 MiB"),
        (png(1, (10_000, 6_000), "1"), "10000 x 6000 pixels, at most 50,000,000"),
    ],
    ids=["text", "cut off", "odd", "huge file", "huge picture"],
)
def test_a_picture_that_cannot_be_taken_is_told(play, walk_engine, content, message):
    session = play(walk_engine)
    status, body, _ = session.fetch("/picture", content)
    told = json.loads(body)
    assert status == 400
    assert message in told["message"]
    assert "/tmp" not in told["message"]
    assert told["hint"]


def test_a_saved_walk_is_downloaded_and_gone_on_with(play, walk_engine):
    session = play(walk_engine, record="Morning walk")
    browser = session.browser()
    browser.wait(browser.is_ready)
    browser.send(type="save")
    browser.wait(lambda: browser.last("error"))
    assert "nothing to save" in browser.last("error")["message"]
    for key in ("w", "left"):
        browser.tap(key)
    browser.wait_made(29)
    browser.send(type="save")
    browser.wait(lambda: browser.last("saved"))
    assert browser.last("saved")["name"] == "morning-walk"
    assert session.fetch("/saved/morning-walk/pose.txt")[1] == b"w-3,left-4\n"
    _, video, headers = session.fetch("/saved/morning-walk/video.mp4")
    assert video == (session.out / "morning-walk" / "video.mp4").read_bytes()
    assert headers["content-disposition"].startswith("attachment")
    for path in ("morning-walk/run.log", "../conftest.py", "%2e%2e/x", "a/run.yaml"):
        assert session.fetch(f"/saved/{path}")[0] == 404

    # What comes after a save is saved too, in the same folder.
    browser.tap("d")
    browser.wait_made(45)
    browser.messages.clear()
    browser.send(type="take_up", name="morning-walk")
    browser.wait(lambda: browser.last("flush"))
    browser.wait(browser.is_ready)
    assert browser.last("state")["frames"] == 45
    browser.tap("w")
    browser.wait_made(61)
    session.end()
    first, second = session.out / "morning-walk", session.out / "morning-walk-2"
    assert (first / "pose.txt").read_text() == "w-3,left-4,d-4\n"
    assert (second / "pose.txt").read_text() == "w-3,left-4,d-4,w-4\n"
    assert count_frames(second / "video.mp4") == 61
    assert not (first / "parts").exists()
    assert load_file(second / "latents.safetensors")["latents"].equal(made_again(second))
    assert json.loads((first / "memory.json").read_text())["pixel_frames"] == 45


def test_a_prompt_changes_at_the_next_chunk(play, text_engine):
    session = play(text_engine)
    browser = session.browser()
    browser.wait(browser.is_ready)
    assert not browser.last("state")["camera"]
    browser.tap("go")
    browser.wait_made(9)
    browser.send(type="prompt", text="A large green ball bounces on grass")
    browser.rest(0.5)
    assert browser.last("state")["frames"] == 9
    assert browser.last("state")["next_prompt"]
    browser.tap("go")
    browser.wait_made(21)
    session.end()
    (run,) = session.out.iterdir()
    engine = Engine.load(file=run / "run.yaml")
    (change,) = engine.config.prompt_changes
    assert (change.frame, change.prompt) == (9, "A large green ball bounces on grass")
    assert load_file(run / "latents.safetensors")["latents"].equal(made_again(run))


def test_a_walk_has_one_prompt(play, walk_engine):
    browser = play(walk_engine).browser()
    browser.wait(browser.is_ready)
    browser.send(type="prompt", text="A blue cone on sand")
    browser.wait(lambda: browser.last("error"))
    assert "one prompt" in browser.last("error")["message"]


def test_an_unknown_word_of_a_pocket_prompt_is_told(play, pocket_engine):
    browser = play(pocket_engine).browser()
    browser.wait(browser.is_ready)
    browser.send(type="world", prompt="A dragon on grass")
    browser.wait(lambda: browser.last("notice"))
    assert "'dragon'" in browser.last("notice")["message"]


def test_a_world_that_cannot_begin_leaves_the_player_at_work(play, walk_engine):
    browser = play(walk_engine).browser()
    browser.wait(browser.is_ready)
    browser.send(type="world", prompt="x", seed=2**62)
    browser.send(type="take_up", name="nothing")
    browser.wait(lambda: browser.last("error"))
    assert "no saved run 'nothing'" in browser.last("error")["message"]
    # A key that comes before the other world would be forgotten with the first one.
    browser.wait(lambda: browser.is_ready() and browser.last("state")["prompt"] == "x")
    browser.tap("w")
    browser.wait_made(13)


def test_what_fails_in_a_chunk_keeps_the_walk_so_far(play, walk_engine, monkeypatch):
    from qvg_cli.engine.session import Session

    session = play(walk_engine)
    browser = session.browser()
    browser.wait(browser.is_ready)
    browser.tap("w")
    browser.wait_made(13)
    step = Session.step

    def fail(self, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Session, "step", fail)
    browser.tap("w")
    browser.wait(lambda: browser.last("error"))
    assert "out of memory" in browser.last("error")["message"]
    browser.wait(lambda: browser.last("saved"))
    monkeypatch.setattr(Session, "step", step)
    browser.send(type="take_up", name=browser.last("saved")["name"])
    browser.wait(browser.is_ready)
    browser.tap("a")
    browser.wait_made(29)


def test_a_walk_that_was_killed_is_made_a_run(play, walk_engine):
    session = play(walk_engine)
    browser = session.browser()
    browser.wait(browser.is_ready)
    for key in ("w", "a"):
        browser.tap(key)
    browser.wait_made(29)
    # As a kill leaves it: the parts are there, and no video.
    folder = session.server.player._folder
    for future in list(folder._pending):
        future.result()
    left = session.out / "left"
    left.mkdir()
    for path in [folder.run.config, *(folder.run.path / "parts").iterdir()]:
        copy = left / path.relative_to(folder.run.path)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (left / "parts" / "00002.safetensors").write_bytes(b"cut off")
    assert recover(left, torch.device("cpu"))
    assert not recover(left, torch.device("cpu"))
    run = RunDir(left)
    assert count_frames(run.video) == 29
    assert load_file(run.latents)["latents"].shape[2] == 8


def test_a_port_in_use_is_told():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            listen("127.0.0.1", port)
