"""The pocket text encoder: a tiny UMT5 that is trained together with the transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

TEXT_DIM = 128


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Two layers of 128 channels, no dropout."""
    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_DIM,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=0,
        dropout_rate=0.0,
        tie_word_embeddings=False,
        initializer_factor=0.5,
    )
    return UMT5EncoderModel(config)


def encode_text(encoder: nn.Module, ids: Tensor) -> Tensor:
    """States `[B, L, 128]` of padded token ids `[B, L]`; rows of padding are zero, as in the Wan pipeline."""
    ids = ids.long()
    mask = ids.ne(0)
    states = encoder(input_ids=ids, attention_mask=mask.to(torch.long)).last_hidden_state
    return states * mask[..., None]
