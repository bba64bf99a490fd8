"""Checkpoints as they are published: original names, one pickle."""

import io

import torch

from qvg_cli.models.wan.checkpoint import _IN_BLOCK, _TOP_LEVEL


def published_name(name):
    """The published name of a tensor of diffusers'."""
    prefix, table = "", {target: source for source, target in _TOP_LEVEL.items()}
    if name.startswith("blocks."):
        prefix = name[: name.index(".", len("blocks.")) + 1]
        table = {target: source for source, target in _IN_BLOCK.items()}
        name = name.removeprefix(prefix)
    if name in table:
        return prefix + table[name]
    stem, _, leaf = name.rpartition(".")
    return f"{prefix}{table[stem]}.{leaf}"


def saved(content):
    """Bytes of a `.pt` file."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
