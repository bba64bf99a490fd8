"""One video by several processes: the history of every head, and the latents, are those of one process."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from qvg_cli.cache.snapshot import block_tensors, matrix_tensors
from qvg_cli.config.load import Request
from qvg_cli.config.resources import preset_names
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.parallel import Parallel
from qvg_cli.engine.suggestions import check_processes
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.files import RunDir
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.longcat.layers import TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.parallel import Rows, Tokens
from qvg_cli.models.registry import load_config, load_pipeline, plan_video
from qvg_cli.planning.ledger import total
from qvg_cli.runs.run import Run
from scripts.random_models import TINY

CPU = torch.device("cpu")
# Forked, because importing torch takes seconds.
start_processes = partial(torch.multiprocessing.start_processes, start_method="fork")
# 15 tokens a frame, which neither two, four nor eight processes share evenly.
SETTINGS = {"video.height": 48, "video.width": 80, "prompt": "red ball", "seed": 1}
TWO_STEPS = {"sampler.steps": [1000, 500]}
FAMILIES = {
    "self-forcing": {"video.frames": 12, "sampler.window": 6, "sampler.sink": 1, **TWO_STEPS},
    "hyworldplay": {"video.frames": 12, "walk.pose": "w-6,right-6", "walk.image": "null", **TWO_STEPS},
    "longcat": {
        "video.frames": 10,
        "sampler.window": 6,
        "sampler.frames_per_chunk": 2,
        "sampler.mode": "guided",
        "sampler.guided_steps": 2,
    },
}
TINY_WALK = {"model.latent_channels": 16, "model.spatial_factor": 8}
SHARDED = (("memory.weights_sharded", "true"),)
CUT = 2


@dataclass(frozen=True)
class Case:
    """A video: of a random model with eight heads, or of the built-in one, which has two."""

    family: str
    preset: str = "int2"
    more: tuple[tuple[str, str], ...] = ()
    is_pocket: bool = False

    @property
    def name(self):
        return "-".join([self.family, self.preset, *(value for _, value in self.more), str(self.is_pocket)])

    def config(self, weights=None):
        values = {**SETTINGS, **FAMILIES[self.family], "cache.preset": self.preset, **dict(self.more)}
        if weights is not None and not self.is_pocket:
            values |= {"model.weights": weights, "model.text_tokens": 8}
            values |= TINY_WALK if self.family == "hyworldplay" else {}
        sets = [f"{name}={value}" for name, value in values.items()]
        is_pocket = weights is None or self.is_pocket
        return load_config(Request(backend=self.family, pocket=is_pocket, sets=sets)).config


QUICK_CASES = [Case("self-forcing"), Case("self-forcing", "int2-shaped"), Case("hyworldplay")]
# Guidance takes two groups of processes, here of two.
QUICK_FOUR = [Case("longcat")]
MORE_CASES = [
    *(Case(family, "int2-shaped") for family in ("hyworldplay", "longcat")),
    *(Case("hyworldplay", more=(("sampler.context", context),)) for context in ("rebuild", "incremental")),
    *(Case("self-forcing", preset) for preset in ("int2-qvg", "trit", "bf16")),
]
CASES = [*QUICK_CASES, *QUICK_FOUR, *MORE_CASES]
MORE_FOUR = [case for case in CASES if case not in QUICK_FOUR]
SLOW_CASES = [
    *(Case(family, preset) for family in FAMILIES for preset in preset_names()),
    *(Case(f, preset, is_pocket=True) for f in FAMILIES for preset in ("int2", "int2-shaped", "trit")),
]
SHARDED_CASES = [Case(family, more=SHARDED) for family in FAMILIES]
QUICK_RESUMES = [("self-forcing", 1, 2), ("self-forcing", 2, 1)]
MORE_RESUMES = [
    *((family, *counts) for family in ("hyworldplay", "longcat") for counts in ((1, 2), (2, 1))),
    *((family, 4, 2) for family in FAMILIES),
]


class OneByOne(Rows):
    """Every row of the guidance in a call of its own, as each of two processes has one."""

    def compute(self, predict, num_rows):
        return torch.cat([predict(slice(row, row + 1)) for row in range(num_rows)])


class Keep:
    """Keeps the cache of a video."""

    def begin(self, cache):
        self.cache = cache

    def show_clip(self, frames):
        raise AssertionError("no clip is given")


@dataclass(frozen=True)
class Work:
    """What each of several processes does, one thing after the other, and where.

    Attributes:
        cases: Videos to make.
        cuts: Families whose run is cut off after some chunks.
        resumes: Families, and how many processes have begun the run that is gone on with.
    """

    folder: Path
    num_processes: int
    cases: tuple[Case, ...]
    cuts: tuple[str, ...] = ()
    resumes: tuple[tuple[str, int], ...] = ()

    def start(self):
        """Do it all."""
        if self.num_processes == 1:
            self.run(0)
            return
        start_processes(self.run, nprocs=self.num_processes)

    def run(self, rank):
        torch.set_num_threads(1)
        if self.num_processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.num_processes}
            place |= {"LOCAL_WORLD_SIZE": self.num_processes, "TORCHELASTIC_RUN_ID": "test"}
            place |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": 20_000 + os.getppid() % 10_000 + self.num_processes,
            }
            os.environ.update({name: str(value) for name, value in place.items()})
        for case in self.cases:
            self.save(case.name, rank, *self.make(case, rank, Keep()))
        for family in self.cuts:
            folder = self.folder / f"cut-{family}-{self.num_processes}"
            self.make(Case(family), rank, self.recorder(family, folder, rank), cut=CUT)
        for family, count in self.resumes:
            # Others go on with the same run.
            folder = self.folder / f"resumed-{family}-{count}-{self.num_processes}"
            if rank == 0:
                shutil.copytree(self.folder / f"cut-{family}-{count}", folder, dirs_exist_ok=True)
            self.save(folder.name, rank, *self.make(Case(family), rank, self.recorder(family, folder, rank)))

    def recorder(self, family, folder, rank):
        if rank:
            return Keep()
        folder.mkdir(exist_ok=True)
        return Run(self.planned(Case(family)), RunDir(folder), CPU, lambda line: None)

    def planned(self, case):
        config = case.config(self.folder / f"weights-{case.family}")
        return Planned(config, plan_video(config), "video")

    def make(self, case, rank, recorder, cut=None):
        video = self.planned(case)
        engine = Engine.load_config(video.config, CPU)
        if self.num_processes == 1:
            engine.pipeline.share(Tokens(), OneByOne())
        if rank:
            engine.parallel.share(None)
        results = []
        for result in engine.rollout(video, recorder):
            results.append(result)
            if isinstance(recorder, Run):
                recorder.add(result)
            if result.chunk.index + 1 == cut:
                break
        if isinstance(recorder, Run):
            recorder.close()
        if cut is not None and engine.parallel is not None:
            engine.parallel.is_amid = False
        return engine, recorder, results

    def save(self, name, rank, engine, recorder, results):
        """Latents, what this process holds of the history, and how many values of the blocks' weights."""
        cache = recorder.cache if isinstance(recorder, Keep) else recorder._cache
        blocks = list(cache.layers[0].entries)
        tensors = {**block_tensors(cache, blocks)[0], **matrix_tensors(cache, blocks)}
        tensors["latents"] = torch.cat([result.latents for result in results], dim=2).contiguous()
        tensors["frames"] = torch.tensor(sum(result.frames.shape[1] for result in results))
        weights = engine.pipeline._models.transformer.blocks.parameters()
        held = (each.to_local() if isinstance(each, DTensor) else each for each in weights)
        tensors["weights"] = torch.tensor(sum(each.numel() for each in held))
        memory = results[-1].memory
        held_bytes = [total(memory.end_bytes), *(each.end_bytes for each in memory.processes)]
        tensors["held"] = torch.tensor(held_bytes)
        save_file(tensors, self.folder / f"{name}-{self.num_processes}-{rank}.safetensors")


