"""Reading and attending by kernels, against the codecs' own decode and torch's attention."""

from dataclasses import replace

import pytest
import torch
from histories import PLACEMENTS, SPECS, history_of, placement_of

from qvg_kernels.attention import packed as kernels
from qvg_kernels.attention.attend import attend
from qvg_kernels.attention.blocks import prepare
from qvg_kernels.attention.combine import choose_fused
from qvg_kernels.attention.heads import BF16, FP8, INT8
from qvg_kernels.attention.history import History, OwnKeys, Workspace
from qvg_kernels.attention.reference import attend_in_torch
from qvg_kernels.codecs.reading import DecodeTarget
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.placement import Rotary
from qvg_kernels.runtime import launch
from qvg_kernels.spec import Bf16Spec, FittedSpec, RtnSpec

CPU = torch.device("cpu")
NEAR = {"rtol": 2e-3, "atol": 5e-2}
"""Kernels compute in float16 what they store in bf16; values here are up to fifty."""


def list_of(history):
    """The one list of blocks that a history is."""
    (only,) = prepare(history.blocks)
    return only


def decoded(history, *, operands, head_dim, heads=(0, 2), pass_tokens=128):
    """Keys and values as the kernels read them, `[B * h, S, D]` float32, in the order of the blocks."""
    lists = sorted(prepare(history.blocks), key=lambda each: history.blocks.index(each.blocks[0]))
    parts = [decoded_list(each, operands, head_dim, heads, pass_tokens) for each in lists]
    return [torch.cat(side, 1) for side in zip(*parts, strict=True)]


def decoded_list(blocks, operands, head_dim, heads, pass_tokens):
    """The same of one list; values that their matrix is left to attention for are multiplied by it."""
    first, group = heads
    sides = []
    is_e4m3 = operands.value is not None
    for side, is_value, narrow in ((blocks.key, False, operands.key), (blocks.value, True, operands.value)):
        rows = side.table.batch * group
        scale = smoothing = None
        if side.scales.scale is not None:
            scale = side.scales.scale[:, first : first + group].flatten()
        if narrow is torch.int8:
            smoothing = side.scales.smoothing[:, first : first + group].flatten(0, 1)
        passes = []
        for tiles in blocks.passes(pass_tokens, CPU):
            pitch = tiles.pitch
            target = torch.full((rows, pitch, head_dim), float("nan"))
            if narrow is not None:
                target = torch.full((rows, pitch, head_dim), 127, dtype=torch.int8).view(narrow)
            transposes, reorders = is_e4m3 and is_value, is_e4m3 and not is_value
            shaped = target.view(rows * head_dim, pitch) if transposes else target.view(-1, head_dim)
            side.reader.decode(
                side.table, tiles, DecodeTarget(shaped, first, group, scale, smoothing, transposes, reorders)
            )
            values = shaped.view(rows, head_dim, pitch).mT if transposes else target
            if reorders:
                number = torch.arange(pitch)
                t, i, e = number >> 2 & 3, number >> 1 & 1, number & 1
                values = values[:, number - number % 16 + 8 * i + 2 * t + e]
            values = values.float() * (scale.view(-1, 1, 1) if narrow is not None else 1.0)
            values = values if smoothing is None else values * smoothing.unsqueeze(1)
            assert values.isfinite().all()
            if is_value and blocks.matrix is not None:
                values = values @ blocks.matrix[:, first : first + group].flatten(0, 1).float()
            passes.append(values[:, : tiles.num_tokens])
        sides.append(torch.cat(passes, 1))
    return sides


