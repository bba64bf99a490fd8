"""Settings of the peers that round to nearest between the lowest and highest value of a group."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


class _MinMaxSpec(Spec):
    """What the three share: codes, and for each group a bf16 lowest value and a bf16 step."""

    bits: int
    group_size: int

    def groups(self, tokens: int, head_dim: int) -> int:
        """Groups of one head: of each token's channels."""
        return tokens * -(-head_dim // self.group_size)

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        scales = heads * self.groups(tokens, head_dim) * 4
        return {"codes": heads * tokens * head_dim * self.bits // 8, "scales": scales}


@dataclass(frozen=True)
class RtnSpec(_MinMaxSpec):
    """Round to nearest between the lowest and highest value of each group of a token's channels.

    Attributes:
        bits: Of a code.
        group_size: Consecutive channels that share a bf16 step and a bf16 lowest value.

    Source: the baseline "RTN" of the QVG paper (arXiv 2602.02958), here on all four levels.
    """

    scheme: Literal["rtn"] = "rtn"
    bits: Literal[2, 4] = 2
    group_size: Literal[32, 64, 128] = 128


@dataclass(frozen=True)
class KiviSpec(_MinMaxSpec):
    """KIVI: keys in groups along the tokens of each channel, values in groups along each token's channels.

    Attributes:
        bits: Of a code.
        group_size: Neighbours that share a bf16 step and a bf16 lowest value.
        along: What a group lies along: "tokens" for keys, "channels" for values.

    Source: KIVI (arXiv 2402.02750), which uses groups of 32 and keeps its newest 128 tokens unpacked; the
        group here is chosen for the bits of the other schemes, the newest tokens are the cache's
        `keep_recent_chunks`.
    """

    scheme: Literal["kivi"] = "kivi"
    bits: Literal[2, 4] = 2
    group_size: Literal[32, 64, 128] = 128
    along: Literal["tokens", "channels"] = "tokens"

    def groups(self, tokens: int, head_dim: int) -> int:
        """Groups of one head; the last along tokens may be short."""
        if self.along == "tokens":
            return -(-tokens // self.group_size) * head_dim
        return super().groups(tokens, head_dim)


@dataclass(frozen=True)
class QuarotSpec(_MinMaxSpec):
    """QuaRot: a Hadamard rotation over the channels, then round to nearest in slightly clipped groups.

    Attributes:
        bits: Of a code.
        group_size: Consecutive rotated channels that share a bf16 step and a bf16 lowest value.
        clip_ratio: Part of a group's lowest and highest value that the levels block.

    Source: QuaRot (arXiv 2404.00456), section on the KV cache: asymmetric, group 128, clipping ratio 0.95.
        It packs keys after their positional rotation; this cache packs them before.
    """

    ranges: ClassVar = {"clip_ratio": (0.5, 1.0)}
    scheme: Literal["quarot"] = "quarot"
    bits: Literal[2, 4] = 2
    group_size: Literal[32, 64, 128] = 128
    clip_ratio: float = 0.95