@pytest.fixture(scope="module")
def weights(tiny_weights, tmp_path_factory):
    """A folder with a random model of eight heads of each family."""
    root = tmp_path_factory.mktemp("made")
    for family in FAMILIES:
        folder = root / f"weights-{family}"
        shutil.copytree(tiny_weights, folder, ignore=shutil.ignore_patterns("transformer"))
        torch.manual_seed(3)
        layout = {**TINY[family].transformer}
        if family == "longcat":
            config = replace(TransformerConfig.read(layout, "the layout"), hidden_size=512, num_heads=8)
            model = LongCatTransformer(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
            (folder / "dit").mkdir()
            (folder / "dit" / "config.json").write_text(json.dumps(asdict(config)))
            save_file(model.state_dict(), folder / "dit" / "model.safetensors")
        else:
            model = WalkTransformer if family == "hyworldplay" else WanTransformer3DModel
            model(**{**layout, "num_attention_heads": 8}).save_pretrained(folder / "transformer")
    return root


@pytest.fixture(scope="module")
def made(weights):
    """The folder with what one, two and four processes made."""
    cut = ("self-forcing",)
    Work(weights, 1, (*QUICK_CASES, *QUICK_FOUR), cuts=cut).start()
    Work(weights, 4, tuple(QUICK_FOUR)).start()
    Work(weights, 2, (*QUICK_CASES, SHARDED_CASES[0]), cuts=cut, resumes=(("self-forcing", 1),)).start()
    Work(weights, 1, (), resumes=(("self-forcing", 2),)).start()
    return weights


@pytest.fixture(scope="module")
def made_slowly(made):
    """The same of every family and preset, of the built-in models and of eight processes."""
    others = ("hyworldplay", "longcat")
    Work(made, 1, (*MORE_CASES, *SLOW_CASES), cuts=others).start()
    Work(made, 4, tuple(MORE_FOUR), cuts=tuple(FAMILIES)).start()
    more = (*QUICK_FOUR, *MORE_CASES, *SLOW_CASES)
    resumes = (*((family, 4) for family in FAMILIES), *((family, 1) for family in others))
    Work(made, 2, (*more, *SHARDED_CASES[1:]), cuts=others, resumes=resumes).start()
    Work(made, 1, (), resumes=tuple((family, 2) for family in others)).start()
    Work(made, 8, tuple(CASES)).start()
    return made


def read(folder, case, num_processes):
    """What every process has made of a video."""
    files = (folder / f"{case.name}-{num_processes}-{rank}.safetensors" for rank in range(num_processes))
    return [load_file(file) for file in files]


def assert_same(parts, alone, case):
    """Equal latents, and the history of one process cut by heads."""
    num_processes, num_rows = len(parts), case.config().num_rows if len(parts) % 2 == 0 else 1
    # The guidance of LongCat-Video takes two groups of processes, and those of a group share the heads.
    num_parts = num_processes // num_rows
    assert [int(part["frames"]) for part in parts] == [int(alone["frames"])] + [0] * (num_processes - 1)
    (held_bytes,) = alone["held"].tolist()
    for part in parts:
        torch.testing.assert_close(part["latents"], alone["latents"], rtol=0, atol=1e-4)
        if num_processes > 1:
            each = [held_bytes // num_parts] * num_processes
            assert part["held"].tolist() == [num_rows * held_bytes, *each]
    for tensor in alone.keys() - {"latents", "frames", "weights", "held"}:
        held = torch.cat([part[tensor] for part in parts[:num_parts]], dim=1)
        assert torch.equal(held, alone[tensor]), tensor


@pytest.mark.parametrize(
    ("num_processes", "case"), [*((2, case) for case in QUICK_CASES), *((4, case) for case in QUICK_FOUR)]
)
def test_several_processes_make_the_video_of_one(made, num_processes, case):
    (alone,) = read(made, case, 1)
    assert_same(read(made, case, num_processes), alone, case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "case"),
    [
        *((2, case) for case in (*QUICK_FOUR, *MORE_CASES, *SLOW_CASES)),
        *((4, case) for case in MORE_FOUR),
        *((8, case) for case in CASES),
    ],
)
def test_eight_processes_every_preset_and_the_built_in_models(made_slowly, num_processes, case):
    (alone,) = read(made_slowly, case, 1)
    assert_same(read(made_slowly, case, num_processes), alone, case)


def assert_goes_on(folder, family, begun_by, num_processes):
    case = Case(family)
    (alone,) = read(folder, case, 1)
    name = f"resumed-{family}-{begun_by}-{num_processes}"
    parts = [
        load_file(folder / f"{name}-{num_processes}-{rank}.safetensors") for rank in range(num_processes)
    ]
    made_after = parts[0]["latents"].shape[2]
    assert 0 < made_after < alone["latents"].shape[2]
    alone["latents"] = alone["latents"][:, :, -made_after:]
    alone["frames"] = parts[0]["frames"]
    assert_same(parts, alone, case)


@pytest.mark.parametrize(("family", "begun_by", "num_processes"), QUICK_RESUMES)
def test_a_run_goes_on_with_another_number_of_processes(made, family, begun_by, num_processes):
    assert_goes_on(made, family, begun_by, num_processes)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "begun_by", "num_processes"), MORE_RESUMES)
