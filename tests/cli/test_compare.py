"""Whole comparisons on a tiny model: the same noise, figures, files, and what is left when one stops."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from qvg_cli.errors import QvgError
from qvg_cli.main import app
from qvg_cli.runs.run import Run
from qvg_cli.video.io import count_frames, read_frames

FRAMES = 33
LENGTH = ("--frames", FRAMES)


def settings(tiny):
    # All but the preset.
    return tiny.arguments[:-2]


@pytest.fixture(scope="module")
def compare(tiny):
    """`qvg compare` with the tiny model."""
    return lambda *arguments: CliRunner().invoke(
        app, ["compare", *map(str, arguments[:2]), *settings(tiny), *map(str, arguments[2:])]
    )


@pytest.fixture(scope="module")
def compared(compare, tmp_path_factory):
    """Result of a comparison of three variants, the last like the first, and its `--json` object."""
    out = tmp_path_factory.mktemp("compared")
    variants = ("bf16", "int2-qvg", "bf16")
    result = compare(
        *variants, "--prompt", "a red ball", *LENGTH, "--seed", 5, "--seeds", 2, "--out", out, "--json"
    )
    assert result.exit_code == 0, result.stderr
    return result, json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(compared):
    return Path(compared[1]["folder"])


def test_the_folder_holds_the_report_and_every_run(folder):
    assert folder.parts[-2:] == ("compare", "bf16-int2-qvg-bf16-2-2-videos")
    assert sorted(path.name for path in folder.iterdir()) == [
        "a-red-ball-seed5", "a-red-ball-seed6", "attention.png", "compare.json", "costs.png", "quality.png",
        "report.html",
    ]  # fmt: skip
    for seed in (5, 6):
        video = folder / f"a-red-ball-seed{seed}"
        assert sorted(path.name for path in video.iterdir()) == [
            "bf16",
            "bf16-2",
            "int2-qvg",
            "side-by-side.mp4",
        ]
        assert count_frames(video / "side-by-side.mp4") == FRAMES
        assert json.loads((video / "int2-qvg" / "memory.json").read_text())["seed"] == seed


def test_all_variants_have_the_same_noise(compared):
    _, made = compared
    again = made["arms"][2]
    assert again["name"] == "bf16 (2)"
    assert again["quality"]["psnr_db"] is None
    assert again["quality"]["ssim"] == 1
    assert again["quality"]["first_different_frame"] is None


def test_an_variant_differs_from_the_first_chunk_that_reads_packed_history(compared):
    _, made = compared
    for video in made["videos"]:
        int2 = video["arms"][1]
        assert int2["first_different_frame"] == 9
        assert int2["frames"]["psnr_db"][:9] == [None] * 9
        assert len(int2["frames"]["ssim"]) == FRAMES
        assert [window["num_frames"] for window in int2["windows"]] == [32, 1]


def test_figures_stand_beside_the_baselines(compared, folder):
    _, made = compared
    assert made["schema"] == 1
    assert json.loads((folder / "compare.json").read_text()).items() <= made.items()
    baseline, int2, _ = made["arms"]
    assert baseline["quality"] is None
    for moment in ("peak", "end"):
        assert int2[moment]["bf16_bytes"] == baseline[moment]["bf16_bytes"]
        part = int2[moment]["bytes"] / baseline[moment]["bytes"]
        assert int2["of_baseline"][f"{moment}_bytes"] == pytest.approx(part, abs=1e-4)
    memory = json.loads((folder / made["videos"][0]["arms"][1]["run"] / "memory.json").read_text())
    assert int2["peak"] == memory["peak"]
    assert [chunk["end_bytes"] for chunk in int2["chunks"]] == [
        chunk["end"]["bytes"] for chunk in memory["chunks"]
    ]


def test_what_packing_does_to_attention_is_measured_in_the_exact_run(compared, folder):
    _, packed, exact = compared[1]["arms"]
    attention = packed["attention"]
    assert (exact["attention"], compared[1]["arms"][0]["attention"]) == (None, None)
    assert 0 < attention["token_shift"] <= 1
    assert attention["logit_rms"] > 0 > attention["logit_db"]
    assert [chunk["chunk"] for chunk in attention["chunks"]] == [1]
    assert [layer["layer"] for layer in attention["layers"]] == [0, 1]
    memory = json.loads((folder / "a-red-ball-seed5" / "bf16" / "memory.json").read_text())
    assert [set(chunk["losses"]) for chunk in memory["chunks"][:2]] == [set(), {"int2-qvg"}]
    assert "What attention lost" in (folder / "report.html").read_text()


def test_a_packed_run_predicts_the_error_of_its_logits(compared, folder, qvg):
    run = folder / "a-red-ball-seed5" / "int2-qvg"
    memory = json.loads((run / "memory.json").read_text())
    assert ["predicted_logit_rms" in chunk for chunk in memory["chunks"]] == [False, True, False]
    measured = compared[1]["arms"][1]["attention"]["logit_rms"]
    assert memory["predicted_logit_rms"] == pytest.approx(measured, rel=0.3)
    assert "Logits, by layer" in (run / "report.html").read_text()
    assert len(re.findall(r"^[01] +0\.\d{4}$", qvg("show", run, "--layers").stdout, re.MULTILINE)) == 2


def test_single_layers_are_shown_on_demand(folder, qvg):
    shown = qvg("show", folder, "--layers")
    assert re.search(r"^layer +cache +logit rms", shown.stdout, re.MULTILINE)
    assert len(re.findall(r"^[01] +int2-qvg ", shown.stdout, re.MULTILINE)) == 2
    assert "by layer" not in qvg("show", folder).stdout


def test_a_run_of_a_comparison_is_the_run_that_generate_makes(tiny, folder, tmp_path):
    result = tiny("a red ball", "--cache", "int2-qvg", *LENGTH, "--seed", 6, "--out", tmp_path, "--json")
    alone = load_file(json.loads(result.stdout)["latents"])["latents"]
    assert alone.equal(load_file(folder / "a-red-ball-seed6" / "int2-qvg" / "latents.safetensors")["latents"])


@pytest.fixture(scope="module")
def runs(folder):
    return [folder / "a-red-ball-seed5" / name for name in ("bf16", "int2-qvg")]


@pytest.fixture(scope="module")
def compared_again(runs, random_vgg, tmp_path_factory):
    """Result of a comparison of finished runs, with LPIPS, and its `--json` object."""
    arguments = [
        "compare",
        *map(str, runs),
        "--out",
        str(tmp_path_factory.mktemp("again")),
        "--lpips",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments, env={"QVG_HOME": str(random_vgg)})
    assert result.exit_code == 0, result.stderr
    return result, json.loads(result.stdout)


def test_finished_runs_give_the_same_figures(compared, runs, compared_again):
    _, made = compared
    _, again = compared_again
    assert again["compared"].startswith("frames decoded again from the latents of the runs")
    first, second = made["videos"][0]["arms"][1], again["videos"][0]["arms"][1]
    for key in ("psnr_db", "ssim", "first_different_frame"):
        assert first[key] == second[key]
    for key in ("psnr_db", "ssim"):
        assert first["frames"][key] == second["frames"][key]
        assert [one[key] for one in first["windows"]] == [other[key] for other in second["windows"]]
    assert (Path(again["folder"]) / second["run"]).resolve() == runs[1].resolve()
    names = ["compare.json", "costs.png", "quality.png", "report.html", "side-by-side.mp4"]
    assert sorted(path.name for path in Path(again["folder"]).iterdir()) == names


def test_lpips_stands_beside_the_other_figures(compared, compared_again):
    assert compared[1]["arms"][1]["quality"]["lpips"] is None
    result, made = compared_again
    figures = made["videos"][0]["arms"][1]
    distances = figures["frames"]["lpips"]
    # The first chunk reads nothing that was packed.
    assert distances[:9] == [0] * 9
    assert distances[-1] > 0
    assert figures["lpips"] == pytest.approx(sum(distances) / FRAMES, abs=1e-6)
    windows = [window["lpips"] for window in figures["windows"]]
    assert windows == pytest.approx([sum(distances[:32]) / 32, distances[32]], abs=1e-6)
    assert "LPIPS by time:" in result.stderr
    assert f"an LPIPS of {figures['lpips']:.4f}." in Path(made["report"]).read_text()


def test_lpips_is_refused_before_a_model_is_loaded(compare, tmp_path):
    result = compare("bf16", "int2", "--out", tmp_path, "--lpips")
    assert result.exit_code == 3
    assert "error: --lpips needs a VGG16 network, which is not at " in result.stderr
    assert "loading " not in result.stderr
    assert "hint: download it with: qvg download lpips (528 MiB" in result.stderr
    assert not list(tmp_path.glob("compare/*"))


def test_the_page_needs_no_network_and_no_script(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    for source in re.findall(r'(?:src|href|poster)="([^"]*)"', page):
        assert source.startswith("data:image/") or (folder / source).is_file()
    assert "int2-qvg, bf16 (2) vs bf16" in page


def test_the_side_by_side_video_shows_the_frames_and_the_error(folder):
    path = folder / "a-red-ball-seed5" / "side-by-side.mp4"
    *_, last = read_frames(path)
    # Enlarged four times, below a caption 24 high; the third variant equals the first: its error is black.
    frames = [last[24 : 24 + 128, left : left + 256].astype(int) for left in (0, 260, 520)]
    assert np.abs(frames[0] - frames[2]).mean() < 5
    errors = [last[24 + 132 : 24 + 260, left : left + 256].astype(int) for left in (260, 520)]
    assert errors[1].max() < 12
    assert errors[0].max() > errors[1].max()


def test_the_table_fits_a_terminal_and_needs_no_colour(compared):
    result, _ = compared
    table = result.stderr[result.stderr.index("KV cache and time (in brackets: relative to bf16):") :]
    assert max(map(len, table.splitlines())) <= 80
    assert "\x1b" not in table
    assert re.search(r"^int2-qvg +\d+\.\d+ \(\d\.\d\dx\) +\d\.\d\dx", table, re.MULTILINE)
    assert re.search(r"^bf16 \(2\) +equal +1\.0000 +never +never$", table, re.MULTILINE)


def test_many_prompts_and_quiet(compare, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a red ball", "name": "ball"}\n{"prompt": "a red ball", "seed": 3}\n')
    result = compare(
        "int2-qvg", "none", "--prompts", prompts, "--frames", 9, "--out", tmp_path / "out", "--quiet"
    )
    folder = tmp_path / "out" / "compare" / "int2-qvg-none-2-videos"
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{folder}/report.html\n"
    made = json.loads((folder / "compare.json").read_text())
    assert [(video["seed"], video["side_by_side"]) for video in made["videos"]] == [
        (0, "ball/side-by-side.mp4"),
        (3, "a-red-ball-seed3/side-by-side.mp4"),
    ]


def test_a_setting_of_the_cache_changes_every_variant(compare, tmp_path):
    result = compare(
        "int2-qvg", "bf16", "--frames", 9, "--set", "cache.keep_sink=true", "--out", tmp_path, "--json"
    )
    assert [variant["cache"]["keep_sink"] for variant in json.loads(result.stdout)["arms"]] == [True, True]


def test_ctrl_c_keeps_a_report_on_what_was_compared(start, tiny, tmp_path):
    options = ["--frames", 21, "--seeds", 50, "--out", tmp_path]
    program = start("compare", "bf16", "int2-qvg", *settings(tiny), *options)
    for line in program.stderr:
        if line.startswith("video 2/"):
            break
    program.send_signal(signal.SIGINT)
    stdout, stderr = program.communicate()
    assert (program.returncode, stdout) == (130, ""), stderr
    [report] = (tmp_path / "compare").glob("*/report.html")
    assert f"partial results: {report}" in stderr
    made = json.loads((report.parent / "compare.json").read_text())
    assert made["status"] == "partial"
    assert 1 <= len(made["videos"]) < 50
    assert "This comparison was interrupted" in report.read_text()
    assert not list(tmp_path.rglob("*.part"))


def test_a_comparison_that_made_nothing_leaves_nothing(compare, tmp_path):
    result = compare("bf16", "int2-qvg", "--set", f"model.weights={tmp_path}/none", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_built_in_model_loses_little_with_int2(tmp_path):
    command = [sys.executable, "-m", "qvg_cli", "compare", "bf16", "int2", "--size", "112x64"]
    options = ["--frames", "33", "--out", str(tmp_path), "--json", "--quiet"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    made = json.loads(result.stdout)
    int2 = made["arms"][1]
    assert int2["peak"]["ratio"] > 4
    assert int2["quality"]["first_different_frame"] == 9
    assert 25 < int2["quality"]["psnr_db"] < 60
    assert Path(made["report"]).stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("cut", [2, 5, 6, 8])
def test_a_comparison_that_was_cut_off_goes_on(compare, compared, qvg, tmp_path, monkeypatch, cut):
    """Cut in the second run; in the first, after a whole video, in the second video."""
    add, left = Run.add, [cut]

    def add_then_die(self, result):
        add(self, result)
        left[0] -= 1
        if left[0] == 0:
            raise QvgError("cut off")

    arguments = ("bf16", "int2-qvg", "--prompt", "a red ball", *LENGTH, "--seed", 5, "--seeds", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "add", add_then_die)
        result = compare(*arguments, "--out", tmp_path)
    [folder] = (tmp_path / "compare").iterdir()
    assert result.exit_code == 1
    assert f"resume with: qvg compare --resume {folder}" in result.stderr
    result = qvg("compare", "--resume", folder, "--json")
    assert result.exit_code == 0, result.stderr
    again, whole = json.loads(result.stdout), compared[1]
    assert (again["status"], len(again["videos"])) == ("complete", 2)
    for one, other in zip(again["videos"], whole["videos"], strict=True):
        assert one["arms"][1]["frames"] == other["arms"][1]["frames"]
        assert count_frames(folder / one["side_by_side"]) == FRAMES
    for figures in ("peak", "attention"):
        assert again["arms"][1][figures] == whole["arms"][1][figures]
    assert not list(folder.rglob("state"))
    assert not (folder / "begun.json").exists()
    assert "is not the folder of an unfinished comparison" in qvg("compare", "--resume", folder).stderr


def test_what_a_comparison_cannot_go_on_from_is_refused(qvg, tmp_path):
    (tmp_path / "begun.json").write_text('{"schema": 1, "names": ["a", "b"], "rows": [[{}, {}]]}')
    result = qvg("compare", "--resume", tmp_path)
    assert (result.exit_code, f"{tmp_path}/begun.json is broken" in result.stderr) == (2, True)
    assert "variants and --resume were both given" in qvg("compare", "bf16", "--resume", tmp_path).stderr
