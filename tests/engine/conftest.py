"""Engines of the three families: random weights of two layers, on pictures of 32 x 64 pixels."""

import pytest

from qvg_cli.engine.engine import Engine


@pytest.fixture(scope="session")
def text_settings(tiny_weights):
    return {
        "model.weights": str(tiny_weights),
        "model.text_tokens": 32,
        "video.height": 32,
        "video.width": 64,
        "sampler.steps": [1000, 500],
    }


@pytest.fixture(scope="session")
def text_engine(text_settings):
    return Engine.load("self-forcing", device="cpu", settings=text_settings)


@pytest.fixture(scope="session")
def walk_engine(walk_settings):
    settings = {**walk_settings, "sampler.steps": [1000, 500]}
    return Engine.load("hyworldplay", device="cpu", settings=settings)


@pytest.fixture(scope="session")
def segment_engine(longcat_weights, text_settings):
    settings = {**text_settings, "model.weights": str(longcat_weights), "sampler.guided_steps": 2}
    settings |= {
        "sampler.negative_prompt": "",
        "video.frames": 4,
        "sampler.window": 4,
        "sampler.frames_per_chunk": 2,
    }
    return Engine.load("longcat", device="cpu", settings=settings)
