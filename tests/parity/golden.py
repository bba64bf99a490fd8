"""Golden data: where it lies, how it is read, and what stands where it has nothing to say."""

import json
import os
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from qvg_cli.models.decoder import Pixels


def golden_folder(name: str) -> Path:
    """The folder of one family, below `QVG_GOLDEN_DIR` or the repository's own `tests/golden`."""
    root = os.environ.get("QVG_GOLDEN_DIR")
    return (Path(root) if root else Path(__file__).parents[1] / "golden") / name


@cache
def load_golden(folder: Path, file_name: str):
    """A safetensors file as a dictionary of tensors, or a JSON file."""
    path = folder / file_name
    return json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)


class KeepLatents:
    """Stands for the decoder: these numbers end at the latents."""

    def recall(self, latents: Tensor) -> Tensor:
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_each(self, latents: Tensor):
        yield Pixels(latents)
