"""Attention by kernels at a model's size: near the reference, within its workspace, always the same."""

from dataclasses import replace

import pytest
import torch

from qvg_kernels.attention import packed as kernels
from qvg_kernels.attention.attend import attend
from qvg_kernels.attention.history import DEFAULT_WORKSPACE_BYTES, History, OwnKeys, StoredBlock, Workspace
from qvg_kernels.attention.reference import attend_in_torch
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.placement import FrameMatrices, Rotary
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.dispatch import has_fp8
from qvg_kernels.spec import AsymSpec, Bf16Spec, FittedSpec, QvgSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROWS, COLUMNS, SPAN_FRAMES = 30, 52, 3
SPECS = [
    pytest.param(FittedSpec(), id="e8"),
    pytest.param(FittedSpec(grid="e8x1"), id="e8x1"),
    pytest.param(FittedSpec(grid="trit"), id="trit"),
    pytest.param(FittedSpec(grid="int4"), id="int4"),
    pytest.param(FittedSpec(num_centroids=0), id="without a table"),
    pytest.param(FittedSpec(shaping="key"), id="shaped keys"),
    pytest.param(FittedSpec(shaping="value"), id="shaped values"),
    pytest.param(FittedSpec(grid="trit", shaping="value"), id="shaped trit"),
    pytest.param(FittedSpec(grid="e8x1", shaping="key"), id="shaped e8x1"),
    pytest.param(QvgSpec(), id="qvg"),
    pytest.param(AsymSpec(), id="asym"),
    pytest.param(Bf16Spec(), id="bf16"),
]


def placement_of(name, frames):
    if name == "matrices":
        matrices = torch.linalg.qr(torch.randn(512, 4, 4, generator=torch.Generator().manual_seed(0))).Q
        return FrameMatrices(matrices.cuda(), 2.0, ROWS * COLUMNS, frames)
    return Rotary(RotaryTables.of(128, 512, torch.device("cuda")), ROWS, COLUMNS, frames)


def values_of(frames, heads, seed):
    """Clusters and noise: the mean of noise alone is nearly zero, and any error large beside it."""
    generator = torch.Generator("cuda").manual_seed(seed)
    tokens = frames * ROWS * COLUMNS
    centres = torch.randn(1, 16, heads, 128, generator=generator, device="cuda")
    ids = torch.randint(0, 16, (tokens,), generator=generator, device="cuda")
    noise = torch.randn(1, tokens, heads, 128, generator=generator, device="cuda")
    return (centres[:, ids] + 0.5 * noise).bfloat16().transpose(1, 2)


def packed_by(codec, span, seed):
    """The span, its errors shaped by what it is itself if they are."""
    shaper = None
    if codec.spec.is_shaped:
        matrix = codec.shaping_matrix(codec.residual_moment(span, seed=seed), span.float().mT @ span.float())
        shaper = codec.shaper_of(matrix)
    return codec.encode(span, seed=seed, shaper=shaper)


def make_call(spec, *, spans, heads=12, placement="rotary"):
    """Query, history and chunk; every span in memory of its own."""
    codec = build_codec(spec)
    packed = [packed_by(codec, values_of(SPAN_FRAMES, heads, seed), seed) for seed in (1, 2)]
    blocks = []
    for first in range(0, spans * SPAN_FRAMES, SPAN_FRAMES):
        key, value = (
            replace(span, tensors={name: kept.clone() for name, kept in span.tensors.items()})
            for span in packed
        )
        placed = placement_of(placement, tuple(range(first, first + SPAN_FRAMES)))
        value_placed = placed if placement == "matrices" else None
        tokens = SPAN_FRAMES * ROWS * COLUMNS
        blocks.append(StoredBlock(codec, codec, key, value, placed, value_placed, 0, tokens))
    own = placement_of(placement, tuple(range(spans * SPAN_FRAMES, (spans + 1) * SPAN_FRAMES)))
    key, value = (values_of(SPAN_FRAMES, heads, seed) for seed in (3, 4))
    own = OwnKeys(key, value, own, own if placement == "matrices" else None)
    return values_of(SPAN_FRAMES, heads, 5), History(tuple(blocks)), own


def distance(found, expected):
    return (found.float() - expected.float()).norm() / expected.float().norm()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("placement", ["rotary", "matrices"])
def test_attention_is_near_the_reference(spec, placement):
    query, history, own = make_call(spec, spans=3, placement=placement)
    expected = attend_in_torch(query, [*history.blocks, own], Workspace())
    found = attend(query, history, own, Workspace(), "bf16")
    assert distance(found, expected) < 0.01
    assert distance(attend(query, history, own, Workspace(), "int8"), expected) < 0.02
    if has_fp8(query.device):
        assert distance(attend(query, history, own, Workspace(), "fp8"), expected) < 0.05


