"""quant-videogen 0.1.0 beside us: its INT2, one stage, blocks of 64, two rounds of k-means.

It needs `loguru` and `termcolor`, and tunes its kernels in the first call for about 31 s.
"""

from typing import Any

import torch
from torch import Tensor

QUANT_TYPE = "triton-nstages-kmeans-int2"


def peer_config() -> Any:
    """The settings above."""
    from quant_videogen.sim.quant.quantize_config import QuantizeConfig

    return QuantizeConfig(quant_type=QUANT_TYPE, kmeans_max_iters=2, quant_block_size=64, num_prq_stages=1)


def encode_by_peer(key: Tensor, value: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pack `[B, H, S, D]` keys and values, which must be contiguous, with what decoding needs to know."""
    from quant_videogen.compress import compress_kv_cache, get_quantize_fn

    config = peer_config()
    packed = compress_kv_cache(key, value, QUANT_TYPE, config, get_quantize_fn(QUANT_TYPE, config))
    for side in packed:
        side["info"] = {"quant_config": config, "output_dtype": torch.bfloat16}
    return packed


def decode_by_peer(packed: tuple[dict[str, Any], dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, H, S, D]` bf16, not rotated."""
    from quant_videogen.uncompress import uncompress_kv_cache

    pair: tuple[Tensor, Tensor] = uncompress_kv_cache(*packed)
    return pair


def caches_of_peer(
    packed: tuple[dict[str, Any], dict[str, Any]], shape: torch.Size, frame_tokens: int, spans: int
) -> list[Any]:
    """Its caches of keys and of values, `spans` like `packed` in each; they are read as `[B, S, H, D]`."""
    from quant_videogen.kv_cache import ChunkedKVCache

    batch, heads, tokens, head_dim = shape
    caches = []
    for side in packed:
        cache = ChunkedKVCache(
            batch, frame_tokens, heads, head_dim, spans * tokens // frame_tokens,
            torch.bfloat16, torch.device("cuda"), "BSHD",
        )  # fmt: skip
        for span in range(spans):
            cache.store_quantized(span * tokens, (span + 1) * tokens, side)
        caches.append(cache)
    return caches
