"""What an addition touches: a checkpoint is a YAML, a family a line, a rule of the cache a function."""

import shutil

import pytest
import torch
import yaml

from qvg_cli import plan
from qvg_cli.config import resources
from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.errors import UsageError
from qvg_cli.models import registry
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.models.self_forcing.family import SelfForcing
from qvg_cli.models.self_forcing.plan import BlockPlanner
from qvg_cli.planning.ledger import total

SMALL = {"video.height": 32, "video.width": 64}
ONE_STEP = {**SMALL, "sampler.steps": [1000]}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of configurations that may be added to."""
    folder = tmp_path / "configs"
    shutil.copytree(resources.configs_dir(), folder)
    monkeypatch.setattr("qvg_cli.config.resources.configs_dir", lambda: folder)
    return folder


def add_checkpoint(configs, name, **sampler):
    """A checkpoint of Self-Forcing with a sampler of its own, in one YAML."""
    values = yaml.safe_load((configs / "self-forcing.yaml").read_text(encoding="utf-8"))
    del values["backend"], values["download"]
    values |= {"family": "self-forcing"}
    values["sampler"] |= sampler
    values["pocket"]["sampler"] = {}
    (configs / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def test_a_checkpoint_is_one_yaml(configs):
    add_checkpoint(configs, "short-memory", window=6, sink=3, position_span=6, steps=[1000, 500])
    engine = Engine.load("short-memory", pocket=True, device="cpu", settings=SMALL)
    sampler = engine.config.sampler
    assert (sampler.window, sampler.sink, sampler.position_span, sampler.steps) == (6, 3, 6, (1000, 500))
    video = engine.generate("a red ball", frames=45, seed=1)
    assert len(video.frames) == 45
    assert video.config.backend == "short-memory"
    # The window is what the plan says: the sink and the newest frames.
    chunk = plan_video(video.config).chunks[-1]
    assert chunk.reads == (0, 1, 2)
    assert plan("short-memory", frames=45).chunks[-1].reads == (0, 1, 2)


def test_a_family_is_its_package_and_one_line(configs, monkeypatch):
    class Sinkless(SelfForcing):
        """A family with a rule of its own for what its cache keeps."""

        name = "sinkless"

        def plan(self, config):
            if config.sampler.sink:
                raise UsageError(f"sampler.sink={config.sampler.sink}: {self.name} keeps no sink")
            return super().plan(config)

    monkeypatch.setitem(registry.FAMILIES, "sinkless", Sinkless)
    add_checkpoint(configs, "one-of-it")
    text = (configs / "one-of-it.yaml").read_text(encoding="utf-8")
    (configs / "one-of-it.yaml").write_text(text.replace("family: self-forcing", "family: sinkless"))
    config = load_config(Request(backend="one-of-it", pocket=True)).config
    assert (config.backend, config.family_name) == ("one-of-it", "sinkless")
    assert plan_video(config).num_frames == 21
    with pytest.raises(UsageError, match="sinkless keeps no sink"):
        plan("one-of-it", pocket=True, sink=3, window=12)


def test_a_rule_for_what_the_cache_keeps_is_one_function(monkeypatch):
    """The rule of a window replaced by another: every second block, and the newest."""

    def every_second(self, end):
        blocks = {frame: frame // self._sampler.frames_per_chunk for frame in self._cached}
        return tuple(frame for frame in blocks if blocks[frame] in (end // 3 - 2, 0, 2, 4))

    engine = Engine.load(pocket=True, device="cpu", cache="int2", settings=ONE_STEP)
    rolling = engine.generate("a red ball", frames=57, seed=1)
    monkeypatch.setattr(BlockPlanner, "_window", every_second)
    video = engine.generate("a red ball", frames=57, seed=1)
    assert plan_video(video.config).chunks[-1].reads == (0, 1, 2, 6, 7, 8, 9, 10, 11)
    assert video.memory.peak_bytes < rolling.memory.peak_bytes
    assert not video.latents.equal(rolling.latents)
    # Forecast, session and checkpoint follow from the same chunks.
    assert plan(frames=57, cache="int2", settings=SMALL).forecast.cache_peak.peak_bytes == dict(
        max((sample.peak_bytes for sample in video.memory.samples), key=total)
    )
    session = engine.session("a red ball", seed=1)
    chunks = [session.step() for _ in range(5)]
    assert torch.cat([chunk.latents for chunk in chunks], dim=2).equal(video.latents)
