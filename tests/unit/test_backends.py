"""A backend is one YAML: a new checkpoint of a known family needs no line of code."""

import json
import os
import shutil

import pytest
from typer.testing import CliRunner

from qvg_cli.config import resources
from qvg_cli.config.load import Layer, Request, backend_names
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.errors import UsageError
from qvg_cli.hub.spec import read_downloads
from qvg_cli.main import app
from qvg_cli.models.registry import FAMILIES, family_of, find_family, load_config, plan_video

NEW = """\
summary: another checkpoint of a known family
licence: for this test alone
family: self-forcing
prompt: a red ball
model: {name: Rolling, weights: rolling, text_tokens: 64}
video: {height: 480, width: 832, frames: 12}
sampler: {steps: [1000, 500], shift: 5.0, frames_per_chunk: 3, window: 9, sink: 3}
cache: {preset: int2}
pocket:
  model: {weights: pocket}
  video: {height: 64, width: 64}
download:
  about_gb: 1
  repositories: [{repository: someone/rolling, convert: {file: a.pt, into: transformer, parameters: 9}}]
"""


@pytest.fixture
def rolling(tmp_path, monkeypatch):
    """A package whose configs have one more file."""
    shutil.copytree(resources.configs_dir(), tmp_path / "configs")
    (tmp_path / "configs" / "rolling.yaml").write_text(NEW)
    os.symlink(resources.weights_folder("pocket").parent, tmp_path / "data")
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    resources.configs_dir.cache_clear()
    yield "rolling"
    resources.configs_dir.cache_clear()


def test_every_backend_that_ships_is_of_a_family():
    assert set(FAMILIES) <= set(backend_names())
    assert {load_config(Request(backend=name)).config.family_name for name in backend_names()} == set(
        FAMILIES
    )
    assert all(find_family(name).name == name for name in FAMILIES)


def test_a_new_yaml_is_a_backend_of_its_family(rolling):
    config = load_config(Request(backend=rolling, sets=["sampler.sink=0"])).config
    assert (config.backend, config.family, config.family_name) == (rolling, "self-forcing", "self-forcing")
    assert type(config) is find_family("self-forcing").config_class
    assert plan_video(config).chunks[3].reads == (3, 4, 5, 6, 7, 8)
    # Not on this machine yet: as large as the family's published model.
    sizes = family_of(config).sizes(config, is_gpu=True)
    assert (sizes.num_layers, sizes.heads) == (30, 12)


def test_its_options_are_those_of_the_family(rolling):
    layers = [Layer("--window", {"--window": "all"})]
    assert load_config(Request(backend=rolling, options=layers)).config.sampler.window is None
    with pytest.raises(UsageError, match=r"^--pose is not an option of this model$"):
        load_config(Request(backend=rolling, options=[Layer("--pose", {"--pose": "w-3"})]))


def test_its_run_yaml_makes_the_run_again(rolling, tmp_path):
    config = load_config(Request(backend=rolling, pocket=True)).config
    file = tmp_path / "run.yaml"
    file.write_text(format_yaml(config.model_dump(mode="json")))
    assert load_config(Request(file=file)).config == config
    assert "family" not in load_config(Request()).config.model_dump()


def test_another_family_is_refused(rolling):
    with pytest.raises(UsageError, match=r"^family=longcat .*rolling belongs to the family self-forc"):
        load_config(Request(backend=rolling, sets=["family=longcat"]))


def test_an_unknown_family_is_named(rolling, tmp_path):
    (tmp_path / "configs" / "odd.yaml").write_text(NEW.replace("self-forcing", "self_forcing"))
    with pytest.raises(UsageError, match=r"^unknown family 'self_forcing'") as refused:
        load_config(Request(backend="odd"))
    assert refused.value.hint.startswith("nearest: self-forcing; known: ")


def test_it_is_planned_made_and_downloaded_by_its_name(rolling, tmp_path):
    assert read_downloads()[rolling].family == "self-forcing"
    runner = CliRunner()
    planned = runner.invoke(app, ["plan", "--backend", rolling, "--card", "24GiB", "--json"])
    assert planned.exit_code == 0, planned.output
    arguments = ["generate", "a red ball", "--backend", rolling, "--pocket", "--frames", "9", "--json"]
    made = runner.invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert made.exit_code == 0, made.output
    figures = json.loads(made.stdout)
    assert f"/out/{rolling}/" in figures["video"]