def stiff_call(head_dim, *, grows):
    """1000 queries, packed keys and own keys of no weight; if it grows, logits of hundreds.

    Then every third query is large, and so is each run of 128 keys that comes after one of smaller keys:
    `attend_hopper` goes from the last to the first, and each of its tiles of 64 queries gets a flag.
    """
    tokens, heads, codec = 1000, 3, build_codec(FittedSpec())
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, tokens, head_dim, generator=generator, device="cuda") for _ in range(3)
    )
    if grows:
        query[:, :, ::3] *= 100
        key[:, :, torch.arange(tokens) % 256 < 128] *= 4
    key, value = (codec.encode(side.bfloat16(), seed=seed) for seed, side in enumerate((key, value)))
    placed = Rotary(RotaryTables.of(head_dim, 64, torch.device("cuda")), 25, 40, (0,))
    block = StoredBlock(codec, codec, key, value, placed, None, 0, tokens)
    own = OwnKeys(*(torch.zeros_like(query[:, :, :8].bfloat16()) for _ in range(2)), placed, None)
    return query.bfloat16(), block, own


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1], SPECS[4]])
@pytest.mark.parametrize("placement", ["rotary", "matrices"])
def test_spans_are_read_alike_by_tensor_cores(spec, placement, monkeypatch):
    query, history, own = make_call(spec, spans=2, placement=placement)
    # Parts of spans, of lengths that no block divides.
    first, second = history.blocks
    parts = (replace(first, first_token=7, num_tokens=1000), replace(second, num_tokens=4679))
    found = attend(query, History(parts), own, Workspace(), "bf16")
    monkeypatch.setattr(launch, "has_gluon", lambda device: False)
    assert distance(found, attend(query, History(parts), own, Workspace(), "bf16")) < 2e-3


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("limit_bytes", [2**23, DEFAULT_WORKSPACE_BYTES])
def test_heads_of_both_sizes_are_near_the_reference(head_dim, limit_bytes):
    query, block, own = stiff_call(head_dim, grows=False)
    expected = attend_in_torch(query, [block, own], Workspace())
    found = attend(query, History((block,)), own, Workspace(limit_bytes), "int8")
    assert distance(found, expected) < 0.03


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("limit_bytes", [2**23, DEFAULT_WORKSPACE_BYTES])
def test_weights_beyond_the_range_of_a_float_are_found_all_the_same(head_dim, limit_bytes, monkeypatch):
    query, block, own = stiff_call(head_dim, grows=True)
    found = attend(query, History((block,)), own, Workspace(limit_bytes), "int8")
    # Int8 keys find another largest logit now and then: what counts is the general kernel's result with them.
    monkeypatch.setattr(launch, "has_hopper_kernel", lambda device, dtype: False)
    expected = attend(query, History((block,)), own, Workspace(), "int8")
    assert distance(found, expected) < 0.01


@pytest.mark.parametrize("has_library", [True, False])
def test_queries_that_see_only_one_side_are_right(has_library, monkeypatch):
    if not has_library:
        monkeypatch.setattr(kernels, "choose_fused", lambda *_: None)
    query, history, own = make_call(FittedSpec(), spans=2)
    tokens = own.num_tokens
    # Not turned, all own keys lie about one point, which queries are far from, towards or away.
    still = Rotary(own.key_placement.tables, 1, 1, (0,) * tokens)
    point = torch.randn(128, generator=torch.Generator("cuda").manual_seed(6), device="cuda")
    key = (0.1 * own.key.float() + point).bfloat16()
    own = OwnKeys(key, own.value + 2, still, None)
    query[:, :, ::3] += (4 * point).bfloat16()
    query[:, :, 1::3] -= (4 * point).bfloat16()
    found = attend(query, history, own, Workspace(), "bf16")
    for rows, keys in ((0, [own]), (1, history.blocks), (2, [*history.blocks, own])):
        expected = attend_in_torch(query[:, :, rows::3], keys, Workspace())
        # Of sharp logits: one bit of a bf16 key counts.
        assert distance(found[:, :, rows::3], expected) < 0.03


@pytest.mark.parametrize("tokens", [1, 2, 77, 4680])
def test_a_chunk_of_any_length_attends_to_itself(tokens):
    query, _, own = make_call(FittedSpec(), spans=1)
    own = OwnKeys(own.key[:, :, :tokens], own.value[:, :, :tokens], own.key_placement, None)
    query = query[:, :, :tokens]
    expected = attend_in_torch(query, [own], Workspace())
    assert distance(attend(query, History(()), own, Workspace()), expected) < 0.01


@pytest.mark.parametrize("limit_bytes", [2**26, DEFAULT_WORKSPACE_BYTES])
def test_the_workspace_bounds_what_a_long_history_takes(limit_bytes):
    query, history, own = make_call(FittedSpec(), spans=160)
    workspace = Workspace(limit_bytes)
    attend(query, history, own, workspace)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = attend(query, history, own, workspace)
    assert workspace.held_bytes <= limit_bytes
    taken = torch.cuda.max_memory_allocated() - before
    # The output; beside it the library's for the chunk's own keys, a float32 logsumexp, and its own needs.
    each = output.numel() * output.element_size()
    assert taken <= 2 * each + 4 * output.numel() // output.shape[3] + 2**20


def test_two_calls_give_the_same_bits():
    query, history, own = make_call(FittedSpec(), spans=20)
    first = attend(query, history, own, Workspace())
    assert torch.equal(first, attend(query, history, own, Workspace()))


def test_what_a_call_launches_is_compiled_in_its_warm_up(monkeypatch):
    from triton.runtime.jit import JITFunction

    compile_, in_warm_up = JITFunction._do_compile, []

    def noted(self, *arguments):
        in_warm_up.append(arguments[-1])
        return compile_(self, *arguments)

    monkeypatch.setattr(JITFunction, "_do_compile", noted)
    # No other test attends to float16 queries.
    query, history, own = make_call(FittedSpec(), spans=2, heads=5)
    attend(query.half(), history, own, Workspace())
    assert len(in_warm_up) > 2
    assert all(in_warm_up)


def test_a_call_does_not_wait_for_the_device():
    query, history, own = make_call(FittedSpec(), spans=3)
    workspace = Workspace()
    attend(query, history, own, workspace)
    fresh = History(history.blocks)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(query, fresh, own, workspace)
    finally:
        torch.cuda.set_sync_debug_mode("default")
