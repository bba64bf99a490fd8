"""Real processes killed at random points, and a disk that fills up: what was made stays, the rest follows."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from qvg_cli.main import app
from qvg_cli.video.io import read_frames

LENGTH = ["--frames", "117", "--set", "sampler.window=15", "--set", "sampler.sink=3", "--cache", "int2-qvg"]
LENGTH += ["--set", "cache.span_tokens=48", "--set", "cache.keep_recent_chunks=1"]
CHUNKS = 10
WRITES_A_CHUNK = 9
KILLS = 60


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    result = tiny("a red ball", *LENGTH, "--out", tmp_path_factory.mktemp("whole"), "--json")
    assert result.exit_code == 0, result.stderr
    return Path(json.loads(result.stdout)["folder"])


def die_at_write(number):
    """Kill this process at its write `number`: before a file is synced, before or after it gets its name."""
    left = [number]

    def counting(call, is_after=False):
        def wrapper(*arguments, **options):
            left[0] -= 1
            if left[0] == 0 and not is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    os.replace = counting(os.replace, is_after=bool(number % 2))
    os.fsync = counting(os.fsync)


def start(arguments, log, *, dies_at=None):
    """A process of its own that runs `qvg`; forked, because importing torch takes seconds."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    if dies_at is not None:
        die_at_write(dies_at)
    sys.argv = ["qvg", *arguments]
    try:
        app(arguments)
    except SystemExit as end:
        os._exit(end.code or 0)
    finally:
        os._exit(99)


def chunks_said(log):
    """How many chunks the process said to have finished."""
    return max((int(number) for number in re.findall(r"^chunk (\d+)/", log.read_text(), re.M)), default=0)


def assert_same(folder, whole):
    latents = [load_file(run / "latents.safetensors")["latents"] for run in (folder, whole)]
    assert latents[0].equal(latents[1])
    for one, other in zip(*(read_frames(run / "video.mp4") for run in (folder, whole)), strict=True):
        assert np.array_equal(one, other)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.slow
def test_kill_9_at_random_points_loses_at_most_two_chunks(tiny, whole, tmp_path):
    """The one in hand and the one that is being written."""
    chance = random.Random(9)
    log = tmp_path / "log"
    num_kills, num_runs = 0, 0
    while num_kills < KILLS:
        num_runs += 1
        out = tmp_path / f"run-{num_runs}"
        arguments = ["generate", "a red ball", *tiny.arguments, *LENGTH, "--out", str(out)]
        made = 0
        while True:
            by_write = num_kills % 2
            dies_at = chance.randint(1, 3 * WRITES_A_CHUNK) if by_write else None
            child = start(arguments, log, dies_at=dies_at)
            if not by_write:
                time.sleep(chance.uniform(0.05, 1.2))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            folder = out / "self-forcing" / "a-red-ball-seed0"
            if status == 0:
                break
            assert os.WIFSIGNALED(status), log.read_text()
            num_kills += 1
            if (folder / "state").exists():
                # What was said to be made is there but for the last, which is on its way to the disk when it
                # is said, and nothing that was there before has gone.
                records = len(list((folder / "state").glob("0*.json")))
                assert records >= max(chunks_said(log) - 1, made)
                made = records
            if (folder / "state" / "identity.json").exists():
                arguments = ["generate", "--resume", str(folder)]
            elif folder.exists() and not (folder / "memory.json").exists():
                # Killed before the first chunk: there is nothing to go on from.
                shutil.rmtree(folder)
            elif folder.exists():
                arguments = ["generate", "--resume", str(folder)]
        assert_same(folder, whole)
    assert num_runs >= 2


FULL_DISK = """
set -u
mount -t tmpfs -o size={small}k tmpfs {disk}
{python} -m qvg_cli generate "$@" --out {disk} > {log} 2>&1
echo "first $?"
find {disk} -name '*.part' -o -name parts.txt
mount -o remount,size=20m tmpfs {disk}
{python} -m qvg_cli generate --resume {disk}/self-forcing/a-red-ball-seed0 >> {log} 2>&1
echo "second $?"
cp -r {disk}/self-forcing/a-red-ball-seed0 {kept}
"""


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_made(tiny, whole, tmp_path):
    disk, kept, log = tmp_path / "disk", tmp_path / "kept", tmp_path / "log"
    disk.mkdir()
    small = int(0.4 * sum(path.stat().st_size for path in whole.iterdir()) / 1024)
    script = FULL_DISK.format(small=small, disk=disk, kept=kept, log=log, python=sys.executable)
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*command[:4], "true"]).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    result = subprocess.run(
        [*command, "a red ball", *tiny.arguments, *LENGTH], stdout=subprocess.PIPE, text=True, check=True
    )
    said = log.read_text()
    assert result.stdout.split() == ["first", "1", "second", "0"], said
    assert "no space left" in said or "No space left" in said
    assert "resume with: qvg generate --resume" in said
    assert "resuming after chunk " in said
    assert_same(kept, whole)
