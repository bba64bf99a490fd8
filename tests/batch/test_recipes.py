"""The recipes of docs/clusters.md are what the programs that they are for accept."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r'^```bash title="([\w.-]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", ["array.sh", "ray.sh", "hf-jobs.sh"])
def test_bash_reads_it(name):
    subprocess.run(["bash", "-n"], input=RECIPES[name], text=True, check=True)


def test_a_job_of_the_array_that_was_stopped_queues_again(tmp_path):
    """The script, with programs in the places of qvg and scontrol that write down what they get."""
    (tmp_path / "qvg").write_text(
        '#!/bin/bash\ntrap "echo USR1; exit 75" USR1\necho "$@"\nsleep 30 >/dev/null & wait\n'
    )
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@"\n')
    for name in ("qvg", "scontrol"):
        (tmp_path / name).chmod(0o755)
    names = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_JOB_ID": "42"}
    program = subprocess.Popen(
        ["bash", "-c", RECIPES["array.sh"], "array.sh", "p.jsonl", "--seconds", "5"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **names}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout.readline() == "generate --prompts p.jsonl --shard 3/8 --seconds 5\n"
    program.send_signal(10)
    assert program.communicate(timeout=20)[0].splitlines() == ["USR1", "requeue 42"]
    assert program.returncode == 75


def test_hugging_face_jobs_take_it(tmp_path):
    (tmp_path / "prompts").mkdir()
    command = RECIPES["hf-jobs.sh"].replace("jobs run", "jobs run --dry-run")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_TOKEN": "x"}
    shown = subprocess.check_output(["bash", "-c", command], cwd=tmp_path, env=environment, text=True)
    assert "h200x4" in shown
