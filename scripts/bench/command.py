"""Time the whole command, from `qvg generate` to the finished file, with weights of the published sizes.

    python -m scripts.bench.command --backend self-forcing --num-frames 81 81 717 --out build/results/command
    python -m scripts.bench.command --backend hyworldplay --num-frames 381 --set sampler.context=incremental

A weights folder in the layout that `qvg download` writes is made first, if --weights has none: transformer,
VAE, text encoder and a tokenizer, random values, so that every file is read and every step costs what it
costs with the published ones. Then the command runs once for each length, one process each; a length given
again finds its prompt encoded and its kernels compiled. Prints seconds by the clock outside of the process,
and where they went as the run's memory.json tells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import UMT5Config, UMT5EncoderModel

from qvg_cli.config.load import Request
from qvg_cli.device import resolve_device
from qvg_cli.models.registry import load_config
from qvg_cli.models.wan.checkpoint import Checkpoint
from scripts.random_models import FULL, TINY, Layout, RandomModels

_TOKENIZER = Path(__file__).parents[2] / "qvg_cli" / "data" / "pocket" / "tokenizer"
# google/umt5-xxl, config.json; the tiny one fits the tiny transformers' text width.
_TEXT_ENCODER = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
_TINY_TEXT_ENCODER = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 1, "vocab_size": 512}
_TIMES = ("start", "text", "model", "vae", "writing", "idle", "first_frame")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the weights and every video, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("self-forcing", "hyworldplay"), default="self-forcing")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--num-frames", type=int, nargs="+", default=[81, 81])
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--weights", type=Path, help="folder of the random weights; else within --out")
    parser.add_argument("--text-layers", type=int, help="of the text encoder, if its time does not matter")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the figures")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    layout = {"full": FULL, "tiny": TINY}[options.size][options.backend]
    weights = (options.weights or options.out / "weights") / options.backend
    sets = [f"model.weights={weights.resolve()}", f"device={options.device}", *layout.sets, *options.sets]
    if not weights.exists():
        text_encoder = dict(_TINY_TEXT_ENCODER if options.size == "tiny" else _TEXT_ENCODER)
        if options.text_layers:
            text_encoder["num_layers"] = options.text_layers
        write_weights(weights, layout, Request(backend=options.backend, sets=sets), text_encoder)
    rows = []
    for number, num_frames in enumerate(options.num_frames):
        folder = options.out / f"{options.backend}-{number}"
        rows.append({"backend": options.backend, **_make(options.backend, sets, num_frames, folder)})
        path = options.out / f"{options.backend}.json"
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def write_weights(weights: Path, layout: Layout, request: Request, text_encoder: Mapping[str, int]) -> None:
    """A folder as `qvg download` leaves it, with random values."""
    part = weights.with_name(f"{weights.name}.part")
    config = load_config(request).config
    device = resolve_device(config.device)
    models = RandomModels(config, layout, device)
    transformer = models.draw_transformer()
    found = Checkpoint(lambda: type(transformer)(**layout.transformer), transformer.state_dict(), "random")
    found.write(part / "transformer", layout.transformer)
    # The published VAEs are float32.
    models.vae.float().save_pretrained(part / "vae")
    settings = UMT5Config(
        **text_encoder,
        **{"d_kv": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    )
    torch.set_default_dtype(torch.bfloat16)
    with device:
        encoder = UMT5EncoderModel(settings)
    torch.set_default_dtype(torch.float32)
    encoder.save_pretrained(part / "text_encoder")
    shutil.copytree(_TOKENIZER, part / "tokenizer")
    part.rename(weights)


def _make(backend: str, sets: Sequence[str], num_frames: int, folder: Path) -> dict[str, Any]:
    """The figures of one command, whose run stays in `folder`."""
    command = [sys.executable, "-m", "qvg_cli", "generate", "--backend", backend, f"--out={folder}"]
    command += [f"--num-frames={num_frames}", *(f"--set={each}" for each in sets)]
    print("$", *command, flush=True)
    began = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    (path,) = folder.rglob("memory.json")
    figures = json.loads(path.read_text(encoding="utf-8"))
    return {
        "command_seconds": round(seconds, 2),
        **{name: figures[name] for name in ("pixel_frames", "times", "device_peak_bytes", "chunk_seconds")},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a command."""
    names = ("backend", "frames", "seconds", *_TIMES, "device peak, MiB")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        peak = row["device_peak_bytes"]
        cells = [row["backend"], str(row["pixel_frames"]), f"{row['command_seconds']:.1f}"]
        cells += [f"{row['times'][name]:.1f}" for name in _TIMES]
        lines.append("| " + " | ".join([*cells, "" if peak is None else f"{peak / 2**20:,.0f}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
