"""Prompts to text states: the UMT5 encoder, zero rows after the prompt, never a mask.

The model attends to the zero rows too, as it was trained; dropping them changes the video.
"""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from qvg_cli.errors import MissingModelError


def clean_prompt(prompt: str) -> str:
    """Repair the text's encoding, undo HTML escapes and collapse white space, as the model's training did."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


class PromptCutWarning(UserWarning):
    """A prompt is longer than the model reads; its text is shown to the user."""


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
        except (OSError, ValueError) as error:
            raise MissingModelError(f"cannot load the text encoder from {weights}: {error}") from error
        self._model = model.to(device).eval().requires_grad_(False)
        self._num_tokens = num_tokens

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Text states `[1, num_tokens, C]`.

        Warns:
            PromptCutWarning: The prompt has more tokens; the last ones are left out.
        """
        text = clean_prompt(prompt)
        length = len(self._tokenizer(text).input_ids)
        if length > self._num_tokens:
            warnings.warn(
                f"the prompt has {length} tokens and the model reads {self._num_tokens}: its end is left out",
                PromptCutWarning,
                stacklevel=2,
            )
        tokens = self._tokenizer(
            text,
            padding="max_length",
            max_length=self._num_tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self._model.device)
        states = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        kept: Tensor = states * tokens.attention_mask.unsqueeze(-1).to(states)
        return kept
