"""What a codec is set to, and what it will cost, before any tensor exists.

Specs are plain data without torch: the configuration validates against them, the planner counts bytes with
them, and `qvg_kernels.codec.build_codec` turns one into a codec. Invariant: `payload_bytes` of a spec equals
the sum of the tensor sizes that its codec stores, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

PayloadBytes = dict[str, int]
"""Bytes by kind: "codes", "scales", "ids", "tables", "bf16", and "dense" for any other unpacked dtype."""

PACKED_HEAD_DIMS = (64, 128, 256)

GridName = Literal["trit", "int2", "e8", "int3", "int4"]
"""Levels of a fitted residual: three, four, eight values together at two bits each, eight, sixteen."""

GRID_BITS: dict[GridName, int] = {"int2": 2, "e8": 2, "int3": 3, "int4": 4}
"""Bits of one code of the grids that pack each token by itself; "trit" packs five tokens into a byte."""


def check_packed_shape(scheme: str, tokens: int, head_dim: int) -> None:
    """Refuse a span that a packed scheme has no layout for.

    Raises:
        ValueError: The span is empty or its head size has no packed layout.
    """
    if head_dim not in PACKED_HEAD_DIMS:
        sizes = ", ".join(map(str, PACKED_HEAD_DIMS))
        raise ValueError(
            f"head_dim={head_dim} cannot be packed with scheme {scheme!r}, which takes {sizes}; "
            "use the cache preset 'none' or 'bf16' for this model"
        )
    if tokens < 1:
        raise ValueError(
            f"tokens={tokens} cannot be packed with scheme {scheme!r}; a span has at least 1 token"
        )


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value} is not possible; choose one of {', '.join(map(str, choices))}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range; choose {low} to {high}")


class _Spec:
    """What every spec answers.

    Attributes:
        head_dims: Head sizes the scheme takes; none means any.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    head_dims: ClassVar[tuple[int, ...] | None] = PACKED_HEAD_DIMS

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span of keys or of values, by kind; `heads` counts batch times heads."""
        raise NotImplementedError

    def bits_per_value(self, tokens: int, head_dim: int) -> float:
        """Stored bits for each value of a span of `tokens`, everything included."""
        return 8 * sum(self.payload_bytes(1, tokens, head_dim).values()) / (tokens * head_dim)


@dataclass(frozen=True)
class NoneSpec(_Spec):
    """Keys and values as the model made them, in its own dtype, any head size."""

    head_dims: ClassVar[tuple[int, ...] | None] = None
    scheme: Literal["none"] = "none"

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span of keys or of values, by kind; `heads` counts batch times heads."""
        kind = "bf16" if element_bytes == 2 else "dense"
        return {kind: heads * tokens * head_dim * element_bytes}


@dataclass(frozen=True)
class Bf16Spec(_Spec):
    """Keys and values rounded to bf16, any head size."""

    head_dims: ClassVar[tuple[int, ...] | None] = None
    scheme: Literal["bf16"] = "bf16"

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span, two a value whatever the model's dtype."""
        return {"bf16": heads * tokens * head_dim * 2}


