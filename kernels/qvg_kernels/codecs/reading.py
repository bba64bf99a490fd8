"""Read blocks of any packed scheme into the workspace, placed: bf16, int8 keys, e4m3 values.

One launch reads any number of blocks: a table of addresses names their tensors, a table of tiles says which
tokens go where. e4m3 values are stored transposed. A scheme's own part is functions that read a tile and
bound a head's numbers; the torch reference is its codec's `decode`, followed by the
placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import MATRICES, NONE, ROTARY, multiply, rotate, rotation_of
from qvg_kernels.rope.tables import KernelPlacement
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import GROUPED, SLICED, Kernel, kernel

# Columns of the table of blocks: tokens of the block, rows of its codebook, then addresses of its tensors.
TOKENS, CODEBOOK_ROWS, TENSORS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Columns of the table of tiles. From COUNT to FILL the first token is stored again: attention masks these
# keys in its last tile, but needs finite values.
ROW, SOURCE, TARGET, COUNT, FILL = (tl.constexpr(column) for column in range(5))
TILE_COLUMNS = tl.constexpr(5)


@dataclass(frozen=True)
class Tiles:
    """Keys that are decoded in one pass, cut into tiles of one block each.

    Attributes:
        table: `[T, 5]` int32, see the columns above.
        is_aligned: Whether every tile begins and ends at a multiple of 8 keys.
    """

    table: Tensor
    num_tokens: int
    is_aligned: bool

    @property
    def pitch(self) -> int:
        """Rows that a head has in the workspace."""
        return launch.round_up(self.num_tokens, launch.KEY_ALIGNMENT)


@dataclass(frozen=True)
class BlockTable:
    """Keys or values of neighbouring blocks of one scheme, as kernels find them.

    Attributes:
        rows: `[N, columns]` int64: tokens, codebook rows and addresses of each block.
        batch: Items of the batch that the blocks hold, with `heads` each.
        slots: `[N, frames]` int32: row of the placement's table for each frame.
    """

    rows: Tensor
    batch: int
    heads: int
    placement: KernelPlacement
    slots: Tensor | None


@dataclass(frozen=True)
class HeadScales:
    """What the 8-bit numbers of some heads count.

    Attributes:
        scale: `[B, H]` float32; `None` for a scheme that is never read so.
        smoothing: `[B, H, D]` float32 factors that int8 keys are divided by beside their scale, and queries
            multiplied; `None` for values.
    """

    scale: Tensor | None = None
    smoothing: Tensor | None = None


@dataclass(frozen=True)
class DecodeTarget:
    """Where heads `first_head` to `first_head + heads` of a pass go.

    Attributes:
        rows: `[B * heads * pitch, D]`, or `[B * heads * D, pitch]` if `is_transposed`.
        scale: `[B * heads]` of numbers of 8 bits.
        smoothing: `[B * heads, D]` of int8 keys.
        is_reordered: Whether keys lie at `stored_row`.
    """

    rows: Tensor
    first_head: int
    heads: int
    scale: Tensor | None
    smoothing: Tensor | None
    is_transposed: bool = False
    is_reordered: bool = False


@dataclass(frozen=True)
class BlockReader:
    """How kernels read blocks of one scheme: what its functions, in Triton's language, need to know.

    Attributes:
        tensors: Stored tensors in the order of the table of addresses; "matrix" is what blocks share.
        codebook: The tensor whose third dimension from the end, if any, counts centroids.
        is_coarse: Whether values were rounded more coarsely than e4m3 rounds them.
        settings: What the functions take as `SETTINGS`.
        begin: `(row, head, head_row, total, unit, smoothing, words, flips, SETTINGS, HEAD_DIM)` to what
            `read` takes
            first: addresses and numbers of one head of one block.
        read: `(state, tokens, SETTINGS, HEAD_DIM, TILE_S)` to values `[TILE_S, HEAD_DIM]`, float32, or
            float16 in units if it `is_scaled`.
        bound: `(row, head, SETTINGS, HEAD_DIM)` to the largest number that a block's head may decode to;
            `None` for a scheme that is never read in 8 bits.
    """

    head_dim: int
    tensors: tuple[str, ...]
    codebook: str | None
    is_coarse: bool
    settings: tuple[Any, ...]
    begin: Any
    read: Any
    bound: Any = None
    is_scaled: bool = False

    @property
    def folds(self) -> bool:
        """Whether the blocks' matrix may be left to what attends: then `folded` reads values without it."""
        return False

    def folded(self) -> BlockReader:
        """What reads values before their matrix is applied."""
        return self

    def tile(self, *, is_transposed: bool) -> launch.Tile:
        """What a program decodes at once."""
        return launch.DECODE_TRANSPOSED if is_transposed else launch.DECODE

    def tables(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """The constant tables that `begin` takes as `words` and `flips`."""
        return None, None

    def decode(self, blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> None:
        """Decode some heads of a pass, and more keys up to the next multiple of 128."""
        tile = self.tile(is_transposed=target.is_transposed)
        words, flips = self.tables(blocks.rows.device)
        _decode_kernel[(len(tiles.table), blocks.batch * target.heads)](
            **decode_arguments(blocks, tiles, target), words=words, flips=flips,
            BEGIN=self.begin, READ=self.read, SETTINGS=self.settings, IS_SCALED=self.is_scaled,
            IS_8BIT=target.rows.element_size() == 1, IS_TRANSPOSED=target.is_transposed,
            IS_REORDERED=target.is_reordered, IS_ALIGNED=tiles.is_aligned,
            HEAD_DIM=self.head_dim, TILE_S=tile.rows, num_warps=tile.warps,
        )  # fmt: skip

    def measure(self, blocks: BlockTable, *, is_key: bool) -> HeadScales:
        """What numbers of 8 bits count."""
        if self.bound is None:
            return HeadScales()
        return self._measure(_bound_kernel, blocks, is_key, BOUND=self.bound, SETTINGS=self.settings)

    def _measure(self, kernel: Kernel, blocks: BlockTable, is_key: bool, **own: Any) -> HeadScales:
        device, placement = blocks.rows.device, blocks.placement
        scale = torch.empty(blocks.batch, blocks.heads, device=device)
        smoothing = torch.empty(blocks.batch, blocks.heads, self.head_dim, device=device) if is_key else None
        kernel[(blocks.batch * blocks.heads,)](
            blocks=blocks.rows, num_blocks=len(blocks.rows), gain=placement.gain, units=scale,
            smoothing=smoothing, **own, IS_KEY=is_key, BLOCK_COLUMNS=blocks.rows.shape[1],
            HEAD_DIM=self.head_dim, num_warps=4,
        )  # fmt: skip
        return HeadScales(scale, smoothing)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A copy that does not wait for the device's queue."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)


def decode_arguments(blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> dict[str, Any]:
    """What every decoding kernel takes, by name."""
    placement = blocks.placement
    return {
        "blocks": blocks.rows, "tiles": tiles.table,
        "slots": blocks.slots, "slots_pitch": 0 if blocks.slots is None else blocks.slots.shape[1],
        "units": target.scale, "smoothing": target.smoothing, "target": target.rows, "pitch": tiles.pitch,
        "tables": placement.tables, "spaces": placement.spaces,
        "tokens_per_frame": placement.tokens_per_frame,
        "total_heads": blocks.heads, "first_head": target.first_head, "heads": target.heads,
        "BLOCK_COLUMNS": blocks.rows.shape[1], "PLACEMENT": placement.kind,
    }  # fmt: skip


@triton.jit
def stored_row(keys):
    """Row of key number `keys` beside e4m3 values: bits t1 t0 i e of the number become i t1 t0 e."""
    return (keys & ~15) | ((keys & 2) << 2) | ((keys & 12) >> 1) | (keys & 1)


@triton.jit
def address(row, index: tl.constexpr, dtype: tl.constexpr, offset):
    """Pointer into tensor `index` of a block; torch allocates at multiples of 512 bytes."""
    return tl.multiple_of(tl.load(row + TENSORS + index).to(tl.pointer_type(dtype)), 16) + offset


@triton.jit
def tile_of(blocks, tiles, BLOCK_COLUMNS: tl.constexpr, IS_ALIGNED: tl.constexpr):
    """This program's row of tiles: number and row of its block, source, target, count, fill."""
    tile = tiles + tl.program_id(0) * TILE_COLUMNS
    block, source, count = tl.load(tile + ROW), tl.load(tile + SOURCE), tl.load(tile + COUNT)
    target, fill = tl.load(tile + TARGET), tl.load(tile + FILL)
    if IS_ALIGNED:
        target, fill = tl.multiple_of(target, 8), tl.multiple_of(fill, 8)
    return block, blocks + block * BLOCK_COLUMNS, source, target, count, fill


@triton.jit
def head_row_of(heads, total_heads, first_head):
    """This program's head among those of the workspace, and among those of the block."""
    head = tl.program_id(1)
    return head, (head // heads).to(tl.int64) * total_heads + first_head + head % heads


@triton.jit
def _store_placed(
    values, tokens, index, target_row, fill, slots, tables, spaces, tokens_per_frame, unit, target,
    pitch, head, PLACEMENT: tl.constexpr, IS_SCALED: tl.constexpr, IS_8BIT: tl.constexpr,
    IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Place values `[TILE_S, HEAD_DIM]` and store them for head `head` of the workspace.

    Args:
        values: Float32, or, if they are IS_SCALED, float16 in units.
        index: `[TILE_S]` numbers of the tokens in the tile.
    """
    if PLACEMENT == ROTARY:
        cosine, sine = rotation_of(slots, tokens, tables, spaces, tokens_per_frame, HEAD_DIM)
        values = rotate(values, cosine, sine, HEAD_DIM, TILE_S)
    if PLACEMENT == MATRICES:
        values = multiply(values.to(tl.float32), tokens, slots, tables, tokens_per_frame, HEAD_DIM, TILE_S)
    if IS_SCALED and not IS_8BIT:
        values = values.to(tl.float32) * unit
    if IS_8BIT and not IS_SCALED:
        values = values * (1.0 / unit)
    if target.dtype.element_ty == tl.int8:
        stored = numbers.int8_of(values)
    else:
        # Rounding to e4m3 saturates.
        stored = values.to(target.dtype.element_ty)
    rows, channels = target_row + index, tl.arange(0, HEAD_DIM)
    is_filled = index < fill
    if IS_TRANSPOSED:
        at = target + (head.to(tl.int64) * HEAD_DIM + channels[:, None]) * pitch + rows[None, :]
        tl.store(at, tl.trans(stored), mask=is_filled[None, :])
    else:
        rows = stored_row(rows) if IS_REORDERED else rows
        at = target + (head.to(tl.int64) * pitch + rows)[:, None] * HEAD_DIM + channels[None, :]
        tl.store(at, stored, mask=is_filled[:, None])


@triton.jit
def unpacked(
    codes, tokens, BITS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr, TILE_S: tl.constexpr
):
    """Codes `[TILE_S, WIDTH]` int32 of BITS bits; rows are PITCH bytes apart."""
    EACH: tl.constexpr = 8 // BITS
    at = codes + tokens[:, None] * PITCH + tl.arange(0, WIDTH // EACH)[None, :]
    # [TILE_S, WIDTH // EACH]
    bytes_ = tl.load(at).to(tl.int32)
    shifts = BITS * tl.arange(0, EACH)[None, None, :]
    return tl.reshape((bytes_[:, :, None] >> shifts) & ((1 << BITS) - 1), [TILE_S, WIDTH])


@triton.jit
def group_scales(scales, tokens, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Each channel's scale, `[TILE_S, HEAD_DIM]` float32, from one e4m3 number a block of channels."""
    # [TILE_S, GROUPS]
    bits = tl.load(scales + tokens[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :])
    scale = numbers.e4m3_value(bits)
    wide = tl.broadcast_to(scale[:, :, None], [TILE_S, GROUPS, HEAD_DIM // GROUPS])
    return tl.reshape(wide, [TILE_S, HEAD_DIM])


@triton.jit
def store_unit(units, head, bound, IS_KEY: tl.constexpr):
    """Store the unit that brings a head's bound to at most 127, or 448."""
    if IS_KEY:
        # Four significant bits: numbers that have no more, as weights have, come out exact in float16.
        inverse = (127.0 / bound).to(tl.int32, bitcast=True) & -0x100000
        unit = 1.0 / inverse.to(tl.float32, bitcast=True)
    else:
        unit = numbers.power_of_two(numbers.unit_exponent(bound))
    tl.store(units + head, unit)


@triton.jit
def largest_of(start, count, IS_E4M3: tl.constexpr, TILE: tl.constexpr):
    """Largest magnitude of `count` numbers from a pointer on."""
    found = tl.zeros([TILE], tl.float32)
    for first in range(0, count, TILE):
        at = first + tl.arange(0, TILE)
        values = tl.load(start + at, mask=at < count, other=0)
        values = numbers.e4m3_value(values) if IS_E4M3 else values.to(tl.float32)
        found = tl.maximum(found, tl.abs(values))
    return tl.max(found, 0)


@kernel(do_not_specialize=["num_blocks"])
def _bound_kernel(
    blocks, num_blocks, gain, units, smoothing, BOUND: tl.constexpr, SETTINGS: tl.constexpr,
    IS_KEY: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The scale of one head's 8-bit numbers from the largest that any block may hold; no smoothing."""
    head = tl.program_id(0).to(tl.int64)
    bound = 1.0e-20
    for block in range(num_blocks):
        bound = tl.maximum(bound, BOUND(blocks + block * BLOCK_COLUMNS, head, SETTINGS, HEAD_DIM))
    store_unit(units, head, bound * gain, IS_KEY)
    if IS_KEY:
        tl.store(smoothing + head * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.full([HEAD_DIM], 1.0, tl.float32))


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def _decode_kernel(
    blocks, tiles, slots, slots_pitch, units, smoothing, target, pitch, words, flips,
    tables, spaces, tokens_per_frame, total_heads, first_head, heads,
    BEGIN: tl.constexpr, READ: tl.constexpr, SETTINGS: tl.constexpr, IS_SCALED: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr, IS_8BIT: tl.constexpr,
    IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr, IS_ALIGNED: tl.constexpr,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Decode one tile of one head by a scheme's functions, place it and store it.

    Args:
        blocks: `BlockTable.rows`; `slots` and `slots_pitch` are the rows of its placement and their length.
        tiles: `Tiles.table`.
        units: `[B * heads]` float32 scales of the numbers that are stored.
        smoothing: `[B * heads, HEAD_DIM]` float32 of int8 keys.
        target: `DecodeTarget.rows`, `pitch` rows a head.
        words: Constant table of the scheme; `flips` likewise.
        tables: `KernelPlacement.tables`; `spaces` and `tokens_per_frame` likewise.
        total_heads: Of the blocks; `heads` of them are decoded, from `first_head` on.
        BEGIN: As `BlockReader.begin`; READ and SETTINGS likewise.
    """
    block, row, source, target_row, count, fill = tile_of(blocks, tiles, BLOCK_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + block * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_SCALED or IS_8BIT else 1.0
    state = BEGIN(row, head, head_row, total, unit, smoothing, words, flips, SETTINGS, HEAD_DIM)
    for start in tl.range(0, fill, TILE_S, num_stages=1):
        index = start + tl.arange(0, TILE_S)
        tokens = source + tl.where(index < count, index, 0)
        # [TILE_S, HEAD_DIM]
        values = READ(state, tokens, SETTINGS, HEAD_DIM, TILE_S)
        _store_placed(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit, target,
            pitch, head, PLACEMENT, IS_SCALED, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, TILE_S,
        )  # fmt: skip
