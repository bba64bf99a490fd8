"""Text states kept on disk: a prompt that was read once needs no text encoder again.

The encoder is the largest part of a model. Its states of a prompt are a function of the prompt, the encoder's
files and the dtype, and so is the name of the file that keeps them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qvg_cli.config.resources import is_shipped, qvg_home
from qvg_cli.models.text import PromptStates, PromptWarning, TextEncoder, clean_prompt

_FORMAT = 1
_PARTS = ("tokenizer", "text_encoder")


class TextNotKeptWarning(PromptWarning):
    """Text states could not be written; the encoder will be loaded again next time."""


class PromptEncoder:
    """Text states of prompts: known ones from memory or disk, others from an encoder that is loaded for them
    and dropped again.

    Args:
        weights: Folder with `tokenizer` and `text_encoder`. Nothing is kept on disk for a small encoder that
            ships with the package.
        num_tokens: Rows of the states; longer prompts are cut.
    """

    def __init__(self, weights: Path, num_tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self._weights = weights
        self._num_tokens = num_tokens
        self._device = device
        self._dtype = dtype
        self._known: dict[str, PromptStates] = {}
        self._revision = None if is_shipped(weights) else encoder_revision(weights)

    def encode(self, prompt: str) -> Tensor:
        """Text states `[1, num_tokens, C]` of a prompt, on the device.

        Raises:
            MissingModelError: As `read`.

        Warns:
            PromptCutWarning: The prompt has more tokens; the last ones are left out.
            TextNotKeptWarning: As `read`.
        """
        self.read([prompt])
        return self._known[clean_prompt(prompt)].padded(self._num_tokens).to(self._device)

    def read(self, prompts: Sequence[str]) -> None:
        """Make the states of prompts known; the encoder is loaded once for those that are not.

        Raises:
            MissingModelError: The encoder is needed, and a part of it is missing or broken.

        Warns:
            TextNotKeptWarning: The states could not be written to the disk.
        """
        texts = [clean_prompt(prompt) for prompt in prompts]
        for text in texts:
            if text not in self._known and (found := self._read(text)) is not None:
                self._known[text] = found
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            encoder = TextEncoder(self._weights, self._num_tokens, self._device, self._dtype)
            for text in new:
                self._known[text] = encoder.read(text)
                self._keep(text)

    def _path(self, text: str) -> Path:
        about = [_FORMAT, text, self._revision, self._num_tokens, str(self._dtype)]
        name = hashlib.blake2b(json.dumps(about).encode(), digest_size=20).hexdigest()
        return qvg_home() / "text" / f"{name}.safetensors"

    def _read(self, text: str) -> PromptStates | None:
        """States from the disk; none if they are not there, or not as they were written."""
        if self._revision is None:
            return None
        try:
            with safe_open(self._path(text), framework="pt") as file:
                states, about = file.get_tensor("states"), file.metadata() or {}
            if _checksum(states) != about.get("checksum") or states.dtype != self._dtype:
                return None
            return PromptStates(states, int(about["num_tokens"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def _keep(self, text: str) -> None:
        if self._revision is None:
            return
        path, known = self._path(text), self._known[text]
        states = known.states.contiguous()
        data = save({"states": states}, {"num_tokens": str(known.num_tokens), "checksum": _checksum(states)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Under a name of its own: another process may keep the same prompt.
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
                try:
                    part.write(data)
                    part.close()
                    os.replace(part.name, path)
                except BaseException:
                    os.unlink(part.name)
                    raise
        except OSError as error:
            warnings.warn(
                f"cannot keep the text of a prompt in {path.parent}: {error.strerror or error}; "
                "its encoder is loaded again next time",
                TextNotKeptWarning,
                stacklevel=3,
            )


def encoder_revision(weights: Path) -> str:
    """What tells the encoder of one weights folder from any other, without reading it whole.

    A file of the hub's cache is named by its content; of another, its size and time of change stand for it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _PARTS:
        for path in sorted((weights / part).rglob("*")):
            if path.is_file():
                target, facts = path.resolve(), path.stat()
                mark = target.name if target.parent.name == "blobs" else facts.st_mtime_ns
                digest.update(json.dumps([str(path.relative_to(weights)), facts.st_size, mark]).encode())
    return digest.hexdigest()


def _checksum(states: Tensor) -> str:
    return hashlib.blake2b(
        states.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16
    ).hexdigest()
