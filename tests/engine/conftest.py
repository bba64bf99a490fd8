"""Engines of the three families: the built-in weights, on pictures of 32 x 64 pixels."""

import pytest

from qvg_cli.engine.engine import Engine

TINY = {"video.height": 32, "video.width": 64, "sampler.steps": [1000, 500]}


@pytest.fixture(scope="session")
def walk_engine():
    return Engine.load("hyworldplay", pocket=True, device="cpu", settings=TINY)


@pytest.fixture(scope="session")
def text_engine():
    return Engine.load("self-forcing", pocket=True, device="cpu", settings=TINY)


@pytest.fixture(scope="session")
def segment_engine():
    settings = {"video.height": 32, "video.width": 64, "sampler.guided_steps": 2}
    settings |= {"sampler.window": 4, "sampler.frames_per_chunk": 2}
    return Engine.load("longcat", pocket=True, device="cpu", settings=settings)
