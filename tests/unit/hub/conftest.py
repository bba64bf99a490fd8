"""A hub on the loopback interface, and this process set up to use it and nothing else."""

import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session
from typer.testing import CliRunner

from qvg_cli.main import app

sys.path.insert(0, str(Path(__file__).parent))

from hub_server import HubServer


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent and "server" in item.fixturenames:
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
def qvg_download():
    return lambda *arguments: CliRunner().invoke(app, ["download", *map(str, arguments)])
