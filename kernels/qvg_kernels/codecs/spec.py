"""What a scheme of the cache is: settings, the bytes they cost, and the codec they build. No torch.

The configuration validates against specs and the planner counts with them before any tensor exists.
Invariant: `payload_bytes` of a spec equals the sum of the tensor sizes that its codec stores, to the byte.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

PayloadBytes = dict[str, int]
"""Bytes by kind: "codes", "scales", "ids", "tables", "bf16", and "dense" for any other unpacked dtype."""

PACKED_HEAD_DIMS = (64, 128, 256)


class Spec:
    """Settings of one scheme: a frozen dataclass whose first field is its name, `scheme`.

    Attributes:
        packs: Whether blocks become smaller than bf16; their heads have one of PACKED_HEAD_DIMS channels.
        ranges: Lowest and highest value of settings that are numbers; choices are the `Literal` of a field.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    packs: ClassVar[bool] = True
    ranges: ClassVar[dict[str, tuple[float, float]]] = {}
    scheme: str

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            if choices and (value := getattr(self, name)) not in choices:
                raise ValueError(
                    f"{name}={value} is not possible; choose one of {', '.join(map(str, choices))}"
                )
        for name, (low, high) in self.ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value} is out of range; choose {low} to {high}")

    @property
    def is_shaped(self) -> bool:
        """Whether blocks of a layer share a matrix a head, which the first of them decide."""
        return False

    @property
    def weighs_queries(self) -> bool:
        """Whether keys are packed by what the queries of all earlier chunks asked for."""
        return False

    def matrix_bytes(self, heads: int, head_dim: int) -> int:
        """Bytes of one version of the matrices that blocks share, which no block counts."""
        return 2 * heads * head_dim * head_dim if self.is_shaped else 0

    def payload_bytes(self, heads: int, tokens: int, head_dim: int, element_bytes: int = 2) -> PayloadBytes:
        """Bytes of one block of keys or of values, by kind.

        Args:
            heads: Batch times heads.
            element_bytes: Of a value as the model makes it.

        Raises:
            ValueError: The block is empty, or its head size has no packed layout.
        """
        if self.packs:
            check_packed_shape(self.scheme, tokens, head_dim)
        return self._payload(heads, tokens, head_dim, element_bytes)

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        raise NotImplementedError

    def bits_per_value(self, tokens: int, head_dim: int) -> float:
        """Stored bits for each value of a block of `tokens`, everything included."""
        return 8 * sum(self.payload_bytes(1, tokens, head_dim).values()) / (tokens * head_dim)


def check_packed_shape(scheme: str, tokens: int, head_dim: int) -> None:
    """Refuse a block that a packed scheme has no layout for.

    Raises:
        ValueError: The block is empty or its head size has no packed layout.
    """
    if head_dim not in PACKED_HEAD_DIMS:
        sizes = ", ".join(map(str, PACKED_HEAD_DIMS))
        raise ValueError(
            f"head_dim={head_dim} cannot be packed with scheme {scheme!r}, which takes {sizes}; "
            "use the cache preset 'none' or 'bf16' for this model"
        )
    if tokens < 1:
        raise ValueError(
            f"tokens={tokens} cannot be packed with scheme {scheme!r}; a block has at least 1 token"
        )


@dataclass(frozen=True)
class Scheme:
    """One way to keep keys and values; a folder of `qvg_kernels.codecs` lists its schemes as `SCHEMES`.

    Attributes:
        codec: Class of a spec's codec, `module:name`; it is imported, and torch with it, when it is needed.
    """

    spec: type[Spec]
    codec: str
