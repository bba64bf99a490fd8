"""Prompts to text states: the UMT5 encoder, zero rows after the prompt, never a mask.

The model attends to the zero rows too, as it was trained; dropping them changes the video.
"""

from __future__ import annotations

import html
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import ftfy
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, UMT5EncoderModel

from qvg_cli.errors import MissingModelError, is_out_of_memory


def clean_prompt(prompt: str) -> str:
    """Repair the text's encoding, undo HTML escapes and collapse white space, as the model's training did."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


class PromptWarning(UserWarning):
    """Something about reading a prompt; its text is shown to the user."""


class PromptCutWarning(PromptWarning):
    """A prompt is longer than the model reads."""


@dataclass(frozen=True, eq=False)
class PromptStates:
    """What an encoder makes of a prompt.

    Attributes:
        states: `[n, C]` on the CPU, a row a token that is read.
        num_tokens: Of the whole prompt; more than `n` if its end is left out.
    """

    states: Tensor
    num_tokens: int

    def padded(self, num_rows: int) -> Tensor:
        """`[1, num_rows, C]`, zero after the prompt.

        Warns:
            PromptCutWarning: The prompt has more tokens; the last ones are left out.
        """
        if self.num_tokens > num_rows:
            warnings.warn(
                f"the prompt has {self.num_tokens} tokens and the model reads {num_rows}: "
                "its end is left out",
                PromptCutWarning,
                stacklevel=3,
            )
        return functional.pad(self.states, (0, 0, 0, num_rows - len(self.states)))[None]


class TextEncoder:
    """Tokenizer and encoder of one weights folder.

    Args:
        weights: Folder with `tokenizer` and `text_encoder`.
        num_tokens: Rows of the states; longer prompts are cut.

    Raises:
        MissingModelError: A part is missing or broken.
    """

    def __init__(self, weights: Path, num_tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(weights / "tokenizer", local_files_only=True)
            model = UMT5EncoderModel.from_pretrained(
                weights / "text_encoder", dtype=dtype, local_files_only=True, use_safetensors=True
            )
        # A broken tokenizer.json or config.json ends in almost any error.
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            if is_out_of_memory(error):
                raise
            raise MissingModelError(f"cannot load the text encoder from {weights}: {error}") from error
        self._model = model.to(device).eval().requires_grad_(False)
        self._num_tokens = num_tokens

    @torch.no_grad()
    def read(self, prompt: str) -> PromptStates:
        """The states of a prompt; the end of a longer one is left out."""
        text = clean_prompt(prompt)
        num_tokens = len(self._tokenizer(text).input_ids)
        tokens = self._tokenizer(
            text,
            padding="max_length",
            max_length=self._num_tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self._model.device)
        states = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
        return PromptStates(states[tokens.attention_mask[0].bool()].cpu(), num_tokens)
