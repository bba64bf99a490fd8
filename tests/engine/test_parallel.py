"""One video by several processes: the history of every head, and the latents, are those of one process."""

import os
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from qvg_cli.cache.snapshot import block_tensors
from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.parallel import Parallel, check_processes
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.models.parallel import AllRows, AllTokens
from qvg_cli.models.registry import load_config, load_pipeline, plan_video
from qvg_cli.planning.ledger import total

CPU = torch.device("cpu")
SHARDED = {"memory.weights_sharded": "true"}
# 15 tokens a frame, which neither two nor four processes share evenly.
SETTINGS = {"video.height": 48, "video.width": 80, "prompt": "a ball", "seed": 1}
FAMILIES = {
    "self-forcing": {"video.frames": 9, "sampler.window": 6, "sampler.sink": 1, "sampler.steps": [1000, 500]},
    "hyworldplay": {"video.frames": 8, "sampler.steps": [1000, 500]},
    "longcat": {
        "video.frames": 8,
        "sampler.window": 6,
        "sampler.frames_per_chunk": 2,
        "sampler.mode": "guided",
        "sampler.guided_steps": 2,
    },
}
# Family, preset, and whether it is the built-in model, which has two heads, or a random one, which has four.
CASES = [
    *((family, preset, True) for family in FAMILIES for preset in ("int2", "trit")),
    ("self-forcing", "int2-qvg", True),
    ("self-forcing", "int2", False),
    ("self-forcing", "bf16", False),
]


def config_of(family, preset, weights=None, **more):
    values = {**SETTINGS, **FAMILIES[family], "cache.preset": preset, **more}
    if weights is not None:
        values |= {"model.weights": weights, "model.text_tokens": 8}
    sets = [f"{name}={value}" for name, value in values.items()]
    return load_config(Request(backend=family, pocket=weights is None, sets=sets)).config


def cases_of(num_processes):
    """Those whose heads so many processes can share."""
    return [case for case in CASES if num_processes <= 2 or not case[2] or case[0] == "longcat"]


class OneByOne(AllRows):
    """Every row of the guidance in a call of its own, as each of two processes has one."""

    def compute(self, predict, num_rows):
        return torch.cat([predict(slice(row, row + 1)) for row in range(num_rows)])


class Keep:
    """Keeps the cache of a video."""

    def begin(self, cache):
        self.cache = cache

    def show_clip(self, frames):
        raise AssertionError("no clip is given")


def make_videos(rank, num_processes, port, folder, weights):
    """Make the video of every case, and save its latents and what this process holds of its history."""
    torch.set_num_threads(1)
    if num_processes > 1:
        os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(WORLD_SIZE=str(num_processes), LOCAL_WORLD_SIZE=str(num_processes))
    for family, preset, is_pocket in cases_of(num_processes):
        config = config_of(family, preset, None if is_pocket else weights)
        tensors = make_video(config, rank, num_processes)
        save_file(tensors, folder / f"{family}-{preset}-{is_pocket}-{num_processes}-{rank}.safetensors")
    for family in FAMILIES if num_processes == 2 else ():
        tensors = make_video(config_of(family, "int2", **SHARDED), rank, num_processes)
        save_file(tensors, folder / f"{family}-sharded-{rank}.safetensors")


def make_video(config, rank, num_processes):
    """Latents, what this process holds of the history, and how many values of the blocks' weights."""
    engine, keep = Engine.load_config(config, CPU), Keep()
    if num_processes == 1:
        engine.pipeline.share(AllTokens(), OneByOne())
    if rank:
        engine.parallel.share(None)
    results = list(engine.rollout(Planned(config, plan_video(config), "video"), keep))
    tensors, _ = block_tensors(keep.cache, list(keep.cache.layers[0].entries))
    tensors["latents"] = torch.cat([result.latents for result in results], dim=2).contiguous()
    tensors["frames"] = torch.tensor(sum(result.frames.shape[1] for result in results))
    weights = engine.pipeline._models.transformer.blocks.parameters()
    held = (each.to_local() if isinstance(each, DTensor) else each for each in weights)
    memory = results[-1].memory
    tensors["held"] = torch.tensor([total(memory.end_bytes), *(each.end_bytes for each in memory.processes)])
    tensors["weights"] = torch.tensor(sum(each.numel() for each in held))
    return tensors


