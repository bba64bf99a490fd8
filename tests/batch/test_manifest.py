"""What a manifest says, whatever cut it off, and where it and the videos are kept."""

import json

import pytest

from qvg_cli.batch.manifest import Manifest, Status
from qvg_cli.batch.store import Store
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.report.run_files import _KEYS, MEMORY


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path, monkeypatch):
    """A folder, and an address whose scratch folder is a test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}/out/"
    store = Store(place)
    store.prepare()
    return store


def job(name, status, **more):
    return {"id": name, "prompt": "a ball", "seed": 0, "folder": f"x/{name}", "status": status, **more}


def test_the_last_line_of_a_job_counts_and_a_start_lets_others_wait(store):
    manifest = Manifest(store)
    manifest.begin("p.jsonl", ["a", "b", "c"], 2, [])
    for row in (job("a", "running", tries=1), job("a", "complete", tries=1), job("b", "failed", tries=3)):
        manifest.add(row)
    manifest.end()
    assert json.loads(store.read("summary.json"))["failures"] == manifest.jobs("failed")
    later = Manifest(store)
    assert later.count() == {"complete": 1, "failed": 1, "running": 0, "stopped": 0, "waiting": 1}
    later.begin("p.jsonl", ["b", "a", "c", "d"], 2, ["line 5"])
    assert later.count() == {"complete": 1, "failed": 0, "running": 0, "stopped": 0, "waiting": 3}
    assert later.line() == "1 of 4 videos"
    later.end()
    assert Status(store.read("manifest.jsonl")).to_json()["left_out"] == ["line 5"]
    assert len(store.read("manifest.jsonl").splitlines()) == 5


def test_a_line_that_was_cut_off_is_passed_over_and_none_is_lost_after_it(store):
    manifest = Manifest(store)
    manifest.begin("p.jsonl", ["a", "b"], 1, [])
    manifest.add(job("a", "complete", tries=1))
    manifest.end()
    store.write("manifest.jsonl", store.read("manifest.jsonl") + '{"id": "b", "sta')
    later = Manifest(store)
    later.add(job("b", "complete", tries=1))
    later.end()
    assert Status(store.read("manifest.jsonl")).count()["complete"] == 2


def test_rate_and_time_left():
    status = Status()
    status.take({"time": 100.0, "schema": 1, "prompts": "p", "left_out": [], "ids": ["a", "b", "c", "d"]})
    status.take({"time": 130.0, **job("a", "complete", tries=1)})
    status.take({"time": 160.0, **job("b", "running", tries=1)})
    assert status.line() == "1 of 4 videos, 1 running, 60.0 per hour, 3 min 00 s left"


def test_a_manifest_of_a_newer_qvg_is_refused():
    with pytest.raises(UsageError, match="schema 2"):
        Status('{"time": 1, "schema": 2}')


def write_run(store, name):
    run = store.open_run(f"x/{name}")
    for file in ("video.mp4", "run.yaml"):
        (run.path / file).write_text(file)
    figures = {**dict.fromkeys(_KEYS[MEMORY]), "schema": 1, "status": "complete"}
    run.memory.write_text(json.dumps(figures))
    return run


def test_a_run_is_finished_once_it_is_delivered(store):
    run = write_run(store, "whole")
    store.open_run("x/begun")
    store.deliver(run)
    assert store.finished("x") == {"x/whole"}
    assert run.path.exists() == (not store.is_address)


def test_what_does_not_arrive_whole_stays_here_and_is_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(f"memory://{tmp_path.name}/out")
    run = write_run(store, "whole")
    put = store._fs.put_file
    monkeypatch.setattr(
        store._fs, "put_file", lambda here, there: put(run.config if here.endswith("mp4") else here, there)
    )
    with pytest.raises(QvgError, match=r"video.mp4 has 8 bytes at memory:.*, not 9"):
        store.deliver(run)
    assert store.finished("x") == set()
    assert run.video.exists()


def test_a_folder_of_somebody_else_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Store("memory://place").root.parent.chmod(0o777)
    with pytest.raises(UsageError, match="is not a private folder of this user"):
        Store("memory://place")


def test_one_batch_at_a_time_in_a_folder(tmp_path):
    second = Store(str(tmp_path)).hold()
    with Store(str(tmp_path)).hold(), pytest.raises(UsageError, match="another qvg batch process is working"):
        second.__enter__()


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UsageError, match="cannot use the address nosuch://x"):
        Store("nosuch://x")
