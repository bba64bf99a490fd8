"""Prompt embeddings: the UMT5 encoder, zero rows after the prompt, and what is kept of it on the disk.

The model attends to the zero rows too, as it was trained; dropping them changes the video. The encoder is the
largest part of a model: a prompt that was encoded once needs it no more, since its embeddings are a function
of the prompt, the encoder's files and the dtype, and so is the name of the file that keeps them.
"""

import hashlib
import html
import json
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from qvg_cli.config.resources import qvg_home
from qvg_cli.errors import MissingModelError, is_out_of_memory

_FORMAT = 1
# A broken tokenizer.json or config.json ends in almost any error.
_LOAD_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)


class PromptWarning(UserWarning):
    """Something about a prompt; its text is shown to the user."""


def clean_prompt(prompt: str) -> str:
    """Repair the text's encoding, undo HTML escapes and collapse white space, as the model's training did."""
    if "&" in prompt or not (prompt.isascii() and prompt.isprintable()):
        # It takes a while to import, and finds nothing to repair in plain text.
        import ftfy

        prompt = ftfy.fix_text(prompt)
    text = html.unescape(html.unescape(prompt))
    return re.sub(r"\s+", " ", text).strip()


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """What an encoder makes of a prompt.

    Attributes:
        rows: `[n, C]` on the CPU, one a token.
        num_tokens: Of the whole prompt; more than `n` if its end is left out.
    """

    rows: Tensor
    num_tokens: int

    def padded(self, num_rows: int) -> Tensor:
        """`[1, num_rows, C]`, zero after the prompt; a `PromptWarning` if its last tokens are left out."""
        if self.num_tokens > num_rows:
            warnings.warn(
                f"the prompt has {self.num_tokens} tokens, but the model reads only {num_rows}: "
                "the rest is ignored",
                PromptWarning,
                stacklevel=3,
            )
        return functional.pad(self.rows, (0, 0, 0, num_rows - len(self.rows)))[None]


class TextEncoder:
    """Tokenizer and encoder of one weights folder; `MissingModelError` if a part is missing or broken."""

    def __init__(self, weights: Path, num_tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        # Takes seconds, which a prompt that was encoded before does not need.
        from transformers import AutoTokenizer, UMT5EncoderModel, logging

        # Its loading bars and advice would stand among our own lines.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(weights / "tokenizer", local_files_only=True)
            model = UMT5EncoderModel.from_pretrained(
                weights / "text_encoder", dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except _LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise MissingModelError(f"cannot load the text encoder from {weights}: {error}") from error
        self._model = model.to(device).eval().requires_grad_(False)
        self._num_tokens = num_tokens

    @torch.no_grad()
    def encode(self, prompt: str) -> PromptEmbeds:
        """The embeddings of a prompt; the end of a longer one is left out."""
        text = clean_prompt(prompt)
        num_tokens = len(self._tokenizer(text).input_ids)
        tokens = self._tokenizer(
            text, padding="max_length", max_length=self._num_tokens, truncation=True, return_tensors="pt"
        ).to(self._model.device)
        states = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        return PromptEmbeds(states[tokens.attention_mask[0].bool()].cpu(), num_tokens)


class PromptEncoder:
    """Embeddings of prompts: known ones from memory or disk, others from an encoder that is loaded for them
    and dropped again. Longer prompts than `num_tokens` are cut.
    """

    def __init__(self, weights: Path, num_tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self._weights = weights
        self._num_tokens = num_tokens
        self._device = device
        self._dtype = dtype
        self._known: dict[str, PromptEmbeds] = {}
        self._revision = encoder_revision(weights)

    def encode(self, prompt: str) -> Tensor:
        """Embeddings `[1, num_tokens, C]` of a prompt, on the device; warns as `padded` and `prepare`."""
        self.prepare([prompt])
        return self._known[clean_prompt(prompt)].padded(self._num_tokens).to(self._device)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Make embeddings known, loading the encoder once; a `PromptWarning` if they cannot be written."""
        texts = [clean_prompt(prompt) for prompt in prompts]
        for text in texts:
            if text not in self._known and (found := self._read(text)) is not None:
                self._known[text] = found
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            encoder = TextEncoder(self._weights, self._num_tokens, self._device, self._dtype)
            for text in new:
                self._known[text] = encoder.encode(text)
                self._keep(text)

    def _path(self, text: str) -> Path:
        about = [_FORMAT, text, self._revision, self._num_tokens, str(self._dtype)]
        name = hashlib.blake2b(json.dumps(about).encode(), digest_size=20).hexdigest()
        return qvg_home() / "text" / f"{name}.safetensors"

    def _read(self, text: str) -> PromptEmbeds | None:
        """Embeddings from the disk; `None` if they are not there, or not as they were written."""
        try:
            with safe_open(self._path(text), framework="pt") as file:
                rows, about = file.get_tensor("states"), file.metadata() or {}
            if _checksum(rows) != about.get("checksum") or rows.dtype != self._dtype:
                return None
            return PromptEmbeds(rows, int(about["num_tokens"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def _keep(self, text: str) -> None:
        path, known = self._path(text), self._known[text]
        rows = known.rows.contiguous()
        data = save({"states": rows}, {"num_tokens": str(known.num_tokens), "checksum": _checksum(rows)})
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
                f"cannot save prompt embeddings in {path.parent}: {error.strerror or error}; "
                "the encoder is loaded again next time",
                PromptWarning,
                stacklevel=3,
            )


def encoder_revision(weights: Path) -> str:
    """What tells the encoder of one weights folder from any other, without reading it whole.

    A file of the hub's cache is named by its content; of another, its size and time of change stand for it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in ("tokenizer", "text_encoder"):
        for path in sorted((weights / part).rglob("*")):
            if path.is_file():
                target, facts = path.resolve(), path.stat()
                mark = target.name if target.parent.name == "blobs" else facts.st_mtime_ns
                digest.update(json.dumps([str(path.relative_to(weights)), facts.st_size, mark]).encode())
    return digest.hexdigest()


def _checksum(rows: Tensor) -> str:
    values = rows.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(values, digest_size=16).hexdigest()
