"""What goes wrong between this machine and the hub is told apart: value, remedy, exit code."""

import errno

import huggingface_hub.constants
import pytest

from qvg_cli.errors import MissingModelError, QvgError
from qvg_cli.hub.errors import hub_errors
from qvg_cli.hub.fetch import fetch
from qvg_cli.hub.remote import list_files

NAME = "someone/model"
FILES = {"weights.safetensors": b"w" * 5000, "config.json": b"{}"}
PAGE = f"https://huggingface.co/{NAME}"


def fetch_all(repository, revision):
    for file in list_files(repository, revision).files.values():
        fetch(file, print)


@pytest.fixture
def refused(hub):
    """Lists and fetches everything, and returns what the user is told."""
    hub.repository(NAME, FILES)

    def run(repository=NAME, revision="main"):
        with pytest.raises(QvgError) as raised:
            fetch_all(repository, revision)
        error = raised.value
        assert error.hint
        assert "hf_" not in f"{error} {error.hint}"
        return error.exit_code, str(error), error.hint

    return run


def test_a_missing_repository_and_a_private_one_look_alike(hub, refused):
    code, message, hint = refused("someone/else")
    assert (code, message) == (3, "someone/else does not exist, or is private")
    assert "hf auth login" in hint
    hub.repositories[NAME].token = "hf_other"
    assert refused()[:2] == (3, f"{NAME} does not exist, or is private")


def test_a_token_that_may_not_read(hub, refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.repositories[NAME].token = "hf_other"
    code, message, hint = refused()
    assert (code, message) == (3, f"{NAME} does not exist, or is private")
    assert hint == f"see {PAGE}; if it is private, the token has no read access to it"


def test_a_token_that_has_ended(refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ended")
    code, message, hint = refused()
    assert (code, message) == (3, "Hugging Face rejected the token")
    assert "HF_TOKEN" in hint


def test_gated(hub, refused):
    hub.repositories[NAME].is_gated = True
    code, message, hint = refused()
    assert (code, message) == (3, f"{NAME} is gated: its terms must be accepted first")
    assert hint.startswith(f"accept them at {PAGE}, then log in")


def test_disabled(hub, refused):
    hub.repositories[NAME].is_disabled = True
    assert refused()[:2] == (3, f"{NAME} is disabled on Hugging Face")


def test_a_missing_revision(refused):
    assert refused(revision="v9")[:2] == (3, f"{NAME} has no revision v9")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_file_that_has_gone(hub, refused, method):
    hub.fault(method, "config.json", status=404, headers={"X-Error-Code": "EntryNotFound"})
    assert refused()[:2] == (3, f"a file of {NAME} is gone")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, 3, f"Hugging Face denied access to {NAME}"),
        (404, 3, " has no someone/model"),
        (429, 1, "Hugging Face asks to wait: too many requests"),
        (500, 1, "Hugging Face failed with status 500"),
        (503, 1, "Hugging Face failed with status 503"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/revision/main"),
        ("GET", "config.json"),
        ("HEAD", "config.json"),
        ("STORE", "weights.safetensors"),
    ],
)
def test_a_refusal_that_stays(hub, refused, status, code, message, method, path):
    hub.fault(method, path, status=status, times=99)
    found = refused()
    assert found[0] == code
    assert found[1].endswith(message)


def test_no_connection(hub, refused, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, message, hint = refused()
    assert code == 1
    assert message.startswith("no connection to http://127.0.0.1:9: ")
    assert "HF_ENDPOINT" in hint


def test_the_connection_ends_for_good(hub, refused):
    hub.fault("STORE", "weights.safetensors", keep=0, times=99)
    code, message, hint = refused()
    assert code == 1
    assert message.startswith("no connection to ")
    assert "continues where it stopped" in hint


def test_something_that_is_no_hub(hub, refused):
    hub.fault("GET", "/revision/main", status=200, headers={"Content-Type": "text/html"})
    code, message, _ = refused()
    assert (code, message) == (1, f"{hub.endpoint} does not respond like the Hugging Face Hub")


def test_a_file_without_its_headers(hub, refused):
    hub.fault("HEAD", "config.json", status=200, times=99)
    assert "does not respond like the Hugging Face Hub" in refused()[1]


def test_offline(hub, refused, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, message, hint = refused()
    assert code == 3
    assert message == f"{NAME} is not completely downloaded, and offline mode forbids downloading it"
    assert "HF_HUB_OFFLINE" in hint
    assert not hub.requests


def test_a_full_disk(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", "/disk/blob")
    with pytest.raises(QvgError, match=r"^no space left at /disk/blob$") as raised, hub_errors(NAME, "main"):
        raise full
    assert raised.value.exit_code == 1
    assert "HF_HOME" in raised.value.hint


def test_a_cache_that_cannot_be_written(hub, refused, tmp_path):
    (tmp_path / "hf").write_text("a file where the folder should be")
    code, message, hint = refused()
    assert code == 1
    assert message.startswith("cannot write to ")
    assert "HF_HOME" in hint


def test_an_own_error_passes_unchanged():
    error = MissingModelError("as it was")
    with pytest.raises(MissingModelError) as raised, hub_errors(NAME, "main"):
        raise error
    assert raised.value is error


def test_ctrl_c_says_that_nothing_is_lost():
    with pytest.raises(KeyboardInterrupt) as raised, hub_errors(NAME, "main"):
        raise KeyboardInterrupt
    assert raised.value.__notes__ == ["the same command continues where it stopped"]
