"""Record keys and values of the pocket model over several prompts, for `fidelity.py --recorded`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pocket_runs import Arm, history, read_prompts, start_batch
from safetensors.torch import save_file


def main() -> None:
    """Run the pocket model with an unpacked cache and save what the cache holds at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--prompts", type=int, default=4, help="how many prompts")
    parser.add_argument("--frames", type=int, default=42, help="latent frames, all of them attended to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    common = (
        f"video.frames={options.frames}",
        f"seed={options.seed}",
        "sampler.window=null",
        "sampler.sink=0",
    )
    batch = start_batch(Arm.parse("none").config(common), read_prompts(options.prompts), options.device)
    for result in batch.results:
        print(f"chunk {result.chunk.index}: {result.seconds:.1f} s", flush=True)
    tensors = {}
    for layer, keys, values in history(batch.cache):
        tensors[f"layer{layer}.key"] = keys.to(torch.bfloat16).contiguous().cpu()
        tensors[f"layer{layer}.value"] = values.to(torch.bfloat16).contiguous().cpu()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.out)
    print(f"wrote {options.out}: {len(tensors)} tensors of {tuple(tensors['layer0.key'].shape)}")


if __name__ == "__main__":
    main()
