"""Checkpoints of the causal Wan family: each has its authors' settings, and runs with the built-in model."""

import pytest

from qvg_cli.config.load import Layer, Request
from qvg_cli.engine.jobs import plan_jobs
from qvg_cli.errors import UsageError
from qvg_cli.hub.spec import read_downloads
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.planning.prompts import ScheduledPrompt

FOUR, TWO = (1000, 750, 500, 250), (1000, 500)
# frames a chunk, window, sink, span, steps, first steps, recache, picture, weights key, length
RUN_AS = {
    "self-forcing": (3, None, 0, None, FOUR, None, "off", None, "auto", 21),
    "self-forcing-anti-drift": (3, 12, 5, 12, FOUR, None, "off", None, "auto", 240),
    "causal-forcing": (3, None, 0, None, FOUR, None, "off", None, "raw", 21),
    "causal-forcing-frame": (1, None, 0, None, FOUR, None, "off", 1, "auto", 21),
    "causal-forcing-2step": (1, None, 0, None, TWO, FOUR, "off", 1, "auto", 21),
    "causal-forcing-1step": (1, None, 0, None, (1000,), FOUR, "off", 1, "auto", 21),
    "longlive": (3, 12, 3, None, FOUR, None, "keep_sink", None, "raw", 120),
    "sgf-chunk": (3, 12, 3, 12, FOUR, None, "off", 3, "auto", 963),
    "sgf-frame": (1, 21, 4, 21, FOUR, None, "off", 1, "auto", 963),
    "infinite-forcing": (3, 6, 1, 6, FOUR, None, "off", None, "auto", 21),
}


def load(name, *sets, image=None, **options):
    layers = [Layer("--image", {"--image": image})] if image else []
    return load_config(Request(name, sets=sets, options=layers, **options)).config


@pytest.mark.parametrize("name", RUN_AS)
def test_settings_are_those_of_the_authors(name):
    config = load(name)
    sampler, model = config.sampler, config.model
    assert RUN_AS[name] == (
        sampler.frames_per_chunk,
        sampler.window,
        sampler.sink,
        sampler.position_span,
        sampler.steps,
        sampler.first_chunk_steps,
        sampler.recache,
        sampler.image_frames,
        model.weights_key,
        config.video.frames,
    )
    assert config.family_name == "self-forcing"
    assert plan_video(config).num_frames == config.video.frames
    assert family_of(config).sizes(config, is_gpu=True).num_layers == 30


def test_they_are_all_there_is_of_the_family():
    downloads = read_downloads()
    assert {name for name, each in downloads.items() if each.family == "self-forcing"} == set(RUN_AS)
    assert all(downloads[name].claims for name in RUN_AS)
    assert len({load(name).prompt for name in RUN_AS}) == len(RUN_AS)


@pytest.mark.parametrize("name", RUN_AS)
def test_what_is_converted_is_what_is_run(name):
    download, model = read_downloads()[name], load(name).model
    assert model.weights == (download.weights_of or name)
    (convert,) = [each.convert for each in download.config.repositories if each.convert is not None]
    assert convert.weights_key == model.weights_key
    assert model.lora == ()
    assert (convert.lora is None) == (name != "longlive")


@pytest.mark.parametrize("name", RUN_AS)
def test_the_built_in_model_runs_by_its_rules(name):
    config = load(name, pocket=True)
    assert config.model.weights == "pocket"
    assert plan_video(config).num_frames == config.video.frames <= 21


@pytest.mark.parametrize("name", RUN_AS)
def test_a_picture_is_taken_by_those_that_were_made_for_one(name):
    config = load(name, image="a.png")
    frames = RUN_AS[name][7]
    if frames is None:
        with pytest.raises(
            UsageError, match=rf"^{name} is text to video: there are no published weights of it"
        ):
            plan_video(config)
    else:
        assert config.source.frames == frames
        first = plan_video(config).chunks[0]
        assert (first.prefill, first.makes) == (tuple(range(frames)), ())


def test_another_number_of_frames_for_a_picture_is_refused():
    with pytest.raises(UsageError, match=r"^source\.frames=1: an image counts as 3 latent frames$"):
        load("sgf-chunk", "source.frames=1", image="a.png")


@pytest.mark.parametrize(("begins", "times"), [([48], "once"), ([48, 60], "2 times")])
def test_what_a_change_of_the_prompt_costs_is_said_before(begins, times):
    notes = []
    schedule = [ScheduledPrompt("a red ball bounces", "frame", begin, f"at {begin}") for begin in begins]
    plan_jobs(Request("longlive", pocket=True), notes.append, frames=93, schedule=schedule)
    (said,) = [note for note in notes if note.startswith("recache")]
    assert said.startswith(f"recache: {times}, the newest 9 latent frames pass again")
    assert "one model call of 1008 tokens" in said
