"""What the evaluation draws and how it reports."""

import sys

import pytest
import torch

from scripts.pocket.evaluate import draw_specs, main, table
from scripts.pocket.prompts import Grammar


def test_an_evaluation_can_leave_values_out():
    specs = draw_specs(Grammar.load(), 30, ["cone", "night"], torch.Generator().manual_seed(0))
    assert len(specs) == 30
    assert not {"cone", "night"} & {value for spec in specs for value in vars(spec).values()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--without", "nite"], "invalid choice: 'nite'"),
        (["--without", "fixed", "pan", "orbit"], "leaves no held-out scene"),
        (["--parts", "30"], "invalid choice: '30'"),
        (["--rows", "0"], "--rows 0 is below 1"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_first(options, message, tmp_path, monkeypatch, capsys):
    arguments = ["evaluate", "--weights", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_holds_the_counts_of_each_rollout():
    found = {"color": 4, "shape": 2, "motion": 3, "all": 1}
    lines = table({"generated_5_seconds": {"clips": 4, "found": found}}).splitlines()
    assert lines[2:] == ["| 5-second videos | 4 | 4 | 2 | 3 | 1 |"]
