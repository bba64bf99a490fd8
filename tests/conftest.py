"""What every test stands on: one thread, fixed seeds, no network, and a tiny model of the real classes."""

import json
import os
import pty
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

# Read when torch and huggingface_hub are imported, here and in the programs that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="qvg-tests-")
os.environ["QVG_HOME"] = os.path.join(os.environ["HF_HOME"], "qvg")
os.environ["OMP_NUM_THREADS"] = "1"

# Imported, so that runs draw their plots here, not each in a process of its own.
import matplotlib.figure  # noqa: F401
import pytest
import torch

from qvg_cli.main import main

# A shell that runs tests in the background ignores Ctrl-C, and programs started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a shared machine with few cores, two spinning threads are ten times slower than one.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_wan() -> dict[str, int]:
    """Settings of the smallest Wan transformer that the codecs take."""
    return {
        "num_attention_heads": 1,
        "attention_head_dim": 64,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
    }


@pytest.fixture(scope="session")
def tiny_weights(tiny_wan, tmp_path_factory) -> Path:
    """A weights folder for the Self-Forcing family: random, one head of 64, two layers."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
    ).save_pretrained(folder / "vae")
    WanTransformer3DModel(**tiny_wan).save_pretrained(folder / "transformer")
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "ball": 3, "red": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    ).save_pretrained(folder / "tokenizer")
    config = UMT5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def walk_weights(tiny_weights, tiny_wan, tmp_path_factory) -> Path:
    """The same for HY-WorldPlay, with two heads, converted as its published checkpoint is."""
    from qvg_cli.models.hyworldplay.model import WalkTransformer
    from qvg_cli.models.registry import find_family

    folder = copy_parts(tiny_weights, tmp_path_factory.mktemp("tiny-walk"))
    layout = {**tiny_wan, "num_attention_heads": 2}
    torch.manual_seed(0)
    torch.save({"generator": WalkTransformer(**layout).state_dict()}, folder / "model.pt")
    find_family("hyworldplay").convert_checkpoint(folder / "model.pt", layout, folder / "transformer", "auto")
    return folder


@pytest.fixture(scope="session")
def walk_settings(walk_weights):
    """Settings of a walk with these weights, 32 x 64 pixels, that begins in a picture."""
    from PIL import Image

    picture = walk_weights / "picture.png"
    Image.new("RGB", (64, 32), (90, 140, 80)).save(picture)
    return {
        "model.weights": str(walk_weights),
        "model.text_tokens": 32,
        "model.latent_channels": 16,
        "model.spatial_factor": 8,
        "video.height": 32,
        "video.width": 64,
        "sampler.context": "incremental",
        "walk.image": str(picture),
    }


@pytest.fixture(scope="session")
def longcat_weights(tiny_weights, tmp_path_factory) -> Path:
    """The same for LongCat-Video, with an adapter."""
    from safetensors.torch import save_file

    from qvg_cli.models.longcat.layers import TransformerConfig
    from qvg_cli.models.longcat.model import LongCatTransformer

    config = TransformerConfig(
        in_channels=16,
        out_channels=16,
        hidden_size=64,
        depth=2,
        num_heads=1,
        caption_channels=16,
        mlp_ratio=1,
        adaln_tembed_dim=8,
        frequency_embedding_size=16,
        patch_size=(1, 2, 2),
        text_tokens_zero_pad=True,
    )
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return 0.2 * torch.randn(shape, generator=generator)

    folder = copy_parts(tiny_weights, tmp_path_factory.mktemp("longcat"))
    (folder / "dit").mkdir()
    (folder / "dit" / "config.json").write_text(json.dumps(asdict(config)))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LongCatTransformer(config).state_dict().items()}
    save_file({name: random(*shape) for name, shape in shapes.items()}, folder / "dit" / "model.safetensors")
    (folder / "lora").mkdir()
    stem = "lora___lorahyphen___blocks___lorahyphen___1___lorahyphen___attn___lorahyphen___proj"
    adapter = {"lora_down.weight": random(4, 64), "lora_up.weight": random(64, 4)}
    adapter["alpha_scale"] = torch.tensor(0.5)
    save_file(
        {f"{stem}.{leaf}": tensor for leaf, tensor in adapter.items()},
        folder / "lora" / "cfg_step_lora.safetensors",
    )
    return folder


def copy_parts(weights, folder):
    """Text encoder, tokenizer and VAE of other weights."""
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(weights / part, folder / part)
    return folder


@pytest.fixture(scope="session")
def random_vgg(tmp_path_factory) -> Path:
    """A folder for downloads that has the network of LPIPS with random weights, its classifier left out."""
    from safetensors.torch import save_file

    from qvg_cli.comparison.lpips import PerceptualDistance

    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, tensor in PerceptualDistance().features.named_parameters():
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
        tensors[f"features.{name}"] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
    home = tmp_path_factory.mktemp("vgg")
    (home / "lpips" / "vgg16").mkdir(parents=True)
    save_file(tensors, home / "lpips" / "vgg16" / "model.safetensors")
    return home


@pytest.fixture(scope="session")
def random_taehv(tmp_path_factory) -> Path:
    """A folder for downloads that has both small decoders with random weights, the second as in diffusers."""
    from safetensors.torch import save_file

    from qvg_cli.models.taehv import SmallNetwork

    def in_diffusers(name: str) -> str:
        _, index, *rest = name.split(".")
        block, part = divmod(int(index) - 3, 6)
        if int(index) in (1, 22):
            return ".".join(["decoder", "conv_in" if index == "1" else "conv_out", *rest])
        if part < 3:
            return f"decoder.blocks.{block}.mem_blocks.{part}.conv{int(rest[1]) // 2 + 1}.{rest[2]}"
        return f"decoder.blocks.{block}." + {4: "time_grow", 5: "conv_out"}[part] + ".weight"

    home = tmp_path_factory.mktemp("taehv")
    for channels, patch, place, rename in (
        (16, 1, "wan21/taew2_1", str),
        (48, 2, "wan22/diffusion_pytorch_model", in_diffusers),
    ):
        generator = torch.Generator().manual_seed(0)
        tensors = {"encoder.any.weight": torch.zeros(1)}
        for name, tensor in sorted(SmallNetwork(channels, patch).state_dict().items()):
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
            tensors[rename(name)] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        path = home / "taehv" / f"{place}.safetensors"
        path.parent.mkdir(parents=True)
        save_file(tensors, path)
    return home


@pytest.fixture
def go_on(tmp_path):
    """A function: the chunks after the first `cut` of a run made in one go, and of one cut off there."""
    from qvg_cli.engine.engine import Engine
    from qvg_cli.engine.jobs import Planned
    from qvg_cli.models.registry import plan_video
    from qvg_cli.runs.checkpoint import Checkpoint
    from qvg_cli.runs.identity import identify

    def run(config, cut):
        video = Planned(config, plan_video(config), "video")
        engine = Engine.load_config(config, torch.device("cpu"))
        checkpoint = Checkpoint.create(tmp_path / "state", identify(config, "cpu"))
        kept = CacheKeeper()
        whole = []
        for result in engine.rollout(video, kept):
            if len(whole) < cut:
                save_chunk(checkpoint, result, video.plan, kept.cache, fps=config.video.fps)
            whole.append(result)
        checkpoint.close()

        checkpoint = Checkpoint.open(tmp_path / "state", identify(config, "cpu"), pytest.fail)
        restoring = CacheKeeper(
            lambda cache: checkpoint.restore(video.plan, cache, engine.device, pytest.fail)
        )
        rest = list(engine.rollout(video, restoring))
        records, done = restoring.restored
        assert done.latents.equal(torch.cat([result.latents for result in whole[:cut]], dim=2))
        assert [record.memory for record in records] == [result.memory for result in whole[:cut]]
        return whole[cut:], rest

    return run


def save_chunk(checkpoint, result, plan, cache, *, fps):
    """Write a chunk into a checkpoint, here and now."""
    record, blocks = checkpoint.describe(result, plan, cache, seconds=1.0)
    return checkpoint.save(record, result.latents, blocks, result.frames[0].numpy(), fps=fps)


class CacheKeeper:
    """A recorder that keeps nothing but the cache of its video, for a look inside.

    Args:
        restore: Fills the empty cache with what was made before.
    """

    def __init__(self, restore=lambda cache: ([], None)):
        self._restore = restore

    def begin(self, cache):
        self.cache = cache
        self.restored = self._restore(cache)
        return self.restored[1]

    def show_clip(self, frames):
        """The video is kept nowhere."""


@pytest.fixture(scope="session")
def keep_cache():
    """A function: a recorder for `Engine.rollout` that has the `cache` of the video."""
    return CacheKeeper


class Program:
    """`qvg` in a process of its own, forked from this one: importing torch anew takes seconds.

    Args:
        has_terminal: Whether its stderr is one.

    Attributes:
        stderr: What it says, line by line.
    """

    def __init__(self, *arguments, has_terminal=False, env=None):
        self._stdout = os.fdopen(os.memfd_create("stdout"))
        reading, writing = pty.openpty() if has_terminal else os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(reading)
            self._run([*map(str, arguments)], writing, env or {})
        os.close(writing)
        self.stderr = os.fdopen(reading, errors="replace")
        self.returncode = None

    def _run(self, arguments, stderr, env):
        code = 99
        try:
            os.dup2(self._stdout.fileno(), 1)
            os.dup2(stderr, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1) for number in (1, 2))
            sys.argv = ["qvg", *arguments]
            os.environ.update(env)
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self._pid, number)

    def wait(self, timeout=60):
        """Its exit code, negative if a signal has ended it."""
        end = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                end += timeout
            else:
                time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=60):
        """The rest of stderr is read to its end; all of stdout, and that rest."""
        said = self.stderr.read()
        self.wait(timeout)
        self._stdout.seek(0)
        return self._stdout.read(), said


@pytest.fixture
def start():
    """A function: arguments of `qvg` to a running `Program`, which ends with the test."""
    running = []

    def run(*arguments, **options):
        running.append(Program(*arguments, **options))
        return running[-1]

    yield run
    for program in running:
        program.send_signal(signal.SIGKILL)
        program.wait()
        program.stderr.close()
