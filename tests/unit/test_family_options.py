"""Options that only some backends have, and what is said of a length beyond the training."""

from pathlib import Path

import pytest

from qvg_cli.config.load import Request, option_layers
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config, plan_video


def load(backend, *sets, **options):
    layers = option_layers(options)
    return load_config(Request(backend=backend, sets=sets, options=layers)).config


def test_what_a_chunk_attends_to_is_set_by_options():
    sampler = load("self-forcing", window="21", sink=3).sampler
    assert (sampler.window, sampler.sink) == (21, 3)
    assert load("self-forcing", "sampler.window=21", window="all").sampler.window is None
    assert load("hyworldplay", window="24").sampler.window == 24


@pytest.mark.parametrize(
    ("backend", "option"),
    [("longcat", {"window": "9"}), ("longcat", {"sink": 3}), ("hyworldplay", {"sink": 3})],
)
def test_a_backend_without_the_option_refuses_it_by_name(backend, option):
    # LongCat's setting of the same name is the length of its clips.
    with pytest.raises(UsageError, match=r"^--(window|sink) is not an option of this model$"):
        load(backend, **option)


def test_a_picture_goes_where_the_backend_has_it():
    assert load("longcat", image=Path("a.png")).source.image == "a.png"
    assert load("hyworldplay", image=Path("a.png")).walk.image == "a.png"


def test_a_window_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match=r"^--window -3 is not a number of latent frames$"):
        load("self-forcing", window="-3")


def test_a_length_beyond_the_training_is_said_to_be():
    assert plan_video(load("self-forcing")).notes == ()
    (note,) = plan_video(load("self-forcing", "video.frames=24")).notes
    assert note == (
        "the model was trained on 21 latent frames (81 pixel frames); beyond that: attending to the "
        "whole history, as in Quant VideoGen's runs of 180 latent frames"
    )
    (note,) = plan_video(load("self-forcing", "video.frames=24", window="21", sink=3)).notes
    assert note.endswith("attending to 21 latent frames; users report flicker about every 5 s with 21")


def test_the_longest_video_is_that_of_the_positions():
    assert plan_video(load("self-forcing", "video.frames=1023")).num_pixel_frames == 4089
    with pytest.raises(UsageError, match=r"longest: 1023 latent frames \(4089 pixel frames\)"):
        plan_video(load("self-forcing", "video.frames=1026"))


@pytest.mark.parametrize(
    "source",
    [
        {"frames": 3},
        {"image": "a.png", "frames": 2},
        {"image": "a.png", "latents": "b"},
        {"clip": "a.mp4", "frames": 3},
        {"clip": "a.mp4", "frames": 6, "clip_frames": 3},
        {"latents": "b", "frames": 6, "clip_frames": 3},
    ],
    ids=str,
)
def test_a_source_that_makes_no_sense_is_refused(source):
    sets = [f"source.{name}={value}" for name, value in source.items()]
    with pytest.raises(UsageError, match="source"):
        load("self-forcing", *sets)
