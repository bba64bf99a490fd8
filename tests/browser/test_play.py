"""The page of `qvg play` in a real Chromium: keys walk, the picture moves as they say, nothing is lost."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from qvg_cli.config.load import Request
from qvg_cli.models.registry import load_config
from qvg_cli.video.io import count_frames
from scripts.pocket.camera_motion import measure_steps, name_move

pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_SECONDS = 120
"""For what is waited for: a chunk takes a few seconds on two cores that have nothing else to do."""


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    program = os.environ.get("QVG_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.fail("there is no Chromium: install the distribution's, or set QVG_CHROMIUM to a program")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """`qvg play` with the pocket world."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "-m", "qvg_cli", "play", "--port", "0", "--no-browser", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = None
    for line in process.stderr:
        if found := re.search(r"play at (http://\S+)", line):
            address = found[1]
            break
    yield SimpleNamespace(address=address, out=out / "hyworldplay")
    process.terminate()
    process.communicate(timeout=120)


class Page:
    """A page, the frames that its socket gets, and what goes wrong in it."""

    def __init__(self, context, address):
        self.frames = []
        self.faults = []
        self.page = context.new_page()
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._take))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.goto(address)
        self.page.set_default_timeout(1000 * PATIENCE_SECONDS)

    def _take(self, data):
        if isinstance(data, bytes):
            self.frames.append(np.asarray(Image.open(io.BytesIO(data[4:]))))

    def wait(self, expression):
        """Until it is true. (Playwright's own way evaluates a text in the page, which its policy forbids.)"""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.page.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, (expression, self.page.evaluate("state"))
            self.page.wait_for_timeout(50)

    def wait_ready(self):
        self.wait("state && state.status === 'ready'")

    def begin(self):
        """A new world, with nothing walked."""
        self.wait_ready()
        self.page.click("#open-world")
        self.page.click("#begin")
        self.wait("state.frames === 0 && state.status === 'ready'")
        self.frames.clear()

    def hold(self, key, chunks):
        """Keep a key down until so many chunks more are there, and all their frames on the screen."""
        before = self.page.evaluate("state.frames")
        self.page.keyboard.down(key)
        self.wait(f"state.frames >= {before} + {16 * chunks - 3}")
        self.page.keyboard.up(key)
        made = None
        # Another chunk may have begun before the key's end was heard.
        while made != (made := self.page.evaluate("state.frames")):
            self.page.wait_for_timeout(500)
            self.wait_ready()
        self.wait("!frames.length")


@pytest.fixture
def open_page(chromium, play):
    """A function: the page in a window of its own, of a size."""
    contexts = []

    def open_page(**options):
        context = chromium.new_context(accept_downloads=True, **options)
        contexts.append(context)
        return Page(context, play.address)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def player(chromium, play):
    """The one who plays."""
    context = chromium.new_context(accept_downloads=True, viewport={"width": 1440, "height": 900})
    page = Page(context, play.address)
    page.wait_ready()
    yield page
    assert not page.faults
    context.close()


@pytest.mark.parametrize(
    ("key", "move"), [("w", "w"), ("ArrowRight", "right"), ("ArrowLeft", "left"), ("a", "a")]
)
def test_the_picture_moves_as_the_key_says(player, key, move):
    player.begin()
    player.hold(key, chunks=2)
    assert len(player.frames) >= 29
    assert name_move(measure_steps(np.stack(player.frames))) == move


def test_the_canvas_shows_the_frame_that_came_last(player):
    player.begin()
    player.hold("w", chunks=1)
    shown = player.page.evaluate(
        "Array.from(picture.getContext('2d').getImageData(0, 0, picture.width, picture.height).data)"
    )
    shown = np.array(shown).reshape(128, 224, 4)[..., :3]
    assert np.abs(shown - player.frames[-1].astype(float)).mean() < 1


def test_no_chunk_is_made_while_no_key_is_down(player):
    player.begin()
    player.hold("w", chunks=1)
    made = len(player.frames)
    player.page.wait_for_timeout(3000)
    assert len(player.frames) == made


def test_a_reload_keeps_the_place_and_the_path(player):
    player.begin()
    player.hold("w", chunks=1)
    walked = player.page.evaluate("path.length")
    player.page.reload()
    player.wait_ready()
    player.wait("isPlayer && path.length > 1")
    assert player.page.evaluate("path.length") == walked
    player.hold("a", chunks=1)
    assert player.page.evaluate("path.length") > walked


