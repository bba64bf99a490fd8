"""What `qvg batch` adds to each video, against a plain loop.

Many tiny videos are made by one worker of a local Ray, and by `qvg generate --prompts`, in turns. A
video's time is from the end of the one before it, so start-up does not count.

    python scripts/bench/batch.py --jobs 64 --rounds 2 --json batch.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

SETTINGS = ["--pocket", "--size", "112x64", "--frames", "21", "--cache", "int2"]
WAYS = {
    "plain loop": ["generate", "--prompts"],
    "qvg batch": ["batch", "--workers", "1"],
}


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds = [
        {name: measure(words, arguments.jobs) for name, words in WAYS.items()}
        for _ in range(arguments.rounds)
    ]
    print(f"{'':12}  start s  mean s a video  median s")
    for figures in rounds:
        for name, each in figures.items():
            print(f"{name:12}  {each['start']:7.1f}  {each['mean']:14.3f}  {each['median']:8.3f}")
    plain, batch = (mean(each[name]["mean"] for each in rounds) for name in WAYS)
    print(f"qvg batch takes {100 * (batch / plain - 1):+.1f} % a video, {1000 * (batch - plain):+.0f} ms")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"jobs": arguments.jobs, "rounds": rounds}, indent=1) + "\n")


def measure(words: list[str], num_jobs: int) -> dict[str, Any]:
    """Seconds until the first video is there, and of each one after it."""
    with tempfile.TemporaryDirectory() as folder:
        jobs, out = Path(folder, "jobs.jsonl"), Path(folder, "out")
        lines = [
            json.dumps({"prompt": "a large red ball bounces on grass", "seed": seed})
            for seed in range(num_jobs)
        ]
        jobs.write_text("\n".join(lines) + "\n")
        # Ray lets its workers yield to other programs; here both are to have the same share of the machine.
        environment = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
        began = time.time()
        subprocess.run(
            [sys.executable, "-m", "qvg_cli", *words, str(jobs), "--out", str(out), *SETTINGS],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
        # The last file of a run.
        ends = sorted(path.stat().st_mtime for path in out.rglob("report.html"))
    assert len(ends) == num_jobs
    seconds = [after - before for before, after in pairwise(ends)]
    return {"start": ends[0] - began, "mean": mean(seconds), "median": median(seconds), "seconds": seconds}


if __name__ == "__main__":
    main()
