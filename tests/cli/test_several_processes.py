"""`torchrun ... -m qvg_cli generate`: real processes, one of which dies or hangs; what was made is kept."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

# The timeout of an exchange is ten minutes; nobody waits for that here.
DRIVER = """
from datetime import timedelta
from qvg_cli.engine import parallel
from qvg_cli.main import main
parallel._EXCHANGE_TIMEOUT = timedelta(seconds=20)
main()
"""


@pytest.fixture(scope="module")
def two_heads(tiny_weights, tiny_wan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-heads")
    shutil.copytree(tiny_weights, folder, ignore=shutil.ignore_patterns("transformer"), dirs_exist_ok=True)
    WanTransformer3DModel(**{**tiny_wan, "num_attention_heads": 2}).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def torchrun(two_heads, tmp_path):
    """A function that starts a video of many chunks in two processes."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    started = []

    def start(frames):
        settings = [f"model.weights={two_heads}", "model.text_tokens=8", "sampler.window=6"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(driver), "generate", "red ball", "--size", "64x32", "--frames", str(frames)]
        command += ["--out", str(tmp_path / "out"), *(part for each in settings for part in ("--set", each))]
        log = (tmp_path / "log").open("w")
        started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def follower_of(torchrun):
    """Process id of the one that follows."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    (follower,) = (
        child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()
    )
    return int(follower)


def wait_for_chunks(folder, count):
    end = time.monotonic() + 300
    while len(list(folder.glob("*/*/state/0*.json"))) < count:
        assert time.monotonic() < end, (folder.parent / "log").read_text()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("sent", "said"),
    [(signal.SIGKILL, "another process has ended"), (signal.SIGSTOP, "has not answered for 20 s")],
)
def test_a_process_that_dies_or_hangs_ends_all_and_what_was_made_is_kept(torchrun, tmp_path, sent, said):
    process = torchrun(1200)
    wait_for_chunks(tmp_path / "out", 3)
    follower = follower_of(process)
    os.kill(follower, sent)
    assert process.wait(300) == 1
    assert not Path(f"/proc/{follower}").exists()
    told = (tmp_path / "log").read_text()
    errors = re.findall("^error: .*", told, re.MULTILINE)
    assert len(errors) == 1, told
    assert said in errors[0]
    (folder,) = (tmp_path / "out").glob("*/*")
    assert f"qvg generate --resume {folder}" in told
    memory = json.loads((folder / "memory.json").read_text())
    assert memory["status"] == "failed"
    assert len(memory["chunks"]) >= 3
    assert len(memory["processes"]) == 2
    assert load_file(folder / "latents.safetensors")["latents"].shape[2] == memory["latent_frames"]
    assert (folder / "video.mp4").stat().st_size > 0
