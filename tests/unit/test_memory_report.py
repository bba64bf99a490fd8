"""memory.json adds up, compares the same frames, and the plot is drawn."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from qvg_cli.planning.ledger import MemorySample, join
from qvg_cli.report.memory import MemoryReport
from qvg_cli.report.plotter import Plotter
from qvg_cli.report.words import describe_bytes, processes_text

MIB = 1024 * 1024


def sample(chunk, frames, peak, end, bf16_peak, bf16_end, device_peak=None):
    return MemorySample(chunk, frames, peak, end, bf16_peak, bf16_end, device_peak)


@pytest.fixture
def report():
    samples = [
        sample(0, 3, {"bf16": 64, "codes": 10}, {"codes": 10, "scales": 2}, 80, 80, 500),
        sample(1, 6, {"bf16": 64, "codes": 20}, {"codes": 20, "scales": 4}, 160, 160, 700),
        sample(2, 9, {"codes": 20, "scales": 4}, {"codes": 20, "scales": 4}, 160, 160, 600),
    ]
    return MemoryReport(samples, fps=16, label="int2 cache")


def test_the_peak_is_the_fullest_moment_and_stands_beside_the_same_frames(report):
    content = report.to_json({"prompt": "x"})
    assert content["schema"] == 1
    assert content["prompt"] == "x"
    assert content["peak"] == {
        "chunk": 1,
        "bytes": 84,
        "kinds": {"bf16": 64, "codes": 20},
        "bf16_bytes": 160,
        "ratio": 1.905,
    }
    assert content["end"] == {
        "bytes": 24,
        "kinds": {"codes": 20, "scales": 4},
        "bf16_bytes": 160,
        "ratio": 6.667,
    }
    assert content["device_peak_bytes"] == 700
    json.dumps(content)


def test_several_processes_are_added_up_and_each_is_told(report):
    parts = [sample(0, 3, {"codes": 20}, {"codes": 12}, 80, 40, peak) for peak in (700, 500)]
    together = join(parts)
    assert (together.peak_bytes, together.bf16_end_bytes, together.device_peak_bytes) == (
        {"codes": 40},
        80,
        700,
    )
    later = join([replace(part, chunk=1, end_bytes={"codes": 16}, device_peak_bytes=600) for part in parts])
    content = MemoryReport([together, later], fps=16, label="int2").to_json({})
    assert content["processes"] == [
        {"peak_bytes": 20, "end_bytes": 16, "device_peak_bytes": peak} for peak in (700, 600)
    ]
    assert [each["device_peak_bytes"] for each in content["chunks"][0]["processes"]] == [700, 500]
    told = [{"peak_bytes": 20 * MIB, "end_bytes": 0, "device_peak_bytes": None}] * 2
    assert processes_text(told) == "KV cache 20.0, 20.0 MiB"
    assert "processes" not in report.to_json({})


def test_every_chunk_is_listed_and_its_kinds_add_up(report):
    chunks = report.to_json({})["chunks"]
    assert [(chunk["latent_frames"], chunk["pixel_frames"]) for chunk in chunks] == [(3, 9), (6, 21), (9, 33)]
    for chunk in chunks:
        for moment in ("peak", "end"):
            assert sum(chunk[moment]["kinds"].values()) == chunk[moment]["bytes"]


def test_a_cache_that_held_nothing_has_no_ratio():
    report = MemoryReport([sample(0, 3, {}, {}, 0, 0)], 16, "x")
    assert report.summary() == {
        "peak": {"chunk": 0, "bytes": 0, "kinds": {}, "bf16_bytes": 0, "ratio": None},
        "end": {"bytes": 0, "kinds": {}, "bf16_bytes": 0, "ratio": None},
        "device_peak_bytes": None,
    }


@pytest.mark.parametrize("count", [1, 3])
def test_the_plot_is_an_image(report, tmp_path, count):
    few = MemoryReport(report.samples[:count], report.fps, report.label)
    few.save_plot(tmp_path / "m.png.part")
    with Image.open(tmp_path / "m.png.part") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(100_000)) > 10


def test_another_process_draws_the_same_plots(report):
    report.save_plot(plot := BytesIO())
    paths = [Path("a.png"), Path("b.png")]
    assert Plotter().draw(dict.fromkeys(paths, report.save_plot)) == dict.fromkeys(paths, plot.getvalue())


def test_a_process_that_fails_draws_none(report):
    plotter = Plotter()
    plotter._process.kill()
    assert plotter.draw({Path("a.png"): report.save_plot}) == {}


def test_what_is_no_plot_is_not_taken_for_one(report, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert Plotter().draw({Path("a.png"): report.save_plot}) == {}


def test_what_cannot_be_sent_to_another_process_is_not_drawn_there(report):
    assert Plotter().draw({Path("a.png"): lambda file: report.save_plot(file)}) == {}


@pytest.mark.parametrize(
    ("held", "bf16", "text"),
    [
        (0, 0, "0.00 MiB"),
        (2 * MIB, 15 * MIB, "2.00 MiB, 7.50x smaller than BF16 (15.0 MiB)"),
        (4 * MIB, 3 * MIB, "4.00 MiB, 1.33x larger than BF16 (3.00 MiB)"),
        (3 * MIB, 3 * MIB + 1, "3.00 MiB, same size as BF16 (3.00 MiB)"),
    ],
)
def test_bytes_in_words(held, bf16, text):
    assert describe_bytes(held, bf16) == text
