"""How long a video takes: near what runs at full size took on an H200 (docs/results.md), longer elsewhere."""

import pytest

from qvg_cli.config.load import Layer, Request
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.planning.duration import MEASURED, RATES, predict_duration


def predict(backend, *sets, cache="int2", card=MEASURED):
    layers = [Layer("--cache", {"cache": {"preset": cache}})]
    config = load_config(Request(backend, sets=sets, options=layers)).config
    sizes = family_of(config).sizes(config, is_gpu=True)
    return predict_duration(config, plan_video(config), sizes, card)


WALK = ("video.frames=96", "walk.pose=w-95", "sampler.context=incremental")


@pytest.mark.parametrize(
    ("arguments", "cache", "measured"),
    [
        (("self-forcing", "video.frames=21"), "int2", 2.56),
        (("self-forcing", "video.frames=180"), "int2", 64.9),
        (("self-forcing", "video.frames=180"), "bf16", 96.0),
        (("self-forcing", "video.frames=120", "sampler.window=12", "sampler.sink=3"), "int2", 15.71),
        (("hyworldplay", *WALK), "int2", 28.2),
    ],
)
def test_the_model_takes_about_as_long_as_was_measured(arguments, cache, measured):
    assert sum(predict(*arguments, cache=cache).chunks) == pytest.approx(measured, rel=0.2)


def test_a_segment_of_longcat_takes_about_as_long_as_was_measured():
    # 101.2 s, of which 6.6 were compiling.
    assert predict("longcat", "video.frames=29").chunks[-1] == pytest.approx(94.6, rel=0.2)


def test_a_chunk_of_the_decoder_takes_as_long_as_was_measured():
    found = predict("self-forcing", "video.frames=180")
    assert found.decoding / 60 == pytest.approx(0.163, rel=0.01)


def test_other_cards_are_slower_and_said_to_be_guessed():
    best = predict("self-forcing")
    for card in set(RATES) - {MEASURED}:
        found = predict("self-forcing", card=card)
        assert found.seconds >= best.seconds
        assert not found.is_measured
    assert predict("self-forcing", card="RTX 3060") is None
