"""The recipes of docs/clusters.md are what the programs that they are for accept."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r'^```bash title="([\w.-]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", ["array.sh", "ray.sh", "hf-jobs.sh"])
def test_bash_reads_it(name):
    subprocess.run(["bash", "-n"], input=RECIPES[name], text=True, check=True)


@pytest.mark.parametrize(("name", "after"), [("USR1", ["requeue 42"]), ("TERM", [])])
def test_a_job_queues_again_when_its_time_is_over_and_not_when_it_is_cancelled(name, after, tmp_path):
    """The script, with programs in the places of qvg and scontrol that write down what they get."""
    traps = "".join(f'trap "echo {each}; exit 75" {each}\n' for each in ("USR1", "TERM"))
    programs = {"qvg": f'{traps}sleep 0.2\necho "$@"\nsleep 9 >/dev/null & wait\n', "scontrol": 'echo "$@"\n'}
    for program, text in programs.items():
        (tmp_path / program).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / program).chmod(0o755)
    names = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_JOB_ID": "42"}
    script = subprocess.Popen(
        ["bash", "-c", RECIPES["array.sh"], "array.sh", "p.jsonl", "--seconds", "5"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **names}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert script.stdout.readline() == "generate --prompts p.jsonl --shard 3/8 --seconds 5\n"
    script.send_signal(signal.Signals[f"SIG{name}"])
    assert script.communicate(timeout=20)[0].splitlines() == [name, *after]
    assert script.returncode == 75


def test_hugging_face_jobs_take_it(tmp_path):
    (tmp_path / "prompts").mkdir()
    command = RECIPES["hf-jobs.sh"].replace("jobs run", "jobs run --dry-run")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_TOKEN": "x"}
    shown = subprocess.check_output(["bash", "-c", command], cwd=tmp_path, env=environment, text=True)
    assert "h200x4" in shown
