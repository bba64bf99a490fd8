"""The distilled adapter of the pocket LongCat: low-rank changes of the blocks' matrices, in training and as
the published kind of file.

Source: meituan-longcat/LongCat-Video, `longcat_video/modules/lora_utils.py`, for the names of the tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvg_cli.models.longcat.model import LongCatTransformer
from scripts.pocket.longcat import Weights

# The matrices that the published adapter changes, and how many it finds in each.
MODULES = {
    "attn.qkv": 3,
    "attn.proj": 1,
    "cross_attn.q_linear": 1,
    "cross_attn.kv_linear": 2,
    "ffn.w1": 1,
    "ffn.w2": 1,
    "ffn.w3": 1,
}
RANK = 16
FACTOR = 0.5
_DOT = "___lorahyphen___"


class Adapter(nn.Module):
    """Down and up matrices; the up ones start at zero, so that nothing is changed.

    Args:
        model: Whose blocks are adapted; it is not changed.
    """

    def __init__(self, model: LongCatTransformer, rank: int = RANK) -> None:
        super().__init__()
        self.rank = rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for index in range(model.config.depth):
            for module, parts in MODULES.items():
                weight = model.get_parameter(f"blocks.{index}.{module}.weight")
                rows, columns = weight.shape
                name = _key(index, module)
                self.down[name] = nn.Parameter(torch.randn(parts * rank, columns) / columns**0.5)
                self.up[name] = nn.Parameter(torch.zeros(parts, rows // parts, rank))

    def merged(self, weights: list[Weights]) -> list[Weights]:
        """The blocks' weights with the changes added; gradients reach the adapter alone."""
        merged = []
        for index, block in enumerate(weights):
            changed = {name: tensor.detach() for name, tensor in block.items()}
            for module in MODULES:
                name = f"{module}.weight"
                changed[name] = changed[name] + self.delta(index, module)
            merged.append(changed)
        return merged

    def delta(self, index: int, module: str) -> Tensor:
        """What is added to the matrix of a block, `[out, in]`."""
        name = _key(index, module)
        up, down = self.up[name], self.down[name]
        return FACTOR * torch.bmm(up, down.unflatten(0, (len(up), -1))).flatten(0, 1)

    def load(self, path: Path) -> None:
        """Take the matrices of a file that `save` wrote for a model of this form."""
        saved = load_file(path)
        with torch.no_grad():
            for name, tensor in self._named().items():
                tensor.copy_(saved[name])

    def _named(self) -> dict[str, Tensor]:
        """Down matrices, and parts of the up ones, by their names in the file."""
        tensors = {}
        for name, down in self.down.items():
            stem = f"lora{_DOT}{name.replace('/', _DOT)}"
            ups = self.up[name].detach()
            tensors[f"{stem}.lora_down.weight"] = down.detach()
            for part, up in enumerate(ups):
                leaf = f"lora_up.blocks.{part}.weight" if len(ups) > 1 else "lora_up.weight"
                tensors[f"{stem}.{leaf}"] = up
        return tensors

    def save(self, path: Path) -> None:
        """Write the published kind of file, bf16."""
        tensors = {name: tensor.clone() for name, tensor in self._named().items()}
        stems = {name.partition(".")[0] for name in tensors}
        tensors.update({f"{stem}.alpha_scale": torch.tensor(FACTOR) for stem in stems})
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.to("cpu", torch.bfloat16) for name, tensor in tensors.items()}, path)


def _key(index: int, module: str) -> str:
    """Name of a module's matrices here; parameter names hold no dots."""
    return f"blocks/{index}/{module}".replace(".", "/")
