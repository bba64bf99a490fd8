"""What `qvg show` prints of runs, and the pages: whole without a network, every text escaped."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qvg_cli.report.html import run_page
from qvg_cli.report.run_files import read_result


@pytest.fixture
def results(finished, tmp_path):
    """A results folder with two runs, the newer one with a prompt that is no good HTML."""
    source = Path(finished[1]["folder"])
    root = tmp_path / "results"
    prompts = {"older": "a red ball", "newer": "<script>alert(1)</script> & #1"}
    for number, (name, prompt) in enumerate(prompts.items()):
        folder = root / "self-forcing" / name
        shutil.copytree(source, folder)
        memory = json.loads((folder / "memory.json").read_text())
        (folder / "memory.json").write_text(json.dumps({**memory, "prompt": prompt}))
        os.utime(folder / "memory.json", (1e9 + number, 1e9 + number))
    return root


def test_the_newest_run_is_shown(qvg, results):
    result = qvg("show", "--out", results)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"{results}/self-forcing/newer", "<script>alert(1)</script> & #1"]
    assert max(len(line) for line in lines[2:]) <= 80
    for text in ("status          complete", "seed            5", "cache           int2-qvg", "than BF16"):
        assert text in result.stdout
    chunks = [line.split()[:2] for line in lines if re.match(r"\d", line)]
    assert chunks == [["1", "9"], ["2", "21"], ["3", "33"]]


def test_one_run_is_shown_and_as_json(qvg, results):
    folder = results / "self-forcing" / "older"
    assert qvg("show", folder).stdout.splitlines()[:2] == [str(folder), "a red ball"]
    shown = json.loads(qvg("show", folder, "--json").stdout)
    assert shown == {"folder": str(folder), **json.loads((folder / "memory.json").read_text())}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{folder} is not the folder of a run: it has no memory.json"),
        ("{", "{folder}/memory.json is broken: "),
        ("[]", "{folder}/memory.json is not a report of qvg: it has no schema number"),
        ('{"schema": 99}', "{folder}/memory.json has schema 99, this qvg reads up to 1"),
        ('{"schema": 1}', "{folder}/memory.json is incomplete: it has no status"),
    ],
)
def test_what_is_not_a_run(qvg, tmp_path, content, message):
    if content is not None:
        (tmp_path / "memory.json").write_text(content)
    result = qvg("show", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message.format(folder=tmp_path)}")


def test_no_runs_at_all(qvg, tmp_path):
    assert qvg("show", "--out", tmp_path / "none").stderr.startswith(f"error: no folder {tmp_path}/none\n")
    assert qvg("show", "--out", tmp_path).stderr.startswith(f"error: no run in {tmp_path}\n")
    assert qvg("show", "--gallery", tmp_path).stderr.startswith(f"error: no run in {tmp_path}\n")


def assert_whole(page, folder):
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'(?:src|href|poster)="([^"]*)"', page)
    for source in sources:
        assert source.startswith("data:image/") or (folder / source).is_file()
    return sources


def test_every_run_has_a_page(finished):
    _, made = finished
    page = Path(made["report"]).read_text()
    sources = assert_whole(page, Path(made["folder"]))
    assert "video.mp4" in sources
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 1
    assert sum(source.startswith("data:image/png") for source in sources) == 1
    assert "<h1>a red ball</h1>" in page
    assert "seed: 5" in page


def test_text_of_users_is_escaped(results):
    page = run_page(read_result(results / "self-forcing" / "newer"))
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt; &amp; #1</h1>" in page


def test_a_run_whose_video_is_gone_still_has_a_page(results):
    folder = results / "self-forcing" / "older"
    for name in ("video.mp4", "memory.png", "run.yaml"):
        (folder / name).unlink()
    page = run_page(read_result(folder))
    assert assert_whole(page, folder) == []
    assert "No video." in page


def test_the_gallery_has_a_line_a_result(qvg, results):
    (results / "self-forcing" / "broken").mkdir()
    (results / "self-forcing" / "broken" / "memory.json").write_text("{")
    result = qvg("show", "--gallery", results)
    assert (result.exit_code, result.stdout) == (0, f"{results}/index.html\n")
    assert result.stderr.startswith(f"skipping: {results}/self-forcing/broken/memory.json is broken: ")
    page = (results / "index.html").read_text()
    sources = assert_whole(page, results)
    videos = [source for source in sources if source.endswith("video.mp4")]
    assert videos == ["self-forcing/newer/video.mp4", "self-forcing/older/video.mp4"]
    assert page.count("self-forcing/newer/report.html") == 1


def test_show_needs_no_torch(results):
    code = (
        "import sys; from qvg_cli.main import app\n"
        f"try: app(['show', '--out', {str(results)!r}])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_a_reader_that_has_read_enough_is_no_error(results):
    program = subprocess.Popen(
        [sys.executable, "-m", "qvg_cli", "show", "--out", str(results), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program.stdout.close()
    assert (program.wait(60), program.stderr.read()) == (0, "")
