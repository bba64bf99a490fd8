"""The id of a job: what decides the frames changes it, and nothing else does."""

import pytest

from qvg_cli.config.load import Request, setting_layers
from qvg_cli.config.resources import preset_names
from qvg_cli.models.registry import load_config
from qvg_cli.runs.identity import video_ids


def config(**settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return load_config(Request(pocket=True, options=setting_layers(named))).config


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "a blue cube"},
        {"seed": 1},
        {"video__frames": 9},
        {"video__width": 96},
        {"sampler__shift": 4.0},
        {"cache__preset": "bf16"},
        {"memory__weights": "fp8"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_decides_the_frames(settings):
    assert len(set(video_ids([config(), config(**settings)], "cpu"))) == 2


def test_the_kind_of_device_and_the_weights_too(tiny_weights, tmp_path):
    other = tmp_path / "weights"
    other.mkdir()
    (other / "vae").symlink_to(tiny_weights / "vae")
    ids = [video_ids([config(model__weights=str(folder))], "cpu") for folder in (tiny_weights, other)]
    assert video_ids([config()], "cpu") != video_ids([config()], "cuda")
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "settings",
    [{"model__name": "mine"}, {"device": "cpu"}, {"memory__transformer": "group"}, {"memory__vae": "model"}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_does_not(settings):
    assert len(set(video_ids([config(), config(**settings)], "cpu"))) == 1


def test_a_file_whose_name_is_a_prompt_is_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = video_ids([config(prompt="ball")], "cpu")
    (tmp_path / "ball").write_text("x")
    assert video_ids([config(prompt="ball")], "cpu") == before


def test_files_count_by_their_content(tmp_path):
    seen = []
    for name, content in (("a.png", b"1"), ("a.png", b"2"), ("b.png", b"1")):
        (tmp_path / name).write_bytes(content)
        seen += video_ids([config(source={"image": str(tmp_path / name)})], "cpu")
    assert seen[0] == seen[2] != seen[1]


def test_each_cache_preset_has_an_id_of_its_own_by_what_it_does():
    ids = video_ids([config(cache__preset=preset) for preset in preset_names()], "cpu")
    assert len(set(ids)) == len(ids)
