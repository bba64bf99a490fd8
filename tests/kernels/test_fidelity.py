"""The fidelity bench end to end, on the smallest spans it takes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from .histories import make_span


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the bench with arguments; what it prints, and the table it writes."""
    import fidelity

    threads = torch.get_num_threads()
    table = tmp_path / "table.md"

    def bench(*arguments):
        files = ["--table", str(table), "--plot", str(tmp_path / "plot.png"), "--threads", str(threads)]
        monkeypatch.setattr("sys.argv", ["fidelity.py", *arguments, *files])
        fidelity.main()
        assert (tmp_path / "plot.png").stat().st_size > 1000
        return capsys.readouterr().out, table.read_text()

    return bench


@pytest.fixture
def recorded(tmp_path):
    """Two layers, two prompts, two heads, ten frames of 2 x 3 tokens, judged by the last two."""
    tensors = {
        f"layer{layer}.{name}": make_span(2, 2, 60, 64, dtype=torch.bfloat16)
        for layer in range(2)
        for name in ("key", "value")
    }
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        tensors[f"layer{layer}.query0"] = torch.randn(2, 2, 8, 64, generator=generator).bfloat16()
    tensors["tokens0"] = torch.randint(0, 12, (8,), generator=generator, dtype=torch.int32)
    chunk = {"frames": [8, 9], "reads": list(range(8)), "slots": list(range(10))}
    about = {"layers": [0, 1], "frame": [2, 3], "frames": list(range(10)), "chunks": [chunk]}
    path = tmp_path / "recorded.safetensors"
    save_file(tensors, path, metadata={"recording": json.dumps(about)})
    return str(path)


@pytest.mark.slow
def test_it_compares_presets_on_synthetic_spans(run):
    printed, table = run(
        "--presets", "int2", "int2-qvg", "--spans", "1560", "--history", "1560", "--samples", "1"
    )
    assert table in printed
    for level in ("low", "mid", "high"):
        assert f"{level}, spans of 1,560 tokens" in table
        assert f"| int2 | int2-qvg | {level} | 1,560 |" in table


def test_it_reads_a_recording(run, recorded):
    presets = ("int2", "int2-qvg:num_centroids=16,block_size=32")
    _, table = run("--presets", *presets, "--recorded", recorded, "--spans", "24", "48")
    assert "| int2-qvg:num_centroids=16,block_size=32 |" in table
    assert "| int2 | int2-qvg | recorded | 24 |" in table
    assert "recorded, spans of 48 tokens" in table


def test_without_a_span_a_chunk_of_a_recording_is_one(run, recorded):
    _, table = run("--presets", "int2", "--recorded", recorded)
    assert "recorded, spans of 12 tokens" in table


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("60", "--spans 60 is longer than any history of .*, at most 48 tokens"),
        ("20", "--spans 20 is not a whole number of frames"),
    ],
)
def test_a_span_that_the_recording_does_not_hold_is_refused(run, recorded, span, message):
    with pytest.raises(ValueError, match=message):
        run("--presets", "int2", "--recorded", recorded, "--spans", span)


def test_a_span_of_broken_frames_is_refused(run):
    with pytest.raises(
        ValueError, match="--spans 4000 is not a whole number of frames of 1560 tokens; nearest: 4680"
    ):
        run("--presets", "int2", "--spans", "4000")
