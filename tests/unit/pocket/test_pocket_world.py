"""What trains the pocket world computes what the denoiser computes, and what it writes loads."""

import pytest
import torch

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.load import Request
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayDenoiser
from qvg_cli.models.hyworldplay.plan import WalkPlanner, fit_path, plan_video
from qvg_cli.models.registry import load_config
from qvg_cli.models.wan.checkpoint import open_wan
from qvg_cli.planning.cache_forecast import CacheShape
from scripts.pocket.train_world import focal_lengths, parse_arguments, save_world, start_from_pocket, train
from scripts.pocket.walk_prompts import WORLD_GRAMMAR_PATH
from scripts.pocket.world import WalkForward, build_world, camera_matrices, rollout, world_config

SETTINGS = (
    "model.latent_channels=16",
    "model.spatial_factor=8",
    "model.text_tokens=5",
    "video.height=32",
    "video.width=48",
    "cache.preset=none",
    "sampler.context=incremental",
    "sampler.window=null",
    "walk.pose=w-3,right-4,up-2,a-2",
    "walk.image=null",
)


def test_the_training_pass_equals_the_denoiser():
    torch.manual_seed(0)
    config = load_config(Request(backend="hyworldplay", sets=SETTINGS)).config
    plan = plan_video(config)
    model = build_world(world_config(num_layers=2, ffn_dim=16, text_dim=8))
    torch.nn.init.normal_(model.proj_out.weight, std=0.05)
    text, image = torch.randn(1, 5, 8), torch.randn(1, 16, 1, 4, 6)
    walk = WalkPlanner(config, fit_path(config)[0])
    path = walk.path
    cameras = camera_matrices(torch.from_numpy(path.viewmats).float()[None], focal_lengths())
    actions = torch.tensor(path.actions)[None]
    expected = rollout(
        WalkForward(model), image, actions, cameras, text, generator=torch.Generator().manual_seed(1)
    )

    noise = torch.randn(1, 16, 12, 4, 6, generator=torch.Generator().manual_seed(1))
    heads = model.config.num_attention_heads
    shape = CacheShape(2, heads, model.config.attention_head_dim)
    cache = open_cache(config.cache, plan, shape, seed=0)
    tokens = plan.tokens_per_frame
    denoiser = HyWorldPlayDenoiser(model, cache, text, config.sampler, lambda: path, tokens, image)
    for chunk in plan.chunks:
        own = slice(chunk.makes[0], chunk.makes[-1] + 1)
        commit = cache.begin(chunk).commit
        made = denoiser.denoise(chunk, lambda own=own: noise[:, :, own], lambda: None)
        torch.testing.assert_close(made, expected[:, :, own], atol=2e-5, rtol=1e-5)
        if commit is not None:
            denoiser.update_cache(chunk, chunk.makes, made, commit)
            cache.settle(commit)


def test_what_is_written_is_what_the_backend_loads(tmp_path):
    config = world_config(num_layers=2, ffn_dim=16, text_dim=8)
    model = build_world(config)
    save_world(model, config, tmp_path)
    loaded = open_wan(WalkTransformer, tmp_path).load()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float()), name
    assert (tmp_path / "grammar.yaml").read_text() == WORLD_GRAMMAR_PATH.read_text()


def test_the_start_takes_layers_and_hidden_units_of_the_pocket_model(tmp_path):
    config = {**world_config(num_layers=3, ffn_dim=24, text_dim=8)}
    source = build_world(config)
    save_world(source, config, tmp_path)
    model = build_world(world_config(num_layers=2, ffn_dim=16, text_dim=8))
    start_from_pocket(model, tmp_path)
    own, theirs = model.state_dict(), source.state_dict()
    for name, taken in (
        ("patch_embedding.weight",) * 2,
        ("blocks.1.attn1.to_q.weight", "blocks.2.attn1.to_q.weight"),
    ):
        assert torch.equal(own[name], theirs[taken].bfloat16().float())
    units = {tuple(row.tolist()) for row in theirs["blocks.2.ffn.net.0.proj.weight"].bfloat16().float()}
    assert {tuple(row.tolist()) for row in own["blocks.1.ffn.net.0.proj.weight"]} < units


@pytest.mark.slow
def test_training_runs_and_goes_on(tmp_path):
    sizes = {
        "steps": 2,
        "clips": 2,
        "frames": 8,
        "chunks": 2,
        "batch": 2,
        "layers": 1,
        "ffn": 16,
        "minutes": 5,
    }
    words = ["--pocket", str(WORLD_GRAMMAR_PATH.parents[1]), "--fill-seconds", "0"]
    words += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    train(parse_arguments([*words, "--out", str(tmp_path / "one")]))
    trainer = train(
        parse_arguments([*words, "--resume", str(tmp_path / "one"), "--out", str(tmp_path / "two")])
    )
    assert trainer.clips.made >= 2
    before, after = (open_wan(WalkTransformer, tmp_path / name).load() for name in ("one", "two"))
    assert not torch.equal(before.proj_out.weight, after.proj_out.weight)
    assert after.proj_out.weight.isfinite().all()