def test_a_saved_walk_is_downloaded_and_made_again_by_its_settings(player, play, tmp_path):
    player.begin()
    player.hold("w", chunks=1)
    player.hold("ArrowLeft", chunks=1)
    player.page.click("#save")
    files = {}
    for name in ("video.mp4", "run.yaml", "pose.txt"):
        with player.page.expect_download() as download:
            player.page.click(f"#toasts >> text={name}")
        files[name] = tmp_path / name
        download.value.save_as(files[name])
    config = load_config(Request(file=files["run.yaml"])).config
    pose = files["pose.txt"].read_text().strip()
    assert pose == config.walk.pose
    assert pose.startswith("w-")
    assert count_frames(files["video.mp4"]) == 4 * config.video.frames - 3
    command = [sys.executable, "-m", "qvg_cli", "generate", "--config", files["run.yaml"], "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    (again,) = (tmp_path / "hyworldplay").iterdir()
    name = player.page.evaluate("runs[0]")
    first = load_file(play.out / name / "latents.safetensors")["latents"]
    assert load_file(again / "latents.safetensors")["latents"].equal(first)


def test_a_saved_walk_is_gone_on_with(player):
    player.begin()
    player.hold("w", chunks=1)
    walked = player.page.evaluate("state.frames")
    player.page.click("#save")
    player.wait("state.is_saved")
    player.page.click("#open-runs")
    player.page.click("#runs li:first-child button")
    player.wait(f"state.frames === {walked} && state.status === 'ready' && !state.seconds")
    player.hold("w", chunks=1)
    assert player.page.evaluate("state.frames") > walked


def test_a_picture_begins_a_world(player, tmp_path):
    picture = tmp_path / "dusk.png"
    Image.new("RGB", (448, 256), (220, 120, 40)).save(picture)
    player.wait_ready()
    player.page.click("#open-world")
    player.page.set_input_files("#file", picture)
    player.page.wait_for_selector("#thumb:not([hidden])")
    player.frames.clear()
    player.page.click("#begin")
    player.wait("state.frames === 0 && state.status === 'ready'")
    player.page.wait_for_timeout(500)
    assert np.abs(player.frames[-1].mean(axis=(0, 1)) - (220, 120, 40)).max() < 6
    player.page.click("#open-world")
    player.page.click("#no-picture")
    player.page.click("#open-world")


def test_a_broken_picture_is_told(player, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    player.page.click("#open-world")
    player.page.set_input_files("#file", broken)
    player.page.wait_for_selector("#toasts >> text=not a picture that can be read")
    player.page.click("#open-world")
    # The browser itself writes down that the server refused it.
    player.faults = [fault for fault in player.faults if "400" not in fault]


def test_a_second_window_watches(player, open_page):
    viewer = open_page(viewport={"width": 1000, "height": 700})
    viewer.wait("state && !isPlayer")
    assert viewer.page.is_disabled("#moves button")
    viewer.page.wait_for_timeout(500)
    assert len(viewer.frames) == 1
    player.hold("w", chunks=1)
    viewer.wait("!frames.length")
    assert len(viewer.frames) > 13
    assert not viewer.faults


def test_buttons_walk_on_a_phone(player):
    player.begin()
    player.page.set_viewport_size({"width": 390, "height": 844})
    button = player.page.locator('[data-key="w"]')
    button.dispatch_event("pointerdown", {"pointerId": 1, "pointerType": "touch", "isPrimary": True})
    player.wait("state.frames >= 13")
    button.dispatch_event("pointerup", {"pointerId": 1, "pointerType": "touch", "isPrimary": True})
    player.wait_ready()
    player.page.set_viewport_size({"width": 1440, "height": 900})


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 640), (844, 390), (390, 844), (320, 640)])
def test_nothing_is_cut_off_or_covered(player, width, height):
    player.page.set_viewport_size({"width": width, "height": height})
    player.page.wait_for_timeout(200)
    boxes = {
        name: player.page.locator(name).bounding_box()
        for name in ("#top", "#side", "#menu", "#moves", "#looks")
    }
    player.page.set_viewport_size({"width": 1440, "height": 900})
    for name, box in boxes.items():
        assert min(box["x"], box["y"]) >= 0, name
        assert box["x"] + box["width"] <= width, name
        assert box["y"] + box["height"] <= height, name
    for one in boxes:
        for other in boxes:
            if one < other:
                assert not overlap(boxes[one], boxes[other]), (one, other)


def overlap(one, other):
    return (
        one["x"] < other["x"] + other["width"]
        and other["x"] < one["x"] + one["width"]
        and one["y"] < other["y"] + other["height"]
        and other["y"] < one["y"] + one["height"]
    )
