"""Run published weights on a GPU, short and long, bf16 against int2, and write a report to send back.

    qvg download self-forcing
    python -m scripts.verify_real --out verify
    python -m scripts.verify_real --codecs --out verify    # what every cache preset does to this model
    python -m scripts.verify_real --pocket --out verify    # the same on the built-in model, on any machine

Without --backend, every backend whose weights are there is run. Each run is a `qvg compare bf16 int2` in a
process of its own, so that one that fails or runs out of memory keeps no other from being made. Where
`qvg plan` says that bf16 does not fit the card, int2 is run alone. verify.json is written anew after every
run, verify.md beside it.

--codecs records keys, values and queries of a few layers in one short run (scripts/bench/record.py, at most
--size-mib) and packs them with every preset (kernels/bench/fidelity.py); verify.md has the tables. The
recordings stay in the folder and need not be sent.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qvg_cli.config.load import backend_names
from qvg_cli.config.resources import qvg_home
from qvg_cli.errors import MissingModelError, QvgError, UsageError
from qvg_cli.files import write_whole
from qvg_cli.redaction import redact
from qvg_cli.report.comparison import db_text
from qvg_cli.report.words import mib_text

SCHEMA = 1
LENGTHS: dict[str, dict[str, list[str]]] = {
    "self-forcing": {"short": ["--frames", "81"], "long": ["--seconds", "30"]},
    "hyworldplay": {
        "short": ["--pose", "w-8,a-8"],
        # Places are left and seen again.
        "long": ["--pose", "w-16,right-16,a-16,left-16,s-16,w-16,right-16,a-16,left-16,s-16"],
    },
    # A base clip and one segment, a base clip and ten.
    "longcat": {"short": ["--frames", "113"], "long": ["--frames", "293"]},
    "pocket": {"short": ["--frames", "33"], "long": ["--frames", "81"]},
}
_TAIL_LINES = 20
ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything that was asked for; 0 if all of it became whole."""
    options = parse_options(arguments)
    try:
        backends = choose_backends(options)
    except QvgError as refusal:
        print(f"error: {refusal}\n\nhint: {refusal.hint}", file=sys.stderr)
        return refusal.exit_code
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": shlex.join(["python", "-m", "scripts.verify_real", *options.given]),
        "machine": ask(["doctor", "--json"]),
        "runs": [],
    }
    for backend in backends:
        for length in ["codecs"] if options.codecs else options.only:
            print(f"{backend}, {length}", file=sys.stderr, flush=True)
            make = measure_codecs if options.codecs else make_run
            record["runs"].append(make(backend, length, options))
            save(record, options.out)
    print(options.out / "verify.md")
    pages = "" if options.codecs else ", and the report.html of every run"
    print(f"send back verify.json and verify.md{pages}", file=sys.stderr)
    return 0 if all(run["status"] == "complete" for run in record["runs"]) else 1


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backend", action="append", choices=backend_names(), help="repeatable; default: all that are there")
    add("--pocket", action="store_true", help="the built-in model instead, to try this program")
    add("--only", nargs="+", choices=("short", "long"), default=["short", "long"])
    add(
        "--codecs",
        action="store_true",
        help="measure what presets do to keys and values, instead of the runs",
    )
    add("--layers", type=int, default=4, help="with --codecs: how many are recorded")
    add(
        "--size-mib",
        type=float,
        default=1024,
        help="with --codecs: limit of a recording; fewer layers if needed",
    )
    add("--presets", nargs="*", default=[], help="with --codecs: some presets instead of all")
    add("--frames", type=int, help="pixel frames of every run instead of its own length")
    add("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as in qvg compare")
    add("--out", type=Path, default=Path("verify"), help="folder of the report and the runs")
    options = parser.parse_args(arguments)
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    if options.pocket and options.backend:
        parser.error("give --pocket or --backend")
    return options


def choose_backends(options: argparse.Namespace) -> list[str]:
    """What is run.

    Raises:
        MissingModelError: Weights are missing.
        UsageError: There is no GPU.
    """
    if options.pocket:
        return ["pocket"]
    there = [backend for backend in backend_names() if (qvg_home() / backend).is_dir()]
    wanted = options.backend or there
    missing = [backend for backend in wanted if backend not in there]
    if missing or not wanted:
        names = missing or list(backend_names())
        fetch = ", ".join(f"qvg download {name}" for name in names)
        raise MissingModelError(
            f"no weights of {', '.join(names)} in {qvg_home()}", hint=f"fetch what you mean to run: {fetch}"
        )
    # Not before: it takes seconds.
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "this machine has no GPU that torch can use, and published weights are not run on a CPU",
            hint="qvg doctor says more; --pocket tries this program without a GPU",
        )
    return list(dict.fromkeys(wanted))


def make_run(backend: str, length: str, options: argparse.Namespace) -> dict[str, Any]:
    """One length of one backend: what was predicted, what came of it."""
    model = ["--pocket"] if backend == "pocket" else ["--backend", backend]
    asked = [
        *model,
        *length_of(backend, length, options),
        *(part for text in options.sets for part in ("--set", text)),
    ]
    plan = ask(["plan", *asked, "--cache", "bf16", "--cache", "int2", "--json", "--quiet"])
    presets, left_out = fitting(plan)
    run: dict[str, Any] = {"backend": backend, "length": length, "plan": plan, "left_out": left_out}
    if not presets:
        return {**run, "status": "left out", "error": "neither bf16 nor int2 fits the card"}
    command = ["generate", "--cache", presets[0]] if len(presets) == 1 else ["compare", *presets]
    command += [*asked, "--out", str(options.out / "runs"), "--json"]
    started = time.perf_counter()
    figures = ask(command)
    is_whole = "error" not in figures
    return {
        **run,
        "status": "complete" if is_whole else "failed",
        "command": shlex.join(["qvg", *command]),
        "seconds": round(time.perf_counter() - started, 1),
        "figures": figures if is_whole else None,
        "error": None if is_whole else figures["error"],
    }


