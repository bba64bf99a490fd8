"""Whole runs on a tiny model: what is in the folder, what is printed, what is left of a stopped run."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file

from qvg_cli.video.io import count_frames, read_frames


def test_the_folder_holds_the_whole_run(finished):
    _, made = finished
    folder = Path(made["folder"])
    assert folder.parts[-2:] == ("self-forcing", "a-red-ball-seed5")
    assert sorted(path.name for path in folder.iterdir()) == [
        "latents.safetensors", "memory.json", "memory.png", "report.html", "run.log", "run.yaml", "video.mp4"
    ]  # fmt: skip
    assert count_frames(folder / "video.mp4") == 33
    assert next(read_frames(folder / "video.mp4")).shape == (32, 64, 3)
    assert load_file(folder / "latents.safetensors")["latents"].shape == (1, 16, 9, 4, 8)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_the_object_and_the_memory_report_agree(finished):
    _, made = finished
    report = json.loads(Path(made["memory"]).read_text())
    assert report["schema"] == made["schema"] == 1
    for key in ("status", "peak", "end", "pixel_frames", "cache", "seed", "prompt"):
        assert report[key] == made[key]
    assert made["status"] == "complete"
    assert [chunk["pixel_frames"] for chunk in report["chunks"]] == [9, 21, 33]
    for chunk in report["chunks"]:
        assert sum(chunk["end"]["kinds"].values()) == chunk["end"]["bytes"]
    # The last chunk is read by none, so two are held: 6 frames of 8 tokens, 2 layers, K and V of 64.
    assert report["end"]["bf16_bytes"] == 6 * 8 * 2 * 2 * 64 * 2


def test_run_yaml_tells_where_the_run_comes_from(finished):
    _, made = finished
    run = yaml.safe_load(Path(made["config"]).read_text())
    assert (run["seed"], run["prompt"], run["video"]["frames"]) == (5, "a red ball", 9)
    assert set(run["provenance"]) == {"created", "command", "versions", "commit", "hardware", "attention"}
    assert run["provenance"]["hardware"]["device"] == "cpu"


def test_what_is_said(finished):
    result, _ = finished
    lines = result.stderr.splitlines()
    assert lines[0].startswith("no --backend given: using the built-in demo model (--backend selects")
    assert lines[1] == "video: 64x32, 33 frames (9 latent) at 16 fps, 2.06 s in 3 chunks"
    assert [line.partition(":")[0] for line in lines[3:6]] == ["chunk 1/3", "chunk 2/3", "chunk 3/3"]
    assert "fps, KV cache 0.0" in lines[5]
    assert lines[5].endswith("larger)")
    assert "0:00:0" in lines[3]
    assert lines[6].startswith("33 frames (2.06 s) in ")
    assert re.fullmatch(
        r"start [\d.]+ s, text [\d.]+ s, model [\d.]+ s, VAE [\d.]+ s, writing [\d.]+ s, idle [\d.]+ s; "
        r"first frame after [\d.]+ s; [\d.]+ fps without the VAE, [\d.]+ with the VAE",
        lines[7],
    )
    assert len(lines) == 8


def test_run_yaml_makes_the_same_video(finished, qvg, tmp_path):
    _, made = finished
    result = qvg("generate", "--config", made["config"], "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    again = json.loads(result.stdout)
    assert Path(again["latents"]).read_bytes() == Path(made["latents"]).read_bytes()
    for first, second in zip(
        read_frames(Path(made["video"])), read_frames(Path(again["video"])), strict=True
    ):
        assert np.array_equal(first, second)
    drop = ("provenance",)
    configs = [yaml.safe_load(Path(run["config"]).read_text()) for run in (made, again)]
    assert [{k: v for k, v in config.items() if k not in drop} for config in configs] == [
        {k: v for k, v in configs[0].items() if k not in drop}
    ] * 2


def test_many_prompts_get_a_folder_and_an_object_each(tiny, tmp_path):
    file = tmp_path / "jobs.jsonl"
    jobs = [
        {"prompt": "a red ball"},
        {"prompt": "a red ball", "seed": 1},
        {"prompt": "x", "name": "../My cube"},
    ]
    file.write_text("\n".join(map(json.dumps, [*jobs, {"prompt": "a red ball"}])))
    result = tiny("--prompts", file, "--frames", 9, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    made = [json.loads(line) for line in result.stdout.splitlines()]
    names = ["a-red-ball-seed0", "a-red-ball-seed1", "my-cube", "a-red-ball-seed0-2"]
    assert [Path(run["folder"]).name for run in made] == names
    latents = [Path(run["latents"]).read_bytes() for run in made]
    assert latents[0] == latents[3]
    assert latents[0] != latents[1]
    assert result.stderr.count("loading ") == 1
    assert "video 2/4: 'a red ball'" in result.stderr


def test_quiet_prints_the_path_alone(tiny, tmp_path):
    result = tiny("a red ball", "--frames", 9, "--out", tmp_path, "--quiet")
    assert (result.stdout, result.stderr) == (f"{tmp_path}/self-forcing/a-red-ball-seed0/video.mp4\n", "")


def test_what_was_chosen_for_the_user_is_said(qvg, tmp_path, monkeypatch):
    # Stops at the missing ffmpeg, after everything was planned.
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    lines = qvg("generate", "--seconds", "5", "--out", tmp_path).stderr.splitlines()
    assert lines[1].startswith("no PROMPT given: 'A ")
    assert lines[2] == "--seconds 5 rounded up to 5.06 s, a whole number of chunks"
    lines = qvg("generate", "two dragons and a red ball", "--out", tmp_path).stderr.splitlines()
    assert lines[2].startswith(
        "the demo model does not know 'two', 'dragons' and may show something else; it knows size: medium,"
    )


def test_ctrl_c_keeps_a_video_that_plays(start, tiny, tmp_path):
    options = ["--frames", 801, "--out", tmp_path, "--json"]
    program = start("generate", *tiny.arguments, "a red ball", *options)
    for line in program.stderr:
        if line.startswith("chunk 2/"):
            break
    program.send_signal(signal.SIGINT)
    stdout, stderr = program.communicate()
    assert program.returncode == 130, stderr
    made = json.loads(stdout)
    folder = Path(made["folder"])
    frames = made["pixel_frames"]
    assert made["status"] == "interrupted"
    assert frames >= 21
    assert stderr.splitlines()[-3:] == [
        f"error: stopped; the first {frames} frames ({frames / 16:.2f} s) are in {folder}/video.mp4",
        "",
        f"hint: resume with: qvg generate --resume {folder}",
    ]
    assert count_frames(folder / "video.mp4") == frames
    assert json.loads((folder / "memory.json").read_text())["pixel_frames"] == frames
    assert (folder / "run.yaml").exists()
    latents = load_file(folder / "latents.safetensors")["latents"]
    assert 1 + 4 * (latents.shape[2] - 1) == frames


def test_a_terminal_gets_a_bar_without_colour_if_asked(start, tiny, tmp_path):
    terminal = {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"}
    options = ["--frames", 9, "--out", tmp_path]
    program = start("generate", *tiny.arguments, "a red ball", *options, has_terminal=True, env=terminal)
    shown = b""
    with contextlib.suppress(OSError):  # How a terminal says that its program has ended.
        while part := os.read(program.stderr.fileno(), 4096):
            shown += part
    assert program.wait() == 0
    text = shown.decode()
    assert "1/1" in text
    assert "fps, KV cache" in text
    assert not re.search(r"\x1b\[[0-9;]*[34]\d", text)
