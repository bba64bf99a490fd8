"""A whole walk through the engine, on a tiny random model of the real classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import MissingModelError
from qvg_cli.models.registry import load_pipeline, plan_video
from qvg_cli.planning.ledger import total

CONTEXTS = ("append", "rebuild", "incremental")
LONG = "right-8,left-12,w-4"
"""24 latent frames; with a window of 16, later chunks recall frames."""


class Walk:
    """A finished walk and what its cache held after each chunk; its own recorder."""

    def __init__(self, config, engine=None) -> None:
        self.plan = plan_video(config)
        engine = engine or Engine.load_config(config, torch.device("cpu"))
        self.held = []
        parts, frames, self.samples = [], [], []
        for result in engine.rollout(Planned(config, self.plan, "walk"), self):
            parts.append(result.latents)
            frames.append(result.frames)
            self.samples.append(result.memory)
            self.held.append([tuple(layer.entry_of) for layer in self.cache.layers])
        self.latents = torch.cat(parts, dim=2)
        self.frames = torch.cat(frames, dim=1)

    def begin(self, cache):
        self.cache = cache

    def show_clip(self, frames):
        """A walk begins with no clip."""


@pytest.mark.parametrize(
    ("context", "cache"),
    [
        ("append", "none"),
        *((each, "int2") for each in CONTEXTS),
        *(pytest.param("append", cache, marks=pytest.mark.slow) for cache in ("bf16", "int2-qvg")),
    ],
)
def test_every_context_runs_through_every_cache(walk_config, context, cache):
    config = walk_config(
        f"sampler.context={context}",
        "sampler.window=16",
        f"walk.pose={LONG}",
        f"cache.preset={cache}",
    )
    walk = Walk(config)
    assert walk.latents.shape == (1, 16, 24, 4, 8)
    assert walk.frames.shape == (1, walk.plan.num_pixel_frames, 32, 64, 3)
    assert torch.isfinite(walk.latents).all()
    cached: tuple[int, ...] = ()
    for chunk, held in zip(walk.plan.chunks, walk.held, strict=True):
        cached = tuple(frame for frame in cached if frame not in chunk.evicts) + chunk.kept
        assert held == [cached] * 2
    if cache == "none":
        assert all(total(sample.end_bytes) == 2 * sample.bf16_end_bytes for sample in walk.samples)


def test_frames_are_recalled_in_a_long_walk(walk_config):
    plan = plan_video(walk_config("sampler.window=16", f"walk.pose={LONG}"))
    assert [len(chunk.reads) for chunk in plan.chunks] == [0, 4, 8, 12, 12, 12]
    assert plan.chunks[-1].reads != tuple(range(8, 20))


@pytest.mark.parametrize("context", ["append", pytest.param("incremental", marks=pytest.mark.slow)])
def test_walks_go_on_past_the_reach_of_the_window(walk_config, context):
    walk = Walk(walk_config(f"sampler.context={context}", "walk.pose=w-40,left-31"))
    assert len(walk.plan.chunks) == 18
    assert len(walk.plan.chunks[-1].reads) == 48
    assert walk.plan.chunks[-1].reads != tuple(range(20, 68))
    assert torch.isfinite(walk.latents).all()


def test_append_and_rebuild_part_at_the_third_chunk(walk_config):
    append, rebuild = (
        Walk(walk_config(f"sampler.context={context}", "walk.pose=w-12")).latents for context in CONTEXTS[:2]
    )
    assert torch.equal(append[:, :, :8], rebuild[:, :, :8])
    assert not torch.allclose(append[:, :, 8:12], rebuild[:, :, 8:12], atol=1e-4)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_beginning_does_not_depend_on_the_length(walk_config, context):
    short, long = (
        Walk(walk_config(f"sampler.context={context}", f"walk.pose={pose}")).latents
        for pose in ("w-8", "w-8,a-8")
    )
    assert torch.equal(short, long[:, :, : short.shape[2]])


def test_camera_and_action_change_the_walk(walk_config):
    ahead, aside = (Walk(walk_config(f"walk.pose={pose}")).latents for pose in ("w-7", "d-7"))
    assert not torch.allclose(ahead, aside, atol=1e-3)


def test_bf16_stays_close_to_float32(walk_config):
    exact, rounded = (
        Walk(walk_config("walk.pose=w-7", f"model.dtype={dtype}")).latents
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == torch.float32
    assert (exact - rounded).norm() / exact.norm() < 0.02


def test_the_first_frame_is_the_picture(walk_config, tmp_path):
    picture = np.zeros((50, 70, 3), np.uint8)
    picture[:, 35:] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    image = tmp_path / "picture.png"
    walk = Walk(walk_config(f"walk.image={image}", "walk.pose=w-7"))
    again = Walk(walk_config(f"walk.image={image}", "walk.pose=d-7"))
    assert torch.equal(walk.latents[:, :, :1], again.latents[:, :, :1])
    assert not torch.allclose(walk.latents[:, :, 1:], again.latents[:, :, 1:], atol=1e-3)
    other = Walk(walk_config("walk.pose=w-7"))
    assert not torch.allclose(walk.latents[:, :, :1], other.latents[:, :, :1], atol=1e-3)


def test_a_folder_without_a_part_is_refused(walk_config, tmp_path):
    with pytest.raises(MissingModelError, match=r"cannot read .*transformer/config\.json"):
        load_pipeline(walk_config(f"model.weights={tmp_path}"), torch.device("cpu"))


def test_another_vae_than_configured_is_refused(walk_config):
    config = walk_config("model.latent_channels=48")
    with pytest.raises(MissingModelError, match="makes 16 channels, each 8 pixels to a side"):
        load_pipeline(config, torch.device("cpu")).decoder()


def test_one_engine_makes_videos_with_every_cache(walk_config):
    engine = Engine.load_config(walk_config("cache.preset=none"), torch.device("cpu"))
    plain, packed = (
        Walk(walk_config("walk.pose=w-11", f"cache.preset={preset}"), engine) for preset in ("none", "int2")
    )
    assert torch.equal(packed.latents, Walk(walk_config("walk.pose=w-11", "cache.preset=int2")).latents)
    assert not torch.equal(packed.latents, plain.latents)
