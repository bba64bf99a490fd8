"""How each scheme's spans are told to its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qvg_kernels.codecs import decoding as decode
from qvg_kernels.codecs import units
from qvg_kernels.spec import GRID_BITS, AsymSpec, Bf16Spec, CodecSpec, FittedSpec, NoneSpec, QvgSpec


@dataclass(frozen=True)
class Layout:
    """How a scheme's spans are told to its kernels.

    Attributes:
        names: Stored tensors in the order of the table of addresses.
        table: The tensor whose third dimension from the end, if any, counts centroids.
        is_packed: Whether values were rounded more coarsely than e4m3 rounds them.
    """

    kernel: Any
    unit_kernel: Any
    names: tuple[str, ...]
    table: str | None
    constants: dict[str, Any]
    unit_constants: dict[str, Any]
    is_packed: bool

    @property
    def columns(self) -> int:
        """Of the table of entries."""
        return 2 + len(self.names)


def layout_of(spec: CodecSpec, head_dim: int) -> Layout | None:
    """The layout of a scheme that has kernels."""
    if isinstance(spec, FittedSpec):
        has_table = spec.num_centroids != 0
        return Layout(
            decode.fitted_decode_kernel,
            units.fitted_unit_kernel,
            ("codes", "scales", "weights", "offset", "units", "phase")
            + (("ids", "table", "steps") if has_table else ()),
            "table" if has_table else None,
            {"GRID": spec.grid, "ROW_BYTES": _row_bytes(spec, head_dim), "HAS_TABLE": has_table},
            {},
            is_packed=spec.grid != "int4",
        )
    if isinstance(spec, QvgSpec):
        constants = {"BITS": spec.bits, "STAGES": spec.stages, "BLOCKS": -(-head_dim // spec.block_size)}
        return Layout(
            decode.qvg_decode_kernel,
            units.qvg_unit_kernel,
            ("codes", "scales", "ids", "centroids"),
            "centroids",
            constants,
            constants,
            is_packed=spec.bits == 2,
        )
    if isinstance(spec, AsymSpec):
        constants = {"BITS": spec.bits, "BLOCKS": -(-head_dim // spec.block_size)}
        return Layout(
            decode.asym_decode_kernel,
            units.asym_unit_kernel,
            ("codes", "steps", "lows", "ids", "centroids", "units"),
            "centroids",
            constants,
            constants,
            is_packed=spec.bits == 2,
        )
    if isinstance(spec, NoneSpec | Bf16Spec):
        return Layout(decode.plain_decode_kernel, None, ("values",), None, {}, {}, is_packed=False)
    return None


def _row_bytes(spec: FittedSpec, head_dim: int) -> int:
    """Bytes of a row of codes: of a token, or of five tokens for "trit"."""
    return head_dim if spec.grid == "trit" else head_dim * GRID_BITS[spec.grid] // 8