def length_of(backend: str, length: str, options: argparse.Namespace) -> list[str]:
    """Options for the length; all checkpoints of the causal Wan family have the same."""
    if options.frames is not None:
        return ["--frames", str(options.frames)]
    return LENGTHS.get(backend, LENGTHS["self-forcing"])[length]


def measure_codecs(backend: str, length: str, options: argparse.Namespace) -> dict[str, Any]:
    """What every preset does to keys, values and attention of one backend."""
    folder = options.out / "codecs"
    folder.mkdir(parents=True, exist_ok=True)
    recording, table = folder / f"{backend}.safetensors", folder / f"{backend}.md"
    device = "cpu" if backend == "pocket" else "cuda"
    record = [
        str(ROOT / "scripts" / "bench" / "record.py"),
        *([] if backend == "pocket" else ["--backend", backend]),
        *length_of(backend, "short", options),
        *("--prompts", "1", "--layers", str(options.layers), "--size-mib", str(options.size_mib)),
        *("--device", device, "--out", str(recording)),
        *(part for text in options.sets for part in ("--set", text)),
    ]
    measure = [
        str(ROOT / "kernels" / "bench" / "fidelity.py"),
        *("--recorded", str(recording), "--device", device, "--table", str(table)),
        *("--json", str(folder / f"{backend}.json"), "--presets", *options.presets),
    ]
    run = {"backend": backend, "length": length, "left_out": {}, "command": shlex.join(record)}
    started = time.perf_counter()
    for command in (record, measure):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode:
            return {
                **run,
                "status": "failed",
                "seconds": time.perf_counter() - started,
                "error": last_words(done),
            }
    return {
        **run,
        "status": "complete",
        "seconds": round(time.perf_counter() - started, 1),
        "table": table.read_text(encoding="utf-8"),
    }


def fitting(plan: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Presets to run, the baseline first, and why others are left out."""
    if "error" in plan:
        # The run itself will say what is wrong.
        return ["bf16", "int2"], {}
    left_out = {
        cache["name"]: f"needs about {mib_text(cache['device_bytes'])} MiB"
        for cache in plan["caches"]
        if cache["verdict"] == "does not fit"
    }
    return [cache["name"] for cache in plan["caches"] if cache["name"] not in left_out], left_out


def ask(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a command of qvg prints; its last words under `error` if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "qvg_cli", *arguments],
        capture_output=True,
        text=True,
    )
    try:
        printed: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        printed = {}
    # qvg doctor ends with a failure where it has found something, and has printed all the same.
    if printed and (done.returncode == 0 or arguments[0] == "doctor"):
        return printed
    return {"error": last_words(done), "exit_code": done.returncode}


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed said in the end."""
    told = "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
    return redact(told) or f"exit code {done.returncode}"


def save(record: Mapping[str, Any], folder: Path) -> None:
    """Write both files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"verify.json": json.dumps(record, indent=1) + "\n", "verify.md": report(record)}
    for name, text in texts.items():
        write_whole(folder / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))


def report(record: Mapping[str, Any]) -> str:
    """The Markdown page."""
    lines = ["# Verification of qvg", "", f"{record['created']}: `{record['command']}`", "", "## Machine", ""]
    for finding in record["machine"].get("findings", []):
        lines.append(f"- {finding['name']}: {finding['said']}")
    for run in record["runs"]:
        lines += ["", f"## {run['backend']}, {run['length']}: {run['status']}", ""]
        if "command" in run:
            lines += [f"`{run['command']}`, {run['seconds']:.0f} s", ""]
        lines += [f"{name} was left out: {why}." for name, why in run["left_out"].items()]
        if run.get("error"):
            lines += ["```text", run["error"], "```"]
        if run.get("figures"):
            lines += table(run)
        lines.append(run.get("table", ""))
    return "\n".join(lines) + "\n"


def table(run: Mapping[str, Any]) -> list[str]:
    """What the arms cost and lost, beside what was predicted."""
    figures = run["figures"]
    predicted = {cache["name"]: cache for cache in run["plan"].get("caches", [])}
    lines = [
        "| cache | cache peak [MiB] | predicted | under BF16 | device peak [MiB] | predicted | s a chunk "
        "| PSNR [dB] | SSIM |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in figures.get("arms") or [{**figures, "name": figures["cache"]}]:
        plan, quality, measured = predicted.get(arm["name"]), arm.get("quality"), arm["device_peak_bytes"]
        cells = [
            arm["name"],
            mib_text(arm["peak"]["bytes"]),
            mib_text(plan["cache_peak"]["bytes"]) if plan else "-",
            f"{arm['peak']['ratio']:.2f}x" if arm["peak"]["ratio"] else "-",
            "-" if measured is None else mib_text(measured),
            mib_text(sum(plan["peak"]["bytes"].values())) if plan and measured is not None else "-",
            f"{arm['seconds_per_chunk']:.2f}" if "seconds_per_chunk" in arm else "-",
            db_text(quality["psnr_db"]) if quality else "-",
            f"{quality['ssim']:.4f}" if quality else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"In `{figures['folder']}`."]


if __name__ == "__main__":
    sys.exit(main())
