"""Draw what the default codec does, step by step, on keys of the demo model.

    python -m scripts.docs.draw_codec docs/images/codec.png

The keys are those of one head as the transformer computes them for the clean latents of a video. The steps
follow docs/cache-format.md in plain numpy, with four levels a value (int2-scalar) instead of the lattice.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import WanTransformer3DModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

Array = NDArray[np.float64]

WEIGHTS = Path(__file__).parents[2] / "qvg_cli" / "data" / "pocket" / "transformer"
PROMPT = "A large yellow cone circles on grass under a blue sky"
LAYER, HEAD, HEAD_DIM = 2, 0, 128
NUM_CENTROIDS, ROUNDS = 24, 4
LEVELS = np.array([-3.0, -1.0, 1.0, 3.0])
STEP = 0.498
SHOWN_TOKENS = 160


def main() -> None:
    """Compute the keys, pack them, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", type=Path)
    target: Path = parser.parse_args().target
    keys = demo_keys()

    offset = keys.mean(0)
    weight = np.sqrt(keys.std(0))
    scaled = (keys - offset) / weight
    centroids = nearest_centroids(scaled)
    residual = scaled - centroids
    generator = np.random.default_rng(0)
    signs = generator.choice([-1.0, 1.0], size=residual.shape)
    rotated = (residual * signs) @ hadamard(HEAD_DIM)
    deviation = np.sqrt((rotated**2).mean(1, keepdims=True))
    nearest = np.abs((rotated / (deviation * STEP))[..., None] - LEVELS).argmin(-1)
    levels = LEVELS[nearest]
    scale = (rotated**2).sum(1, keepdims=True) / (rotated * levels).sum(1, keepdims=True)
    decoded = offset + weight * (centroids + signs * (scale * levels @ hadamard(HEAD_DIM)))
    error = 10 * np.log10(((decoded - keys) ** 2).sum() / (keys**2).sum())

    panels = [
        ("1  keys of one head", keys, None),
        ("2  scaled, centroid subtracted", residual, None),
        ("3  rotated: every channel alike", rotated, None),
        ("4  four levels: 2 bits a value", levels * scale, rotated),
        (f"5  decoded: error {error:.0f} dB", decoded, keys),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.9), dpi=100, sharey=True)
    for place, (title, values, scaled_like) in zip(axes, panels, strict=True):
        limit = np.quantile(np.abs(values if scaled_like is None else scaled_like), 0.995)
        place.imshow(values[:SHOWN_TOKENS], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        place.set_title(title, fontsize=11)
        place.set_xlabel("channel")
    axes[0].set_ylabel("token")
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn)
    # Noise compresses badly: 64 colours are enough and a third of the size.
    Image.open(drawn).convert("RGB").quantize(64).save(target, optimize=True)


def demo_keys() -> Array:
    """Keys `[S, D]` of one head after the key norm, before rotary embedding, of three chunks of a video."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qvg_cli", "generate", PROMPT, "--set", "video.frames=9"]
        subprocess.run([*command, "--out", folder, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).glob("*/*/latents.safetensors")
        (latents,) = load_file(path).values()
    model = WanTransformer3DModel.from_pretrained(WEIGHTS, torch_dtype=torch.float32)
    found: list[torch.Tensor] = []
    handle = model.blocks[LAYER].attn1.norm_k.register_forward_hook(lambda _, __, keys: found.append(keys))
    text = torch.zeros(1, 64, model.config.text_dim)
    with torch.no_grad():
        model(latents.float(), torch.zeros(1), text)
    handle.remove()
    (keys,) = found
    head = keys[0, :, HEAD * HEAD_DIM : (HEAD + 1) * HEAD_DIM]
    return np.asarray(head, dtype=np.float64)


def nearest_centroids(tokens: Array) -> Array:
    """For each token its centroid, by k-means from evenly spaced tokens."""
    starts = (2 * np.arange(NUM_CENTROIDS) + 1) * len(tokens) // (2 * NUM_CENTROIDS)
    centroids = tokens[starts]
    for _ in range(ROUNDS):
        ids = ((tokens[:, None] - centroids) ** 2).sum(-1).argmin(1)
        for number in range(NUM_CENTROIDS):
            if (ids == number).any():
                centroids[number] = tokens[ids == number].mean(0)
    return centroids[ids]


def hadamard(size: int) -> Array:
    """The Sylvester matrix over the square root of its size."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


if __name__ == "__main__":
    main()
