"""One file from the hub: continued where it stopped, refused when it is not what the hub lists."""

import random

import pytest

from qvg_cli.errors import QvgError
from qvg_cli.hub.fetch import fetch
from qvg_cli.hub.remote import list_files

NAME = "someone/model"
WEIGHTS = random.Random(0).randbytes(40_000)
FILES = {"big/weights.safetensors": WEIGHTS, "big/config.json": b'{"layers": 2}'}


@pytest.fixture
def hub(hub):
    hub.repository(NAME, FILES)
    return hub


@pytest.fixture
def notes():
    return []


@pytest.fixture
def get(notes):
    def run(path="big/weights.safetensors"):
        return fetch(list_files(NAME, "main").files[path], notes.append)

    return run


def partial_of(path="big/weights.safetensors"):
    return list_files(NAME, "main").files[path].partial


def ranges(hub):
    return [request.range for request in hub.asked("STORE", "weights.safetensors")]


def change_one_byte(content):
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_fetched_once(hub, get, path):
    assert get(path).read_bytes() == FILES[path]
    before = len(hub.requests)
    assert get(path).read_bytes() == FILES[path]
    # The listing alone: content that is there is not asked for again.
    assert [request.path for request in hub.requests[before:]] == [f"/api/models/{NAME}/revision/main"]


def test_a_cut_connection_is_continued(hub, get):
    hub.fault("STORE", "weights.safetensors", keep=10_000, times=3)
    assert get().read_bytes() == WEIGHTS
    assert ranges(hub) == [None, "bytes=9216-", "bytes=18432-", "bytes=27648-"]


def test_a_later_run_continues(hub, get):
    partial = partial_of()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:15_000])
    assert get().read_bytes() == WEIGHTS
    assert ranges(hub) == ["bytes=15000-"]
    assert not partial.exists()


def test_what_was_gathered_survives_a_failure(hub, get):
    hub.fault("STORE", "weights.safetensors", keep=20_000)
    hub.fault("STORE", "weights.safetensors", status=500, times=99)
    with pytest.raises(QvgError, match="Hugging Face failed with status 500") as raised:
        get()
    assert "continues where it stopped" in raised.value.hint
    hub.faults.clear()
    hub.requests.clear()
    assert get().read_bytes() == WEIGHTS
    assert ranges(hub) == ["bytes=19456-"]


def test_a_server_without_ranges_starts_over(hub, get):
    partial = partial_of()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 15_000)
    hub.fault("STORE", "weights.safetensors", ignores_range=True)
    assert get().read_bytes() == WEIGHTS


def test_parts_that_do_not_fit_together_are_dropped(hub, get, notes):
    partial = partial_of()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 15_000)
    assert get().read_bytes() == WEIGHTS
    assert notes == [
        "the parts of big/weights.safetensors do not fit together; downloading it from the start"
    ]
    assert ranges(hub) == ["bytes=15000-", None]


@pytest.mark.parametrize("size", [len(WEIGHTS) + 1, len(WEIGHTS)])
def test_a_partial_file_of_the_wrong_content_is_dropped(hub, get, size):
    partial = partial_of()
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * size)
    assert get().read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "change", [change_one_byte, lambda content: content[:-1], lambda content: content + b"!"]
)
def test_other_content_than_listed_is_refused(hub, get, change):
    hub.fault("STORE", "weights.safetensors", change=change, times=99)
    with pytest.raises(QvgError):
        get()
    file = list_files(NAME, "main").files["big/weights.safetensors"]
    assert not file.blob.exists()
    hub.faults.clear()
    assert get().read_bytes() == WEIGHTS


def test_changed_content_is_named(hub, get):
    hub.fault("STORE", "weights.safetensors", change=change_one_byte, times=99)
    with pytest.raises(QvgError, match=r"weights\.safetensors of someone/model has other content"):
        get()
    assert not partial_of().exists()


def test_changed_content_of_a_small_file_is_refused(hub, get):
    hub.fault("GET", "config.json", change=lambda content: content.replace(b"2", b"3"), times=99)
    with pytest.raises(QvgError, match=r"config\.json of someone/model has other content"):
        get("big/config.json")
    hub.faults.clear()
    assert get("big/config.json").read_bytes() == FILES["big/config.json"]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("damage", [lambda content: content[:-3], change_one_byte, lambda content: b""])
def test_a_damaged_cache_is_mended(hub, get, notes, path, damage):
    blob = get(path).resolve()
    blob.write_bytes(damage(FILES[path]))
    assert get(path).read_bytes() == FILES[path]
    assert notes == [f"{path} in the Hugging Face cache is damaged; downloading it again"]


def test_a_link_to_nothing_is_mended(hub, get):
    get().resolve().unlink()
    assert get().read_bytes() == WEIGHTS


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("path", FILES)
def test_a_hub_that_fails_for_a_while_is_asked_again(hub, get, status, path):
    hub.fault("GET", "/revision/main", status=status, times=2)
    hub.fault("HEAD", path, status=status, times=2)
    hub.fault("GET", path, status=status, times=2)
    hub.fault("STORE", path, status=status, times=2)
    assert get(path).read_bytes() == FILES[path]


def test_a_busy_hub_is_asked_again(hub, get):
    hub.fault("STORE", "weights.safetensors", status=429, headers={"Retry-After": "7"}, times=3)
    assert get().read_bytes() == WEIGHTS


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, get, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.repositories[NAME].token = "hf_good"
    assert get().read_bytes() == WEIGHTS
    sent = {(request.method, request.authorization) for request in hub.requests}
    assert sent == {("GET", "Bearer hf_good"), ("HEAD", "Bearer hf_good"), ("STORE", None)}


def test_without_a_token_none_is_sent(hub, get):
    get()
    assert {request.authorization for request in hub.requests} == {None}


def test_a_cache_that_is_only_read_will_do(hub, get, tmp_path):
    for path in FILES:
        get(path)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "hf").rglob("*")}
    for lock in tmp_path.rglob("*.lock"):
        lock.unlink()
        before.pop(lock, None)
    for path in FILES:
        assert get(path).read_bytes() == FILES[path]
    assert set((tmp_path / "hf").rglob("*")) == before.keys()
