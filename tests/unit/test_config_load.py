"""Sources are laid over one another in order and checked alike; messages name setting, source and nearest."""

import shutil

import pytest

from qvg_cli.config.cache_presets import cache_label, take_preset
from qvg_cli.config.load import Layer, Request, backend_names
from qvg_cli.config.resources import configs_dir, preset_names
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config
from qvg_kernels.spec import Bf16Spec, FittedSpec, QvgSpec


def load(*sets, **request):
    return load_config(Request(sets=sets, **request)).config


def refused(*sets, **request):
    with pytest.raises(UsageError) as caught:
        load(*sets, **request)
    return str(caught.value), caught.value.hint


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\nvideo: {fps: 8, frames: 9}\n")
    config = load(
        "video.fps=12",
        "seed=2",
        file=file,
        options=[Layer("--seed", {"seed": 3}), Layer("PROMPT", {"prompt": "x"})],
    )
    assert (config.video.frames, config.video.fps, config.seed, config.prompt) == (9, 12, 3, "x")


def test_without_a_backend_the_pocket_model_is_taken():
    loaded = load_config(Request())
    assert loaded.has_default_backend
    assert loaded.config.model.weights == "pocket"
    assert (loaded.config.video.height, loaded.config.video.width) == (128, 224)


def test_a_named_backend_uses_its_own_weights_unless_pocket_is_asked_for(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("backend: self-forcing\n")
    for request in ({"backend": "self-forcing"}, {"file": file}):
        assert load(**request).video.height == 480
        assert load(**request, pocket=True).video.height == 128


def test_a_copy_of_the_backends_yaml_is_a_valid_file():
    path = configs_dir() / "self-forcing.yaml"
    assert load(file=path) == load(backend="self-forcing")
    assert load(file=path, pocket=True) == load()


def test_the_resolved_config_loads_to_itself(tmp_path):
    config = load(
        "cache.preset=int2-qvg",
        "cache.k.preset=bf16",
        "cache.v.block_size=16",
        "cache.layers.2-3.v.preset=trit",
        "prompt='1e5: [a]'",
        "seed=7",
    )
    file = tmp_path / "run.yaml"
    file.write_text(format_yaml({**config.model_dump(mode="json"), "provenance": {"commit": "12e4"}}))
    assert load(file=file) == config


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads(preset):
    config = load(f"cache.preset={preset}")
    assert config.cache.preset == preset
    assert cache_label(config.cache) == preset


def test_a_plain_cache_setting_changes_keys_and_values():
    cache = load("cache.preset=int2-qvg", "cache.block_size=16", "cache.stages=4").cache
    assert cache.k == cache.v == QvgSpec(block_size=16, stages=4)
    assert cache_label(cache) == "int2-qvg, changed"


def test_the_preset_of_an_option_does_not_undo_a_setting():
    option = Layer("--cache", {"cache": {"preset": "int2-qvg"}})
    cache = load("cache.block_size=16", "cache.preset=bf16", options=[option]).cache
    assert cache.k == cache.v == QvgSpec(block_size=16)


def test_keys_and_values_can_come_from_different_presets():
    cache = load("cache.k.preset=int2-qvg", "cache.v.preset=bf16").cache
    assert (cache.k, cache.v) == (QvgSpec(), Bf16Spec())


def test_the_special_wins_over_the_general_whatever_the_order(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("cache:\n  k: {block_size: 16}\n  block_size: 32\n  preset: int2-qvg\n")
    cache = load(file=file).cache
    assert (cache.k.block_size, cache.v.block_size) == (16, 32)


def test_layers_have_codecs_of_their_own_on_top_of_those_of_the_others(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("cache:\n  layers: {'0': {v: {preset: trit}}, 2-3: {k: {grid: int3}}}\n  unbiased: 0.9\n")
    cache = load("cache.layers.3.k.unbiased=0.5", file=file).cache
    plain, trit = FittedSpec(unbiased=0.9), FittedSpec(grid="trit")
    assert cache_label(cache) == "int2, changed"
    assert [(layer.k, layer.v) for layer in cache.of_layers(5)] == [
        (plain, trit),
        (plain, plain),
        (FittedSpec(grid="int3", unbiased=0.9), plain),
        (FittedSpec(grid="int3", unbiased=0.5), plain),
        (plain, plain),
    ]


def test_another_preset_takes_its_layers_with_it(monkeypatch, tmp_path):
    folder = shutil.copytree(configs_dir(), tmp_path / "configs")
    int2 = (folder / "cache" / "int2.yaml").read_text()
    (folder / "cache" / "mixed.yaml").write_text(int2 + "layers: {'1': {v: {grid: trit}}}\n")
    monkeypatch.setattr("qvg_cli.config.resources.configs_dir", lambda: folder)
    cache = load("cache.preset=mixed").cache
    assert cache.layers[1].v == FittedSpec(grid="trit")
    assert cache_label(cache) == "mixed"
    assert not take_preset(cache, "int4").layers


def test_another_scheme_starts_from_its_own_defaults():
    assert load("cache.preset=int2-qvg", "cache.k.scheme=bf16").cache.k == Bf16Spec()


@pytest.mark.parametrize(
    ("sets", "message", "hint"),
    [
        (["video.frame=9"], "unknown setting video.frame (--set video.frame)", "nearest: video.frames"),
        (["frames=9"], "unknown setting frames (--set frames)", "nearest: video.frames"),
        (
            ["cache.blocksize=16"],
            "unknown setting cache.blocksize (--set cache.blocksize)",
            "nearest: cache.block_size",
        ),
        (
            ["cache.k.num_centroid=3"],
            "unknown setting cache.k.num_centroid (--set cache.k.num_centroid)",
            "nearest: cache.k.num_centroids",
        ),
        (
            ["cache.k.scheme=[]", "cache.k.bits=2"],
            "unknown cache.k.scheme '[]' (--set cache.k.bits)",
            "known: none, bf16, asym, fitted, rtn, kivi, quarot, quantwm, qvg, turboquant",
        ),
        (["provenance.seed=9"], "unknown setting provenance (--set provenance.seed)", None),
        (["video.fps"], "--set video.fps is not of the form KEY=VALUE", "e.g. --set video.fps=24"),
        (["=3"], "--set =3 is not of the form KEY=VALUE", "e.g. --set video.fps=24"),
        (
            ["video=3"],
            "video=3 (--set video): video is a group of settings",
            "set one of video.height, video.width, video.frames, video.fps, video.decoder",
        ),
        (["video.frames=0"], "video.frames=0 (--set video.frames): must be greater than 0", None),
        (["video.frames=true"], "video.frames=True (--set video.frames): must be a whole number", None),
        (["video.frames=9.5"], "video.frames=9.5 (--set video.frames): must be a whole number", None),
        (
            ["sampler.steps=[]"],
            "sampler.steps=[] (--set sampler.steps): Tuple should have at least 1 item",
            None,
        ),
        (["sampler.shift=.nan"], "sampler.shift=nan (--set sampler.shift): must be a finite number", None),
        (["cache.keep_sink=1"], "cache.keep_sink=1 (--set cache.keep_sink): must be true or false", None),
        (
            ["video.fps=yes"],
            "--set video.fps: yes is ambiguous: some YAML parsers read it as true or false",
            "write true or false, or 'yes' for the word",
        ),
        (
            ["prompt=a: b: c"],
            "--set prompt: mapping values are not allowed here",
            "put text with : or # or brackets in quotes",
        ),
        (
            ["cache.preset=int2-qvg", "cache.block_size=17"],
            "cache.block_size=17 (--set cache.block_size): must be 16, 32, 64 or 128",
            None,
        ),
        (
            ["cache.preset=int2-qvg", "cache.num_centroids=300"],
            "cache (--set cache.num_centroids): num_centroids=300 is out of range; choose 1 to 256",
            None,
        ),
        (
            ["cache.preset=bf16", "cache.num_centroids=128"],
            "cache.num_centroids=128 (--set cache.num_centroids): cache.k has scheme 'bf16' without it",
            "it has no settings; use another preset",
        ),
        (
            ["cache.k=bf16"],
            "cache.k='bf16' (--set cache.k): cache.k is a group of settings",
            "for a preset's codec, set cache.k.preset=bf16",
        ),
        (
            ["cache.layers.1.k.grid=int9"],
            "cache.layers.1.k.grid='int9' (--set cache.layers.1.k.grid): must be 'e8x1', ",
            None,
        ),
        (
            ["cache.layers.first.k.grid=int3"],
            "cache.layers.first (--set cache.layers.first.k.grid): layers are numbers, such as 2 or 2-5",
            "for example --set cache.layers.2-5.v.preset=trit",
        ),
        (
            ["cache.layers.1.preset=trit"],
            "cache.layers.1={'preset': 'trit'} (--set cache.layers.1.preset): a layer has codecs k and v",
            "for example --set cache.layers.2-5.v.preset=trit",
        ),
    ],
)
def test_a_wrong_setting_is_refused(sets, message, hint):
    shown, shown_hint = refused(*sets)
    assert shown.startswith(message)
    assert shown_hint == hint


def test_a_knob_that_the_scheme_does_not_have_names_those_it_has():
    _, hint = refused("cache.preset=int2-qvg", "cache.unbiased=1.0")
    assert hint == "it has: bits, block_size, num_centroids, stages, iterations"


def test_unknown_names_come_with_the_nearest():
    assert refused(backend="self_forcing") == (
        "unknown backend 'self_forcing'",
        "nearest: self-forcing; known: " + ", ".join(backend_names()),
    )
    message, hint = refused("cache.preset=int2_qvg")
    assert message == "unknown cache preset 'int2_qvg' (--set cache.preset)"
    assert hint.startswith("nearest: int2-qvg; known: bf16, bit1, bit1-shaped, int2, ")
    message, hint = refused("cache.k.scheme=qvgg")
    assert message == "unknown cache.k.scheme 'qvgg' (--set cache.k.scheme)"
    assert hint.startswith("nearest: qvg; known: none, bf16, asym, fitted, ")


def test_all_wrong_settings_are_named_at_once():
    message, _ = refused("seed=-1", "video.fps=0")
    assert message == (
        "2 invalid settings\n  seed=-1 (--set seed): must be greater than or equal to 0\n"
        "  video.fps=0 (--set video.fps): must be greater than 0"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"video: {frames: 9, frames: 12}\n", "{} line 1: 'frames' is set twice"),
        (b"- a\n", "{} has no settings"),
        (b"", "{} has no settings"),
        (b"\xff\xfe", "cannot read {}: it is not UTF-8 text"),
        (b"video: {colour: red}\n", "unknown setting video.colour ({})"),
        (b"pocket: 3\n", "{}: pocket must be a group of settings, not 3"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert refused(file=file)[0] == message.format(file)


def test_a_missing_file_is_named(tmp_path):
    assert (
        refused(file=tmp_path / "no.yaml")[0] == f"cannot read {tmp_path}/no.yaml: No such file or directory"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("memory.transformer=resident", "memory.transformer=none"),
        ("memory.transformer=parked", "memory.transformer=model"),
        ("memory.transformer=streamed", "memory.transformer=group"),
        ("memory.vae=parked", "memory.vae=model"),
    ],
)
def test_words_of_older_runs_mean_what_they_meant(old, new):
    loaded = load_config(Request(sets=[old]))
    assert loaded.config == load(new)
    setting = old.partition("=")[0]
    assert loaded.notes == (f"{old} (--set {setting}) is now called {new}; the old name still works",)
    assert not load_config(Request(sets=[new])).notes
