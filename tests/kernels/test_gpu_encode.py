"""Encoding by kernels on a GPU: as good as the reference, the same bytes every time, and nothing waits."""

import pytest
import torch

from qvg_kernels.codec import NonFiniteError, first_error
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.spec import AsymSpec, FittedSpec, QvgSpec

from .histories import make_span

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SPECS = [
    *(
        pytest.param(FittedSpec(grid=grid), id=grid)
        for grid in ("e8", "e8x1", "int2", "int3", "int4", "trit")
    ),
    pytest.param(FittedSpec(num_centroids=0, unbiased=0.8), id="without a table"),
    pytest.param(FittedSpec(shaping="key", unbiased=0.8), id="shaped keys"),
    pytest.param(FittedSpec(shaping="value"), id="shaped values"),
    pytest.param(QvgSpec(), id="qvg"),
    pytest.param(QvgSpec(stages=2, block_size=16), id="qvg in stages"),
    pytest.param(AsymSpec(), id="asym"),
]


def errors_of(spec, span, monkeypatch):
    """Energies of the errors that the reference's and the kernels' bytes decode to, by the reference."""
    codec, found, shaper = build_codec(spec), [], None
    if spec.is_shaped:
        matrix = codec.shaping_matrix(codec.residual_moment(span, seed=3), span.float().mT @ span.float())
        shaper = codec.shaper_of(matrix)
    for choice in ("reference", "triton"):
        monkeypatch.setenv("QVG_KERNELS", choice)
        packed = codec.encode(span, seed=3, shaper=shaper)
        monkeypatch.setenv("QVG_KERNELS", "reference")
        found.append((codec.decode(packed).float() - span.float()).square().sum().item())
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_the_kernels_lose_no_more_than_the_reference(spec, monkeypatch):
    span = make_span(1, 2, 4680, 128, dtype=torch.bfloat16).cuda()
    expected, found = errors_of(spec, span, monkeypatch)
    # 0.02 dB.
    assert found <= 1.0046 * expected


@pytest.mark.parametrize(("tokens", "head_dim"), [(1, 64), (37, 64), (3520, 64), (3520, 256), (37440, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_shapes_and_dtypes_lose_no_more_either(tokens, head_dim, dtype, monkeypatch):
    span = make_span(1, 1, tokens, head_dim, dtype=dtype).cuda()
    expected, found = errors_of(FittedSpec(unbiased=0.8), span, monkeypatch)
    assert found <= 1.0046 * expected + 1e-6


@pytest.mark.parametrize("spec", SPECS)
def test_a_heads_bytes_depend_on_it_alone_and_are_the_same_every_time(spec):
    codec, span = build_codec(spec), make_span(2, 4, 5000, 128, dtype=torch.bfloat16).cuda()
    first, second = codec.encode(span, seed=3), codec.encode(span, seed=3)
    part = codec.encode(span[:, 1:3], seed=3)
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
        assert torch.equal(tensor[:, 1:3], part.tensors[name]), name


@pytest.mark.parametrize("spec", SPECS)
def test_blocks_packed_again_and_again_keep_their_own_bytes(spec):
    codec = build_codec(spec)
    spans = [make_span(1, 3, 720, 128, dtype=torch.bfloat16).roll(turn, 2).cuda() for turn in range(4)]
    # With more and more heads: what is packed for the first time is launched kernel by kernel.
    alone = [codec.encode(span.repeat(1, 2 + seed, 1, 1), seed=seed) for seed, span in enumerate(spans)]
    packed = [codec.encode(span, seed=seed) for seed, span in enumerate(spans)]
    for expected, found in zip(alone, packed, strict=True):
        for name, tensor in found.tensors.items():
            assert torch.equal(tensor, expected.tensors[name][:, :3]), name


@pytest.mark.parametrize("spec", SPECS)
def test_encoding_does_not_wait_for_the_device(spec):
    codec, span = build_codec(spec), make_span(1, 2, 600, 128, dtype=torch.bfloat16).cuda()
    # The second of its kind is captured.
    for seed in range(2):
        codec.encode(span, seed=seed, checks=[])
    torch.cuda.set_sync_debug_mode("error")
    try:
        codec.encode(span, seed=2, checks=[])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_value_that_is_not_finite_is_named_when_the_checks_are_settled():
    span = make_span(1, 3, 700, 128, dtype=torch.bfloat16).cuda()
    codec, checks = build_codec(FittedSpec()), []
    codec.encode(span, seed=1, checks=checks)
    span[0, 1, 66, 5] = float("inf")
    codec.encode(span, seed=1, checks=checks)
    number, error = first_error(checks)
    assert number == 1
    assert "1 NaN or infinite values, the first (inf) in batch 0, head 1, token 66, channel 5" in str(error)
    with pytest.raises(NonFiniteError):
        codec.encode(span, seed=1)
