"""The rows of the guidance apart: one after the other they are what they are together."""

import torch

from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.models.parallel import Rows, Tokens
from qvg_cli.models.registry import load_config, load_pipeline, plan_video

SETTINGS = {
    "video.height": 32,
    "video.width": 48,
    "video.frames": 8,
    "sampler.window": 6,
    "sampler.frames_per_chunk": 2,
    "sampler.guided_steps": 3,
    "sampler.negative_prompt": "red",
    "model.text_tokens": 8,
    "cache.preset": "int2",
    "prompt": "red ball",
}
CPU = torch.device("cpu")


class OneByOne(Rows):
    """Every row in a call of its own."""

    def compute(self, predict, num_rows):
        return torch.cat([predict(slice(row, row + 1)) for row in range(num_rows)])


def test_rows_one_by_one_are_the_rows_together(longcat_weights):
    values = {**SETTINGS, "model.weights": longcat_weights}
    sets = [f"{name}={value}" for name, value in values.items()]
    config = load_config(Request(backend="longcat", sets=sets)).config
    video, pipeline = Planned(config, plan_video(config), "video"), load_pipeline(config, CPU)
    latents = []
    for rows in (Rows(), OneByOne()):
        pipeline.share(Tokens(), rows)
        results = Engine(config, pipeline, CPU).rollout(video)
        latents.append(torch.cat([result.latents for result in results], dim=2))
    together, apart = latents
    assert together.shape[2] == 8
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)
