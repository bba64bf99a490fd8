"""Rules of the causal checkpoints in whole videos: extended and resumed bit for bit, begun by a picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qvg_cli.config.load import Layer, Request
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.engine.engine import Engine
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config

FIRST, THEN = "A small red cube rests on sand", "A large green ball bounces on grass"
WINDOW = {"sampler.window": 9, "sampler.sink": 3, "sampler.steps": [1000, 500]}
RULES = {
    "compact positions": {**WINDOW, "sampler.sink": 4, "sampler.position_span": 9},
    "positions with a gap": {**WINDOW, "sampler.position_span": 12},
    "more steps at first": {"sampler.steps": [1000], "sampler.first_chunk_steps": [1000, 500]},
    "framewise": {
        "sampler.frames_per_chunk": 1,
        "sampler.window": 6,
        "sampler.sink": 2,
        "sampler.position_span": 6,
        "sampler.steps": [1000],
        "sampler.first_chunk_steps": [1000, 500],
    },
    "recache, sink kept": {**WINDOW, "sampler.recache": "keep_sink"},
    "recache, sink renewed": {**WINDOW, "sampler.position_span": 9, "sampler.recache": "renew_sink"},
}
QUICK = ("compact positions", "recache, sink kept", "recache, sink renewed")
# Pixel frame 45 is the first of latent frame 12, the 5th chunk of three: the window has begun to roll.
SCHEDULE = {45 / 16: THEN}


def schedule_of(settings):
    return SCHEDULE if settings.get("sampler.recache") else None


def save(folder, video):
    """The files by which a run is known."""
    folder.mkdir()
    (folder / "run.yaml").write_text(format_yaml(video.config.model_dump(mode="json")))
    save_file({"latents": video.latents.contiguous()}, folder / "latents.safetensors")
    video.save(folder / "video.mp4")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(rule, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, rule in RULES.items()
    ],
)
def test_an_extended_run_is_the_longer_run(text_engine, tmp_path, settings):
    schedule = schedule_of(settings)
    make = {"seed": 2, "settings": settings, "schedule": schedule}
    # The window rolls in the chunk that is added; a prompt changes before it.
    frames = 33 if schedule is None else 57
    half = text_engine.generate(FIRST, frames=frames, **make)
    longer = text_engine.generate(FIRST, frames=frames + 12, **make)
    extended = text_engine.extend(save(tmp_path / "half", half), frames=12, settings=settings)
    assert extended.latents.equal(longer.latents)
    assert np.array_equal(extended.frames, longer.frames)
    if schedule is not None:
        plain = text_engine.generate(
            FIRST, frames=57, seed=2, settings={**settings, "sampler.recache": "off"}
        )
        assert plain.latents[:, :, :12].equal(half.latents[:, :, :12])
        assert not plain.latents[:, :, 12:].equal(half.latents[:, :, 12:])


@pytest.mark.parametrize("recache", ["keep_sink", "renew_sink"])
def test_a_prompt_that_changes_where_a_run_ended_passes_the_cache_again(text_engine, tmp_path, recache):
    settings = {**WINDOW, "sampler.recache": recache}
    half = text_engine.generate(FIRST, frames=45, settings=settings)
    longer = text_engine.generate(FIRST, frames=57, settings=settings, schedule=SCHEDULE)
    extended = text_engine.extend(save(tmp_path / "half", half), frames=12, schedule={0: THEN})
    assert extended.latents.equal(longer.latents)


@pytest.mark.parametrize(
    ("rule", "cut"),
    [
        ("compact positions", 4),
        ("recache, sink kept", 4),
        ("recache, sink renewed", 5),
        pytest.param("recache, sink kept", 5, marks=pytest.mark.slow),
        pytest.param("recache, sink renewed", 4, marks=pytest.mark.slow),
        # Positions are data of a plan, which the quick ones resume too.
        *(pytest.param(rule, 4, marks=pytest.mark.slow) for rule in RULES if rule not in QUICK),
    ],
)
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(go_on, text_settings, rule, cut):
    """Where there is a recache it is the fifth chunk: cut off before it, and after it."""
    settings = RULES[rule]
    values = {**text_settings, "video.frames": 18, **settings}
    if schedule_of(settings):
        values["prompt_changes"] = [{"frame": 45, "prompt": THEN}]
    layers = []
    for name, value in values.items():
        for key in reversed(name.split(".")):
            value = {key: value}
        layers.append(Layer(name, value))
    config = load_config(Request("self-forcing", options=layers)).config
    rest_of_whole, rest = go_on(config, cut)
    assert len(rest) == len(rest_of_whole) > 0
    for ours, theirs in zip(rest, rest_of_whole, strict=True):
        assert ours.latents.equal(theirs.latents)
        assert ours.frames.equal(theirs.frames)


@pytest.mark.parametrize(
    "name", ["longlive", "causal-forcing-2step", pytest.param("sgf-chunk", marks=pytest.mark.slow)]
)
def test_a_session_is_the_video_of_its_checkpoint(text_settings, name):
    settings = {key: value for key, value in text_settings.items() if key != "sampler.steps"}
    engine = Engine.load(name, device="cpu", settings=settings)
    session = engine.session(FIRST)
    count = 5 if name != "causal-forcing-2step" else 3
    chunks = [session.step() for _ in range(count)] + [session.step(prompt=THEN), session.step()]
    begin = sum(len(chunk.frames) for chunk in chunks[:count])
    whole = engine.generate(FIRST, frames=session.num_frames, schedule={begin / 16: THEN})
    assert torch.cat([chunk.latents for chunk in chunks], dim=2).equal(whole.latents)


@pytest.fixture
def picture(tmp_path):
    """A red box on grass under a blue sky, wider than the video."""
    pixels = np.full((64, 160, 3), (90, 140, 80), np.uint8)
    pixels[:32] = (150, 190, 230)
    pixels[20:44, 70:94] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "box.png")
    return tmp_path / "box.png"


@pytest.mark.parametrize(
    ("name", "num_still"), [("causal-forcing-frame", 1), pytest.param("sgf-chunk", 9, marks=pytest.mark.slow)]
)
def test_a_video_begins_with_its_picture(picture, name, num_still):
    engine = Engine.load(name, pocket=True, device="cpu", settings={"video.height": 64, "video.width": 128})
    video = engine.generate(FIRST, frames=num_still + 12, image=picture)
    assert len(video.frames) == num_still + 12
    (note,) = [line for line in video.notes if "box.png" in line]
    assert "cropped" in note
    shown = np.asarray(Image.open(picture))[:, 16:144].astype(int)
    # The small VAE loses tones; it is the picture all the same, and not the picture upside down.
    for frame in video.frames[:num_still].astype(int):
        assert np.abs(frame - shown).mean() < np.abs(frame - shown[::-1]).mean() / 3
    given = 1 + (num_still - 1) // 4
    other = engine.generate(FIRST, frames=num_still + 12, image=picture, seed=5)
    assert other.latents[:, :, :given].equal(video.latents[:, :, :given])
    assert not other.latents[:, :, given:].equal(video.latents[:, :, given:])


def test_a_video_with_a_picture_is_extended_with_the_same_bits(text_settings, picture, tmp_path):
    engine = Engine.load("causal-forcing-2step", device="cpu", settings=text_settings)
    half = engine.generate(FIRST, frames=13, image=picture)
    longer = engine.generate(FIRST, frames=21, image=picture)
    extended = engine.extend(save(tmp_path / "half", half), frames=8)
    assert extended.latents.equal(longer.latents)


def test_a_picture_is_refused_by_name(text_engine, picture):
    with pytest.raises(
        UsageError, match=r"^self-forcing is text to video: there are no published weights"
    ) as refused:
        text_engine.generate(FIRST, frames=9, image=picture)
    assert "causal-forcing-frame, sgf-chunk" in refused.value.hint


def test_another_adapter_needs_another_engine(text_engine):
    with pytest.raises(UsageError, match=r"^settings of model are fixed when the model is loaded$"):
        text_engine.generate(FIRST, frames=9, lora=["a.safetensors"])