@dataclass(frozen=True)
class QvgSpec(_Spec):
    """The QVG paper: k-means in stages, then a symmetric grid on the last residual.

    Attributes:
        bits: Of a residual code; 2 gives the levels -1 0 1, 4 gives -7 to 7.
        block_size: Consecutive channels of a token that share one e4m3 scale.
        num_centroids: Of one stage.
        stages: K-means runs, each on the residual of the one before.
        iterations: Assign-and-update rounds of one k-means.

    Source: QVG paper (arXiv 2602.02958); QVG is one stage and block 64, QVG-Pro four stages and block 16.
    """

    scheme: Literal["qvg"] = "qvg"
    bits: Literal[2, 4] = 2
    block_size: Literal[16, 32, 64, 128] = 64
    num_centroids: int = 256
    stages: int = 1
    iterations: int = 2

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (2, 4))
        _check_choice("block_size", self.block_size, (16, 32, 64, 128))
        _check_range("num_centroids", self.num_centroids, 1, 256)
        _check_range("stages", self.stages, 1, 4)
        _check_range("iterations", self.iterations, 1, 100)

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span: codes, one scale a block, one id a token and stage, bf16 centroids."""
        check_packed_shape(self.scheme, tokens, head_dim)
        centroids = min(self.num_centroids, tokens)
        return {
            "codes": heads * tokens * head_dim * self.bits // 8,
            "scales": heads * tokens * -(-head_dim // self.block_size),
            "ids": self.stages * heads * tokens,
            "tables": self.stages * heads * centroids * head_dim * 2,
        }


def centroids_for(tokens: int) -> int:
    """Table size that suits a span: what a larger table costs in bits against what it saves in error.

    From 4,680 tokens a multiple of 8 that keeps a two-bit grid of 128 channels within 2.25 bits; below, one
    for each 42 tokens, at most 64, which a span of 336 tokens pays with 2.46 bits.
    """
    if tokens >= 4680:
        return min(256, 8 * ((tokens - 392) // 512))
    return min(tokens, 64, max(8, 8 * (tokens // 336)))


@dataclass(frozen=True)
class FittedSpec(_Spec):
    """K-means, a rotation, and a grid whose scale is fitted to each token.

    Attributes:
        grid: Levels of the residual.
        num_centroids: Of the span's table; 0 for none, empty for a number that suits the span's length.
        iterations: Assign-and-update rounds of the k-means.
        unbiased: Where the scale lies between least error (0) and no shrinking of what is stored (1). Keys
            do best at about 0.8: noise on a key makes its token heard more, shrinking makes it heard less.

    Source: the unbiased scale is that of DRIVE and EDEN (arXiv 2105.08339, 2108.08842).
    """

    scheme: Literal["fitted"] = "fitted"
    grid: GridName = "e8"
    num_centroids: int | None = None
    iterations: int = 4
    unbiased: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("grid", self.grid, ("trit", "int2", "e8", "int3", "int4"))
        if self.num_centroids is not None:
            _check_range("num_centroids", self.num_centroids, 0, 256)
        _check_range("iterations", self.iterations, 1, 100)
        _check_range("unbiased", self.unbiased, 0, 1)

    def centroids(self, tokens: int) -> int:
        """Centroids that a span of `tokens` gets."""
        if self.num_centroids is None:
            return centroids_for(tokens)
        return min(self.num_centroids, tokens)

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span: codes, a scale and an id a token, and what all tokens of a head share."""
        check_packed_shape(self.scheme, tokens, head_dim)
        centroids = self.centroids(tokens)
        if self.grid == "trit":
            codes = -(-tokens // 5) * head_dim
        else:
            codes = tokens * head_dim * GRID_BITS[self.grid] // 8
        # A channel has a weight, a float32 offset and, with a table, its step; a head three units and a
        # phase.
        channels = head_dim * (1 + 4 + (1 if centroids else 0))
        shared = centroids * head_dim + channels + 3 * 4 + 1
        ids = {"ids": heads * tokens} if centroids else {}
        return {"codes": heads * codes, "scales": heads * tokens, **ids, "tables": heads * shared}


@dataclass(frozen=True)
class AsymSpec(_Spec):
    """K-means, then a grid from the lowest to the highest residual of each block.

    Attributes:
        bits: Of a residual code.
        block_size: Consecutive channels of a token that share an e4m3 step and an e4m3 lowest value.
        num_centroids: Of the table.
        iterations: Assign-and-update rounds of the k-means.

    Source: the setting that a third party measured on real models (github.com/JamesSand/Quant-VideoGen at
        e8883df, "qvg-nom").
    """

    scheme: Literal["asym"] = "asym"
    bits: Literal[2, 4] = 2
    block_size: Literal[16, 32, 64, 128] = 128
    num_centroids: int = 256
    iterations: int = 2

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (2, 4))
        _check_choice("block_size", self.block_size, (16, 32, 64, 128))
        _check_range("num_centroids", self.num_centroids, 1, 256)
        _check_range("iterations", self.iterations, 1, 100)

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span: codes, two scales a block, an id a token; a head's centroids and two units."""
        check_packed_shape(self.scheme, tokens, head_dim)
        return {
            "codes": heads * tokens * head_dim * self.bits // 8,
            "scales": 2 * heads * tokens * -(-head_dim // self.block_size),
            "ids": heads * tokens,
            "tables": heads * (min(self.num_centroids, tokens) * head_dim * 2 + 2 * 4),
        }


def _min_max_bytes(heads: int, tokens: int, head_dim: int, bits: int, groups: int) -> PayloadBytes:
    """Codes and, for each of a head's groups, a bf16 lowest value and a bf16 step."""
    return {"codes": heads * tokens * head_dim * bits // 8, "scales": heads * groups * 4}


@dataclass(frozen=True)
class RtnSpec(_Spec):
    """Round to nearest between the lowest and highest value of each group of a token's channels.

    Attributes:
        bits: Of a code.
        group_size: Consecutive channels that share a bf16 step and a bf16 lowest value.

    Source: the baseline "RTN" of the QVG paper (arXiv 2602.02958), here on all four levels.
    """

    scheme: Literal["rtn"] = "rtn"
    bits: Literal[2, 4] = 2
    group_size: Literal[32, 64, 128] = 128

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (2, 4))
        _check_choice("group_size", self.group_size, (32, 64, 128))

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span, by kind; `heads` counts batch times heads."""
        check_packed_shape(self.scheme, tokens, head_dim)
        return _min_max_bytes(heads, tokens, head_dim, self.bits, tokens * -(-head_dim // self.group_size))


@dataclass(frozen=True)
class KiviSpec(_Spec):
    """KIVI: keys in groups along the tokens of each channel, values in groups along each token's channels.

    Attributes:
        bits: Of a code.
        group_size: Neighbours that share a bf16 step and a bf16 lowest value.
        along: What a group runs along: "tokens" for keys, "channels" for values.

    Source: KIVI (arXiv 2402.02750), which uses groups of 32 and keeps its newest 128 tokens unpacked; the
        group here is chosen for the bits of the other schemes, the newest tokens are the cache's
        `keep_recent_chunks`.
    """

    scheme: Literal["kivi"] = "kivi"
    bits: Literal[2, 4] = 2
    group_size: Literal[32, 64, 128] = 128
    along: Literal["tokens", "channels"] = "tokens"

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (2, 4))
        _check_choice("group_size", self.group_size, (32, 64, 128))
        _check_choice("along", self.along, ("tokens", "channels"))

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span, by kind; `heads` counts batch times heads."""
        check_packed_shape(self.scheme, tokens, head_dim)
        if self.along == "tokens":
            groups = -(-tokens // self.group_size) * head_dim
        else:
            groups = tokens * -(-head_dim // self.group_size)
        return _min_max_bytes(heads, tokens, head_dim, self.bits, groups)


@dataclass(frozen=True)
class QuarotSpec(_Spec):
    """QuaRot: a Hadamard rotation over the channels, then round to nearest in slightly clipped groups.

    Attributes:
        bits: Of a code.
        group_size: Consecutive rotated channels that share a bf16 step and a bf16 lowest value.
        clip_ratio: Part of a group's lowest and highest value that the levels span.

    Source: QuaRot (arXiv 2404.00456), section on the KV cache: asymmetric, group 128, clipping ratio 0.95.
        It packs keys after their positional rotation; this cache packs them before.
    """

    scheme: Literal["quarot"] = "quarot"
    bits: Literal[2, 4] = 2
    group_size: Literal[32, 64, 128] = 128
    clip_ratio: float = 0.95

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (2, 4))
        _check_choice("group_size", self.group_size, (32, 64, 128))
        _check_range("clip_ratio", self.clip_ratio, 0.5, 1.0)

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span, by kind; `heads` counts batch times heads."""
        check_packed_shape(self.scheme, tokens, head_dim)
        return _min_max_bytes(heads, tokens, head_dim, self.bits, tokens * -(-head_dim // self.group_size))


@dataclass(frozen=True)
class TurboQuantSpec(_Spec):
    """TurboQuant: each token's norm, and its direction rotated at random onto Lloyd-Max levels.

    Attributes:
        bits: Of a code.

    Source: TurboQuant (arXiv 2504.19874), the variant for least error (Algorithm 1), norms in bf16.
    """

    scheme: Literal["turboquant"] = "turboquant"
    bits: Literal[2, 4] = 2

    def __post_init__(self) -> None:
        _check_choice("bits", self.bits, (2, 4))

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one span: codes and a norm a token."""
        check_packed_shape(self.scheme, tokens, head_dim)
        return {"codes": heads * tokens * head_dim * self.bits // 8, "scales": heads * tokens * 2}


CodecSpec = (
    NoneSpec | Bf16Spec | QvgSpec | FittedSpec | AsymSpec | RtnSpec | KiviSpec | QuarotSpec | TurboQuantSpec
)
