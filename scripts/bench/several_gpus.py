"""One video on one GPU and on several: time, exchanges, memory of each, and how far the latents are apart.

    python scripts/bench/several_gpus.py --out build/results/gpus --processes 2 4
    python scripts/bench/several_gpus.py --out build/results/gpus --runs hyworldplay --cache int2 int2

Every run is one of `scripts.full_size`, random weights, without decoding. Those of one process go first, each
on a GPU of its own at the same time. The first two chunks of a video, and the last, which is profiled, are
left out of both times; of LongCat-Video the second segment counts. A preset given twice is made twice: the
second time nothing is compiled, also what only a share of the heads needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from safetensors.torch import load_file

MIB = 2**20


@dataclass(frozen=True)
class Run:
    """What is made.

    Attributes:
        options: Of `scripts.full_size`.
        first: Chunk from which times count.
        profiled: Chunk that is profiled, and does not count: the last, since processes take different times
            to write what they found; -1 profiles none.
    """

    options: Sequence[str]
    first: int
    profiled: int = -1


RUNS = {
    "self-forcing": Run(["--backend=self-forcing", "--frames=180"], 2, 59),
    "self-forcing-90": Run(["--backend=self-forcing", "--frames=90"], 2, 29),
    "hyworldplay": Run(["--backend=hyworldplay", "--chunks=24", "--context=incremental"], 2, 23),
    # Two segments after given frames, of which the second counts. A profile of one takes minutes.
    "longcat": Run(["--backend=longcat", "--steps=0", "--segments=2", "--set=sampler.guided_steps=10"], 1),
}


def main() -> None:
    """Run everything, then print the table."""
    options = _parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    num_gpus = max(1, torch.cuda.device_count())
    gpus: SimpleQueue[int] = SimpleQueue()
    for gpu in range(num_gpus):
        gpus.put(gpu)

    def run_alone(name: str) -> None:
        gpu = gpus.get()
        _run(options, name, 1, {"CUDA_VISIBLE_DEVICES": str(gpu)})
        gpus.put(gpu)

    # What an earlier call has made of one process is not made again.
    missing = [name for name in options.runs if not _path(options, name, 1).exists()]
    with ThreadPoolExecutor(num_gpus) as pool:
        list(pool.map(run_alone, missing))
    for name in options.runs:
        for count in options.processes:
            _run(options, name, count, {})
    lines = [
        row
        for name in options.runs
        for count in (1, *options.processes)
        for row in _rows(options, name, count)
    ]
    header = (
        "run",
        "cache",
        "GPUs",
        "from the third chunk, s",
        "times as fast",
        "last chunk, s",
        "exchanges of a chunk, ms",
        "cache of each, MiB",
        "device peak of each, MiB",
        "latents to one GPU, relative",
    )
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="for all else than the table; else --out")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["self-forcing", "hyworldplay", "longcat"])
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--cache", nargs="+", default=["int2"])
    parser.add_argument("--limit-seconds", type=float, default=240, help="after which a run is ended")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="options of scripts.full_size")
    options = parser.parse_args()
    options.work = options.work or options.out
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def _run(options: argparse.Namespace, name: str, count: int, place: Mapping[str, str]) -> None:
    run = RUNS[name]
    program = [sys.executable, "-m"]
    if count > 1:
        program += ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
    command = [
        *program,
        "scripts.full_size",
        *run.options,
        "--no-decode",
        f"--profile={run.profiled}",
        f"--out={_path(options, name, count)}",
        f"--latents={options.work / f'{name}.{count}'}",
        "--cache",
        *options.cache,
        *options.more,
    ]
    print("$", *command, flush=True)
    with (options.work / f"{name}.{count}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **place})
        try:
            process.wait(options.limit_seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def _path(options: argparse.Namespace, name: str, count: int, rank: int = 0) -> Path:
    return options.work / f"{name}.{count}{f'.{rank}' if rank else ''}.json"


def _rows(options: argparse.Namespace, name: str, count: int) -> list[list[str]]:
    """A row a cache."""
    run, rows = RUNS[name], []
    for number, preset in enumerate(options.cache):
        try:
            ranks = [
                json.loads(_path(options, name, count, rank).read_text())["arms"][number]
                for rank in range(count)
            ]
            alone = json.loads(_path(options, name, 1).read_text())["arms"][number]
            seconds, seconds_alone = sum(_counted(ranks[0], run)), sum(_counted(alone, run))
            summaries = [rank["summary"] for rank in ranks]
            exchanges = [_exchange(options, name, count, rank, preset) for rank in range(count)]
            cells = [
                f"{seconds:.2f}",
                f"{seconds_alone / seconds:.2f}",
                f"{_counted(ranks[0], run)[-1]:.2f}",
                ", ".join(exchanges),
                ", ".join(f"{each['peak']['bytes'] / MIB:.1f}" for each in summaries),
                ", ".join(f"{(each['device_peak_bytes'] or 0) / MIB:.1f}" for each in summaries),
                _distance(options.work / f"{name}.{count}", options.work / f"{name}.1", preset),
            ]
        except (OSError, LookupError, ValueError) as error:
            cells = [f"failed: {type(error).__name__} {error}", *[""] * 6]
        rows.append([name, preset, str(count), *cells])
    return rows


def _counted(arm: dict[str, Any], run: Run) -> list[float]:
    """Seconds of every chunk that counts."""
    chunks = [each for each in arm["chunks"] if each["chunk"] >= run.first and each["chunk"] != run.profiled]
    return [float(each["transformer_seconds"]) for each in chunks]


def _exchange(options: argparse.Namespace, name: str, count: int, rank: int, preset: str) -> str:
    path = Path(f"{_path(options, name, count, rank)}.{preset}.profile.txt")
    if not path.exists():
        return "-"
    told = [line for line in path.read_text().splitlines() if "exchanges among processes" in line]
    return told[0].split(", ")[1].split()[0] if told else "-"


def _distance(folder: Path, alone: Path, preset: str) -> str:
    latents, expected = (
        load_file(f"{each}.{preset}.safetensors")["latents"].float() for each in (folder, alone)
    )
    return f"{float((latents - expected).norm() / expected.norm()):.2e}"


if __name__ == "__main__":
    main()
