"""What `qvg batch` adds to each video, against a plain loop.

Many tiny videos are made by one worker of a local Ray, and by `qvg generate --prompts`, in turns. What is
compared is the time between the last file of a video and the first of the next, which other programs of the
machine change little.

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
    print(f"{'':12}  start s  a video s  between videos s: mean  median")
    for figures in rounds:
        for name, each in figures.items():
            video, between = mean(each["video"]), mean(each["between"])
            print(f"{name:12}  {each['start']:7.1f}  {video:9.3f}  {between:22.3f}", end="")
            print(f"  {median(each['between']):6.3f}")
    plain, batch = (median(seconds for each in rounds for seconds in each[name]["between"]) for name in WAYS)
    video = median(seconds for each in rounds for seconds in each["plain loop"]["video"])
    print(f"qvg batch adds {1000 * (batch - plain):.0f} ms to a video, {100 * (batch - plain) / video:.1f} %")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"jobs": arguments.jobs, "rounds": rounds}, indent=1) + "\n")


def measure(words: list[str], num_jobs: int) -> dict[str, Any]:
    """Seconds until the first video begins, of each video, and between them."""
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
        # The first file of a run and its last.
        runs = sorted(
            (path.with_name("run.yaml").stat().st_mtime, path.stat().st_mtime)
            for path in out.rglob("report.html")
        )
    assert len(runs) == num_jobs
    video = [end - begin for begin, end in runs]
    between = [after[0] - before[1] for before, after in pairwise(runs)]
    return {"start": runs[0][0] - began, "video": video, "between": between}


if __name__ == "__main__":
    main()
