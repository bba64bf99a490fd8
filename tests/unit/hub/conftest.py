"""A hub on the loopback interface, and this process set up to use it and nothing else."""

import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.utils import close_session
from typer.testing import CliRunner

from qvg_cli.main import app

sys.path.insert(0, str(Path(__file__).parent))

from hub_server import HubServer
from published import published_name, saved


def pytest_collection_modifyitems(items):
    for item in items:
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.allow_hosts(["127.0.0.1"]))


@pytest.fixture
def server():
    """The hub, empty."""
    hub = HubServer()
    yield hub
    hub.close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The hub as the one that huggingface_hub talks to from this process; retries do not wait."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    # What is gathered is written in pieces of this size: small ones for small files.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setenv("QVG_HOME", str(tmp_path / "qvg"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    close_session()
    yield server
    close_session()


@pytest.fixture
def qvg():
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def qvg_download(qvg):
    return lambda *arguments: qvg("download", *arguments)


@pytest.fixture
def free_space(monkeypatch):
    """Sets what every disk has left: much, unless said otherwise."""
    usage = namedtuple("usage", "total used free")

    def set_free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**50, 0, size))

    set_free(2**40)
    return set_free


@pytest.fixture(scope="session")
def base_files(tiny_weights):
    """The tiny model as `Wan-AI/Wan2.1-T2V-1.3B-Diffusers` is laid out, with files that nobody needs."""
    files = {
        str(path.relative_to(tiny_weights)): path.read_bytes()
        for path in tiny_weights.rglob("*")
        if path.is_file()
    }
    return {
        **files,
        "README.md": b"# A model",
        "model_index.json": b"{}",
        "text_encoder/pytorch_model.bin": b"the same in another format",
        "assets/logo.png": b"picture",
    }


@pytest.fixture(scope="session")
def generator(tiny_weights):
    """The tiny transformer's tensors under their published names."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(tiny_weights / "transformer")
    return {f"model.{published_name(name)}": tensor for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def checkpoint(generator):
    """Bytes of a published checkpoint, with tensors of other models in it."""
    return saved({"generator_ema": generator, "generator": {}, "critic": {"x": torch.zeros(3)}})


@pytest.fixture
def published(hub, base_files, checkpoint, free_space):
    """The repositories that configs/self-forcing.yaml names, at the size of the tiny model."""
    files = {
        "checkpoints/self_forcing_dmd.pt": checkpoint,
        "checkpoints/ode_init.pt": b"not needed",
        "README.md": b"# Another model",
    }
    hub.repository("gdhe17/Self-Forcing", files, licence="cc-by-nc-sa-4.0")
    hub.repository("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", base_files)
    return hub