@pytest.fixture(scope="module")
def made(tiny_weights, tiny_wan, tmp_path_factory):
    """The folder with what one, two and four processes made."""
    folder, weights = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("four-heads")
    shutil.copytree(tiny_weights, weights, dirs_exist_ok=True)
    four_heads = WanTransformer3DModel(**{**tiny_wan, "num_attention_heads": 4})
    four_heads.save_pretrained(weights / "transformer")
    make_videos(0, 1, 0, folder, weights)
    for num_processes in (2, 4):
        port = 20_000 + 2 * (os.getpid() % 10_000) + num_processes // 4
        # Forked: importing torch anew takes seconds in each.
        torch.multiprocessing.start_processes(
            make_videos, (num_processes, port, folder, weights), num_processes, start_method="fork"
        )
    return folder


@pytest.mark.parametrize(
    ("num_processes", "case"), [(count, case) for count in (2, 4) for case in cases_of(count)]
)
def test_several_processes_make_the_video_of_one(made, num_processes, case):
    family, preset, is_pocket = case
    name = f"{family}-{preset}-{is_pocket}"
    alone = load_file(made / f"{name}-1-0.safetensors")
    parts = [load_file(made / f"{name}-{num_processes}-{rank}.safetensors") for rank in range(num_processes)]
    assert [int(part["frames"]) for part in parts] == [int(alone["frames"])] + [0] * (num_processes - 1)
    for part in parts:
        torch.testing.assert_close(part["latents"], alone["latents"], rtol=0, atol=1e-4)
    # LongCat's guidance takes two groups of processes, and those of a group share the heads.
    num_rows = config_of(family, preset).num_rows
    num_tokens = num_processes // num_rows
    (held,) = alone["held"].tolist()
    for part in parts:
        assert part["held"].tolist() == [num_rows * held, *[held // num_tokens] * num_processes]
    for tensor in alone.keys() - {"latents", "frames", "weights", "held"}:
        held = torch.cat([part[tensor] for part in parts[:num_tokens]], dim=1)
        assert torch.equal(held, alone[tensor]), tensor


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_weights_are_divided_and_make_the_same_video(made, family):
    alone, *parts = (
        load_file(made / f"{name}.safetensors")
        for name in (f"{family}-int2-True-1-0", f"{family}-sharded-0", f"{family}-sharded-1")
    )
    assert sum(part["weights"] for part in parts) == alone["weights"]
    # Dimensions that do not divide differ by one.
    assert int(parts[0]["weights"]) == pytest.approx(int(alone["weights"]) / 2, rel=0.02)
    for part in parts:
        torch.testing.assert_close(part["latents"], alone["latents"], rtol=0, atol=1e-4)


def test_sharded_weights_are_refused_where_nothing_shares_them():
    with pytest.raises(UsageError, match="needs several processes, and this is one"):
        Engine.load_config(config_of("self-forcing", "int2", **SHARDED), CPU)
    for setting in ("memory.weights=fp8", "memory.transformer=group"):
        name, _, value = setting.partition("=")
        with pytest.raises(UsageError, match=f"needs {name.partition('.')[2]}="):
            config_of("self-forcing", "int2", **SHARDED, **{name: value})


def leave_a_video(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=1)
    parallel = Parallel(0, CPU, torch.distributed.group.WORLD, AllTokens(), AllRows())
    config = config_of("self-forcing", "int2")
    engine, video = Engine(config, load_pipeline(config, CPU), CPU, parallel=parallel), plan_video(config)
    planned = Planned(config, video, "video")
    assert len(list(engine.rollout(planned))) == len(video.chunks)
    next(engine.rollout(planned))
    with pytest.raises(QvgError, match="wait within a video that was not made to its end"):
        engine.rollout(planned)


def test_no_video_is_begun_after_one_that_was_left(tmp_path):
    # In a process of its own: a group of processes is one for a whole process.
    torch.multiprocessing.start_processes(leave_a_video, (tmp_path / "store",), 1, start_method="fork")


def test_processes_that_cannot_share_the_heads_are_refused():
    config = config_of("self-forcing", "int2")
    assert check_processes(config, 2) == (1, 2)
    assert check_processes(config_of("longcat", "int2"), 4) == (2, 2)
    with pytest.raises(UsageError, match="3 processes cannot share"):
        check_processes(config, 3)
