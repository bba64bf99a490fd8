"""Running `qvg` in this process, on a tiny model, and one finished run to look at."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qvg_cli.main import app


@dataclass(frozen=True)
class Tiny:
    """`qvg generate` with the tiny model, 33 frames of 32 x 64 unless asked for otherwise."""

    weights: Path

    @property
    def arguments(self):
        settings = [f"model.weights={self.weights}", "model.text_tokens=8", "sampler.steps=[1000, 500]"]
        settings.append("cache.preset=int2-qvg")
        return ["--size", "64x32", *(part for setting in settings for part in ("--set", setting))]

    def __call__(self, *arguments):
        return CliRunner().invoke(app, ["generate", *self.arguments, *map(str, arguments)])


@pytest.fixture(scope="session")
def tiny(tiny_weights):
    return Tiny(tiny_weights)


@pytest.fixture
def qvg():
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """Result of a run and its `--json` object."""
    out = tmp_path_factory.mktemp("finished")
    result = tiny("a red ball", "--frames", 33, "--seed", 5, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    return result, json.loads(result.stdout)
