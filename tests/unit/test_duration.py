"""How long a video takes: near what runs at full size took on an H200 (docs/results.md), longer elsewhere."""

from dataclasses import replace

import pytest

from qvg_cli.config.load import Layer, Request
from qvg_cli.engine.jobs import plan_jobs
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.planning.time_forecast import CARD, RATES, decoding_seconds, transformer_seconds
from qvg_cli.report.forecasts import make_plan


def planned(backend, *sets, cache="int2"):
    layers = [Layer("--cache", {"cache": {"preset": cache}})]
    config = load_config(Request(backend, sets=sets, options=layers)).config
    sizes = family_of(config).sizes(config, is_gpu=True)
    return config, plan_video(config), sizes


def predict(*arguments, card=CARD, **options):
    return transformer_seconds(*planned(*arguments, **options), card)


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
    assert predict(*arguments, cache=cache) == pytest.approx(measured, rel=0.2)


def test_a_segment_of_longcat_takes_about_as_long_as_was_measured():
    # 101.2 s, of which 6.6 were compiling; the clip before it takes the rest.
    config, plan, sizes = planned("longcat", "video.frames=29")
    segment = replace(plan, chunks=plan.chunks[-1:])
    assert transformer_seconds(config, segment, sizes) == pytest.approx(94.6, rel=0.2)


def test_a_chunk_of_the_decoder_takes_as_long_as_was_measured():
    _, plan, sizes = planned("self-forcing", "video.frames=180")
    assert decoding_seconds(plan, sizes) / 60 == pytest.approx(0.163, rel=0.01)


def test_other_cards_are_slower():
    for card in set(RATES) - {CARD}:
        assert predict("self-forcing", card=card) >= predict("self-forcing")
        assert predict("self-forcing", "video.frames=180", card=card) > 0


def test_what_is_not_measured_on_a_card_is_said_to_be_so():
    (video,) = plan_jobs(Request("self-forcing"), lambda line: None)
    assert "H200 (1 s of it decoding; from rates measured there)" in text(video, "H200")
    assert "one RTX 4090" in text(video, "RTX 4090")
    assert "not measured there" in text(video, "RTX 4090")
    assert "not known for this GPU" in text(video, "RTX 3060")


def text(video, card):
    return " ".join(str(make_plan([video], card)).split())