def expected_of(history, first=0, group=2):
    pairs = [b.read(slice(first, first + group), slice(0, b.num_tokens)) for b in history.blocks]
    return [torch.cat(side, 2).flatten(0, 1) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize("spec", SPECS)
def test_kernels_read_what_the_codecs_decode(spec):
    # Heads of 64 channels are those of the other tests.
    history = history_of(spec, head_dim=128)
    found = decoded(history, operands=BF16, head_dim=128)
    torch.testing.assert_close(found, expected_of(history), **NEAR)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_values_of_any_size_are_read(size):
    history = history_of(FittedSpec(), head_dim=64, lengths=(40,), size=size)
    for found, expected in zip(
        decoded(history, operands=BF16, head_dim=64), expected_of(history), strict=True
    ):
        assert distance(found, expected) < 0.002


def test_heads_of_256_channels_are_read():
    history = history_of(FittedSpec(), head_dim=256, lengths=(40,))
    found = decoded(history, operands=BF16, head_dim=256)
    torch.testing.assert_close(found, expected_of(history), **NEAR)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements_are_those_of_the_reference(placement):
    history = history_of(Bf16Spec(), head_dim=64, placement=placement)
    for found, expected in zip(
        decoded(history, operands=BF16, head_dim=64), expected_of(history), strict=True
    ):
        torch.testing.assert_close(found, expected, **NEAR)


def test_some_heads_are_read_alone():
    history = history_of(FittedSpec(), head_dim=64)
    for found, expected in zip(
        decoded(history, operands=BF16, head_dim=64, heads=(1, 1)),
        expected_of(history, 1, 1),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize("spec", SPECS)
def test_numbers_of_8_bits_fill_their_range_and_are_as_near_as_they_can(spec):
    if not build_codec(spec).reader(64).is_coarse:
        pytest.skip("read as bf16")
    history = history_of(spec, head_dim=64)
    blocks = prepare(history.blocks)[0]
    key, value = decoded(history, operands=FP8, head_dim=64)
    expected_key, expected_value = expected_of(history)
    unit = blocks.key.scales.scale.view(-1, 1, 1) * blocks.key.scales.smoothing.flatten(0, 1).unsqueeze(1)
    # Half a step, and what float16 adds.
    assert ((key - expected_key).abs() <= 0.6 * unit + expected_key.abs() / 256).all()
    largest = (expected_key.abs() / unit).amax((1, 2))
    assert (largest <= 127.5).all()
    assert (largest > 30).all()
    # A step of e4m3 is up to an eighth; the interpreter carries some values to a wrong power of two.
    unit = blocks.value.scales.scale.view(-1, 1, 1)
    if blocks.matrix is None:
        is_near = (value - expected_value).abs() <= expected_value.abs() / 8 + unit / 512
        assert is_near.float().mean() > 0.95
    else:
        # These, by half, are 7 % of the norm without a matrix, and a matrix spreads them.
        assert distance(value, expected_value) < 0.12
    largest = (expected_value.abs() / unit).amax((1, 2))
    assert (largest <= 448).all()
    # Of values before their matrix an eighth is used.
    assert (largest > (14 if blocks.matrix is None else 1.7)).all()


def distance(found, expected):
    return (found - expected).norm() / expected.norm()


def own_of(head_dim, tokens, placement="rotary", batch=1, heads=2):
    generator = torch.Generator().manual_seed(3)
    key, value = (torch.randn(batch, tokens, heads, head_dim, generator=generator) for _ in range(2))
    placed = placement_of(placement, tokens)
    return OwnKeys(key.transpose(1, 2), value.transpose(1, 2), placed, None)


@pytest.mark.parametrize(
    ("limit_bytes", "batch", "queries"),
    [(2**28, 1, 40), pytest.param(60_000, 2, 17, marks=pytest.mark.slow)],
)
def test_attention_is_that_of_the_reference(limit_bytes, batch, queries):
    # 176 keys are two parts, since a part has at least 128.
    history = history_of(FittedSpec(), head_dim=64, lengths=(50, 103, 30), batch=batch)
    own = own_of(64, 21, batch=batch)
    query = 4 * torch.randn(batch, queries, 2, 64, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    found = kernels.attend(query, history, own, Workspace(limit_bytes), BF16)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    assert distance(found, expected) < 0.003


@pytest.mark.parametrize("programs_at_once", [1, 100])
def test_packed_and_unpacked_spans_are_attended_together(programs_at_once, monkeypatch):
    # On a device of many programs keys are split; of so few keys some splits get none.
    monkeypatch.setattr(launch, "programs_at_once", lambda device, blocks: programs_at_once)
    packed, plain = (history_of(spec, head_dim=64, lengths=(30,)) for spec in (FittedSpec(), Bf16Spec()))
    history = History((*packed.blocks, *plain.blocks))
    own = own_of(64, 21)
    query = torch.randn(1, 2, 19, 64, generator=torch.Generator().manual_seed(1))
    found = kernels.attend(query, history, own, Workspace(), BF16)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    assert distance(found, expected) < 0.003


@pytest.mark.parametrize(
    ("operands", "bound"), [(BF16, 0.003), (INT8, 0.2), pytest.param(FP8, 0.2, marks=pytest.mark.slow)]
)
def test_one_history_serves_every_item_of_the_batch(operands, bound):
    # Both rows of a guidance read the same condition frames.
    history, own = history_of(FittedSpec(), head_dim=64), own_of(64, 21, batch=2)
    query = torch.randn(2, 17, 2, 64, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    found = kernels.attend(query, history, own, Workspace(), operands)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    for item in range(2):
        assert distance(found[item], expected[item]) < bound


@pytest.mark.parametrize("has_library", [True, False])
def test_without_a_history_the_chunk_attends_to_itself(has_library, monkeypatch):
    if not has_library:
        monkeypatch.setattr(kernels, "choose_fused", lambda *_: None)
    own = own_of(64, 21)
    query = torch.randn(1, 2, 19, 64, generator=torch.Generator().manual_seed(1))
    found = kernels.attend(query, History(()), own, Workspace(), BF16)
    expected = attend_in_torch(query, [own], Workspace())
    assert distance(found, expected) < 0.003


@pytest.mark.parametrize(
    ("limit_bytes", "has_library", "placement"),
    [(2**28, True, "rotary"), (2**28, True, "matrices"), (2**28, False, "rotary"), (60_000, True, "rotary")],
)
def test_own_keys_that_fit_the_workspace_go_to_the_library(limit_bytes, has_library, placement, monkeypatch):
    calls = []

    def chosen(*states):
        calls.append(states)
        return choose_fused(*states) if has_library else None

    monkeypatch.setattr(kernels, "choose_fused", chosen)
    # 133 float32 keys of two heads are 68,096 bytes.
    history = history_of(FittedSpec(), head_dim=64, lengths=(30,), placement=placement)
    own = own_of(64, 133, placement)
    if placement == "matrices":
        own = replace(own, value_placement=own.key_placement)
    query = torch.randn(1, 2, 19, 64, generator=torch.Generator().manual_seed(1))
    found = kernels.attend(query, history, own, Workspace(limit_bytes), BF16)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    assert distance(found, expected) < 0.003
    assert bool(calls) == (limit_bytes == 2**28)


@pytest.mark.parametrize("programs_at_once", [1, 100])
def test_queries_that_see_only_one_side_are_right(programs_at_once, monkeypatch):
    monkeypatch.setattr(launch, "programs_at_once", lambda device, blocks: programs_at_once)
    generator = torch.Generator().manual_seed(1)
    history, own = history_of(FittedSpec(), head_dim=64, lengths=(30, 40)), own_of(64, 21)
    # Not turned, all own keys lie about one point, which queries are far from, towards or away.
    still = Rotary(own.key_placement.tables, 1, 1, (0,) * 21)
    point = 4 * torch.randn(64, generator=generator)
    own = replace(own, key=0.1 * own.key + point, key_placement=still)
    query = torch.randn(1, 2, 20, 64, generator=generator)
    query[:, :, ::3] += 8 * point
    query[:, :, 1::3] -= 8 * point
    found = kernels.attend(query, history, own, Workspace(), BF16)
    for rows, keys in ((0, [own]), (1, history.blocks), (2, [*history.blocks, own])):
        expected = attend_in_torch(query[:, :, rows::3], keys, Workspace())
        assert distance(found[:, :, rows::3], expected) < 0.003


@pytest.mark.parametrize(("operands", "bound"), [(INT8, 0.1), (FP8, 0.2)])
def test_attention_of_8_bits_is_near_the_reference(operands, bound):
    history, own = history_of(FittedSpec(), head_dim=64), own_of(64, 21)
    query = torch.randn(1, 2, 40, 64, generator=torch.Generator().manual_seed(1))
    found = kernels.attend(query, history, own, Workspace(), operands)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    assert distance(found, expected) < bound


@pytest.mark.parametrize(
    ("operands", "bound", "batch", "limit_bytes", "has_library"),
    [
        (BF16, 0.003, 1, 60_000, False),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                (BF16, 0.003, 2, 2**28, True),
                (INT8, 0.1, 1, 2**28, True),
                (FP8, 0.2, 1, 2**28, False),
            )
        ),
    ],
)
def test_shaped_errors_of_two_versions_are_attended_to_as_by_the_reference(
    operands, bound, batch, limit_bytes, has_library, monkeypatch
):
    if not has_library:
        monkeypatch.setattr(kernels, "choose_fused", lambda *_: None)
    monkeypatch.setattr(launch, "programs_at_once", lambda device, blocks: 100)
    keys, values = (
        history_of(FittedSpec(shaping=each), head_dim=64, lengths=(50, 103, 30), batch=batch)
        for each in ("key", "value")
    )
    blocks = [
        replace(key, value_codec=value.value_codec, value=value.value)
        for key, value in zip(keys.blocks, values.blocks, strict=True)
    ]
    plain = history_of(Bf16Spec(), head_dim=64, lengths=(30,), batch=batch)
    history, own = History((*blocks, *plain.blocks)), own_of(64, 21, batch=batch)
    query = torch.randn(batch, 2, 19, 64, generator=torch.Generator().manual_seed(1))
    found = kernels.attend(query, history, own, Workspace(limit_bytes), operands)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    assert distance(found, expected) < bound
    longest, *others = history.lists
    assert longest.matrix is blocks[1].value.matrix
    assert [each.matrix for each in others] == [None, None]


def test_values_that_are_placed_are_shaped_before_it():
    history = history_of(FittedSpec(shaping="value"), head_dim=64, placement="matrices")
    own = replace(own_of(64, 21, "matrices"), value_placement=placement_of("matrices", 21))
    query = torch.randn(1, 2, 19, 64, generator=torch.Generator().manual_seed(1))
    found = kernels.attend(query, history, own, Workspace(), BF16)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    assert distance(found, expected) < 0.003


def test_a_scheme_without_kernels_is_left_to_the_reference():
    history = history_of(RtnSpec(), head_dim=64)
    assert kernels.attend(torch.zeros(1, 2, 4, 64), history, own_of(64, 21), Workspace(), BF16) is None


def test_the_same_dispatch_serves_the_cache(monkeypatch):
    # Packed without kernels, which have tests of their own.
    history, own = history_of(FittedSpec(), head_dim=64), own_of(64, 21)
    monkeypatch.setenv("QVG_KERNELS", "triton")
    query = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(1))
    found = attend(query.half(), history, own, Workspace())
    monkeypatch.setenv("QVG_KERNELS", "reference")
    expected = attend(query, history, own, Workspace())
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