def test_runs_of_every_family_go_on_with_fewer_and_more(made_slowly, family, begun_by, num_processes):
    assert_goes_on(made_slowly, family, begun_by, num_processes)


def assert_divided(folder, case):
    (alone,) = read(folder, Case(case.family), 1)
    parts = read(folder, case, 2)
    assert sum(part["weights"] for part in parts) == alone["weights"]
    # Dimensions that do not divide differ by one.
    assert int(parts[0]["weights"]) == pytest.approx(int(alone["weights"]) / 2, rel=0.02)
    assert_same(parts, alone, Case(case.family))


def test_sharded_weights_are_divided_and_make_the_same_video(made):
    assert_divided(made, SHARDED_CASES[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED_CASES[1:], ids=lambda case: case.name)
def test_sharded_weights_of_the_other_families(made_slowly, case):
    assert_divided(made_slowly, case)


def test_sharded_weights_are_refused_where_nothing_shares_them():
    with pytest.raises(UsageError, match="needs several processes, and this is one"):
        Engine.load_config(Case("self-forcing", more=SHARDED).config(), CPU)
    for name, value in (("weights", "fp8"), ("transformer", "group")):
        with pytest.raises(UsageError, match=f"needs {name}="):
            Case("self-forcing", more=(*SHARDED, (f"memory.{name}", value))).config()


def leave_a_video(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=1)
    parallel = Parallel(0, CPU, torch.distributed.group.WORLD, Tokens(), Rows())
    config = Case("self-forcing").config()
    engine, video = Engine(config, load_pipeline(config, CPU), CPU, parallel=parallel), plan_video(config)
    planned = Planned(config, video, "video")
    assert len(list(engine.rollout(planned))) == len(video.chunks)
    next(engine.rollout(planned))
    with pytest.raises(QvgError, match="still waiting in a video that was not finished"):
        engine.rollout(planned)


def test_no_video_is_begun_after_one_that_was_left(tmp_path):
    # In a process of its own: a group of processes is one for a whole process.
    start_processes(leave_a_video, (tmp_path / "store",), nprocs=1)


def test_processes_that_cannot_share_the_heads_are_refused():
    config = Case("self-forcing").config()
    assert check_processes(config, 2) == (1, 2)
    assert check_processes(Case("longcat").config(), 4) == (2, 2)
    with pytest.raises(UsageError, match="3 processes cannot share"):
        check_processes(config, 3)
