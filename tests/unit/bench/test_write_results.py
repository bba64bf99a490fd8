"""The tables and plots of docs/results.md, written from figures."""

import dataclasses
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
LOSSES = {"key_db": -20, "value_db": -14, "key_gain": 1, "value_gain": 1, "moved": 0.03, "mass": 0}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The writer, on a copy of the page."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "bench"))
    import write_results

    (tmp_path / "images").mkdir()
    (tmp_path / "results.md").write_text((REPOSITORY / "docs" / "results.md").read_text())
    monkeypatch.setattr(write_results, "DOCS", tmp_path)
    return write_results


def row(figures, preset, attention_db, source, *, head=0, kind="", num_keys=10.0):
    return figures.Row(
        preset=preset,
        source=source,
        sample="0",
        tokens={"mid": 4680, "recorded": 336}[source],
        head=head,
        kind=kind,
        bits=2.5,
        attention_db=attention_db,
        logit_db=-25.0,
        token_shift=0.25,
        num_keys=num_keys,
        **LOSSES,
    )


def test_the_page_shows_what_was_measured(bench, tmp_path):
    figures = bench.figures
    sharp = [row(figures, name, db, "mid", kind="sharp") for name, db in (("int2", -30), ("int2-qvg", -18))]
    recorded = [
        row(figures, name, db + keys / 100, "recorded", head=head, num_keys=keys)
        for name, db in (("int2", -25), ("int2-qvg:num_centroids=6", -14.5))
        for head, keys in enumerate((300.0, 20.0))
    ]
    for name, rows in (("synthetic", sharp), ("recorded", recorded)):
        (tmp_path / f"{name}.json").write_text(json.dumps([dataclasses.asdict(each) for each in rows]))
    arms = [
        {"arm": name, "bits": 2.5, "ratio": 6.5, "windows": [{"psnr_db": psnr, "ssim": [0.99, 0.98]}]}
        for name, psnr in (("int2", [44.0, 42.0]), ("int2-qvg", [35.0, 31.0]))
    ]
    (tmp_path / "closed_loop.json").write_text(json.dumps({"arms": arms}))
    bench.write_page(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| int2 | int2-qvg | mid | 4,680 | 2.500 / 2.500 | -12.00 | - | +0.00 | +0.00 |" in text
    assert "| int2 | int2-qvg | recorded | 336 | 2.500 / 2.500 | -10.50 | -10.50 |" in text
    # The head that attends to fewer keys is the sharp one.
    assert "| int2 | 2.500 | -20.00 | -14.00 | -24.80 | -22.00 | -25.00 | 25.0 | 25.0 |" in text
    assert "| 33.00 dB | 0.9850 | 33.00 dB | -10.00 ± 1.00 dB, 0 of 2 above |" in text
    assert "![Bits against what attention and videos lose](images/results-pareto.png)" in text
    for name in ("synthetic", "recorded", "closed-loop", "pareto"):
        assert (tmp_path / "images" / f"results-{name}.png").stat().st_size > 1000
