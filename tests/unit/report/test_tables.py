"""Tables fit the terminal, need no colour, and take text as it is."""

import pytest

from qvg_cli.report.comparison import summary_lines, variant_costs, with_baseline
from qvg_cli.report.tables import comparison_tables, format_facts, format_table, spread

MIB = 1024 * 1024


def memory(held, seconds, device_peak=None):
    moment = {"bytes": held, "kinds": {}, "bf16_bytes": 8 * MIB, "ratio": round(8 * MIB / held, 3)}
    chunks = [
        {"chunk": index, "pixel_frames": 9 + 12 * index, "end": moment, "device_peak_bytes": device_peak}
        for index in range(len(seconds))
    ]
    return {
        "peak": {"chunk": 0, **moment},
        "end": moment,
        "device_peak_bytes": device_peak,
        "chunk_seconds": seconds,
        "chunks": chunks,
    }


def quality(**changes):
    windows = [
        {"first_frame": first, "num_frames": 32, "psnr_db": 123.45, "ssim": 0.987654}
        for first in range(0, 960, 32)
    ]
    return {
        "psnr_db": 31.234,
        "ssim": 0.9,
        "first_different_frame": 9,
        "first_diverged_frame": 40,
        "windows": windows,
        **changes,
    }


@pytest.fixture
def comparison():
    variants = [
        {"name": "bf16", **variant_costs([memory(8 * MIB, [9.0, 1.0, 1.0], 12345 * MIB)]), "quality": None},
        *(
            {"name": name, **variant_costs([memory(MIB, [2.0, 2.0, 2.0], 12345 * MIB)]), "quality": quality()}
            for name in ("int2", "turboquant-int2", "int2-qvg-pro, changed (2)")
        ),
    ]
    return {"fps": 16, "arms": with_baseline(variants), "videos": [{}, {}]}


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(comparison, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = comparison_tables(comparison)
    assert max(map(len, text.splitlines())) <= columns
    # Cells fold; no figure is cut off.
    assert "..." not in text
    assert "\u2026" not in text
    assert text.count("12345.0") == 4


def test_tables_need_no_colour(comparison):
    text = comparison_tables(comparison)
    assert text.isascii()
    assert "\x1b" not in text
    assert "in brackets: relative to bf16" in text
    assert "mean of 2 videos" in text
    assert "PSNR [dB] by time (5 of 30 windows)" in text
    for name in ("int2", "turboquant-int2"):
        assert sum(line.startswith(f"{name} ") for line in text.splitlines()) == 4


def test_costs_are_medians_over_chunks_and_parts_of_the_baselines(comparison, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    baseline, int2, *_ = comparison["arms"]
    assert (baseline["seconds_per_chunk"], int2["seconds_per_chunk"]) == (1.0, 2.0)
    assert int2["of_baseline"] == {
        "peak_bytes": 0.125,
        "end_bytes": 0.125,
        "device_peak_bytes": 1.0,
        "seconds_per_chunk": 2.0,
    }
    [row] = [line for line in comparison_tables(comparison).splitlines() if line.startswith("int2 ")][:1]
    cells = ["int2", "1.00", "(0.12x)", "8.00x", "1.00", "12345.0", "(1.00x)", "2", "(2.00x)"]
    assert row.split() == cells


def test_several_videos_count_with_the_fullest_one():
    costs = variant_costs([memory(MIB, [1.0, 3.0]), memory(2 * MIB, [2.0, 4.0])])
    assert (costs["peak"]["bytes"], costs["end"]["bytes"]) == (2 * MIB, 2 * MIB)
    assert costs["seconds_per_chunk"] == 2.5
    assert [chunk["seconds"] for chunk in costs["chunks"]] == [1.5, 3.5]
    assert costs["device_peak_bytes"] is None


def test_the_summary_says_when_and_how_far(comparison):
    comparison["arms"][2]["quality"] = quality(
        first_different_frame=None, first_diverged_frame=None, psnr_db=None
    )
    comparison["arms"][3]["quality"] = quality(first_diverged_frame=None)
    lines = summary_lines(comparison)
    assert lines[0] == (
        "int2 has a peak KV cache of 1.00 MiB, bf16 of 8.00 MiB; a chunk takes 2.00x the time. "
        "Its frames differ from 0.56 s on; the first below 30 dB is at 2.50 s. "
        "The whole video has 31.23 dB and an SSIM of 0.9000."
    )
    assert lines[1].endswith("the time. All frames are equal.")
    assert "; none falls below 30 dB. " in lines[2]


def test_cells_are_text_and_not_markup():
    assert format_table(["name", "value"], [["[bold]x[/bold]", "1"], ["y", "20"]]) == (
        "name            value\n[bold]x[/bold]      1\ny                  20"
    )


def test_long_facts_go_on_under_themselves():
    text = format_facts([("a", "word " * 40), ("long name", "x")])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("a          word")
    assert lines[1].startswith("           word")


@pytest.mark.parametrize(
    ("count", "most", "shown"),
    [(3, 5, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4]), (9, 5, [0, 2, 4, 6, 8]), (100, 3, [0, 50, 99])],
)
def test_what_is_left_out_is_spread_evenly(count, most, shown):
    assert spread(count, most) == shown
