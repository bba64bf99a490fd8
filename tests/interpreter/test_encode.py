"""Spans packed by kernels against spans packed by the torch reference: the same bytes but for near ties."""

import pytest
import torch
from histories import make_span

from qvg_kernels.codec import NonFiniteError
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.spec import AsymSpec, FittedSpec, QvgSpec

SLOW = pytest.mark.slow
SPECS = [
    *(pytest.param(FittedSpec(grid=grid), id=grid) for grid in ("e8", "trit")),
    *(pytest.param(FittedSpec(grid=grid), id=grid, marks=SLOW) for grid in ("e8x1", "int2", "int3", "int4")),
    pytest.param(FittedSpec(num_centroids=0, unbiased=0.8), id="without a table"),
    pytest.param(FittedSpec(num_centroids=70, unbiased=0.0), id="with 70 centroids", marks=SLOW),
    *(pytest.param(FittedSpec(shaping=each, unbiased=0.8), id=f"shaped {each}") for each in ("key", "value")),
    pytest.param(
        FittedSpec(grid="trit", num_centroids=0, shaping="key"), id="shaped, without a table", marks=SLOW
    ),
    pytest.param(QvgSpec(num_centroids=16), id="qvg"),
    pytest.param(QvgSpec(num_centroids=16, stages=3, block_size=16, bits=4), id="qvg in stages", marks=SLOW),
    pytest.param(AsymSpec(num_centroids=16), id="asym"),
    pytest.param(AsymSpec(num_centroids=16, block_size=32, bits=4), id="asym in four bits", marks=SLOW),
]


@pytest.fixture
def poison(monkeypatch):
    """Memory that a kernel is to fill holds what no kernel writes."""
    real = torch.empty

    def poisoned(*shape, **options):
        tensor = real(*shape, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 113)

    monkeypatch.setattr(torch, "empty", poisoned)


def both(spec, span, monkeypatch, seed=3):
    """The span packed by the reference and by the kernels, with the same matrix if its errors are shaped."""
    codec, shaper = build_codec(spec), None
    monkeypatch.setenv("QVG_KERNELS", "reference")
    if spec.is_shaped:
        noise = torch.randn(*span.shape[:2], 40, span.shape[3], generator=torch.Generator().manual_seed(1))
        matrix = codec.shaping_matrix(codec.residual_moment(span, seed=seed), (noise.mT @ noise).double())
        shaper = codec.shaper_of(matrix)
    expected = codec.encode(span, seed=seed, shaper=shaper)
    monkeypatch.setenv("QVG_KERNELS", "triton")
    return codec, expected, codec.encode(span, seed=seed, shaper=shaper)


def assert_alike(codec, expected, found, span):
    """The same tensors, nearly all of their bytes, and the same error of what they decode to."""
    assert (found.shape, found.dtype, found.kinds) == (expected.shape, expected.dtype, expected.kinds)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].shape == tensor.shape, name
        assert found.tensors[name].dtype == tensor.dtype, name
        assert found.tensors[name].is_contiguous(), name
        if tensor.is_floating_point():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-2, atol=1e-2)
        else:
            assert (found.tensors[name] != tensor).float().mean() < 0.01, name
    errors = [(codec.decode(packed).float() - span.float()).square().sum() for packed in (expected, found)]
    # 0.02 dB.
    assert errors[1] == pytest.approx(errors[0].item(), rel=0.0046)


@pytest.mark.parametrize("spec", SPECS)
def test_the_kernels_pack_what_the_reference_packs(spec, monkeypatch, poison):
    span = make_span(1, 2, 77, 64)
    monkeypatch.setenv("QVG_KERNELS", "reference")
    assert_alike(*both(spec, span, monkeypatch), span)


@pytest.mark.parametrize(
    ("tokens", "head_dim"),
    [(1, 64), (3, 128), pytest.param(130, 128, marks=SLOW), pytest.param(65, 256, marks=SLOW)],
)
def test_any_length_and_head_size_is_packed(tokens, head_dim, monkeypatch, poison):
    span = make_span(1, 1, tokens, head_dim)
    assert_alike(*both(FittedSpec(), span, monkeypatch), span)


@pytest.mark.slow
def test_few_centroids_of_wide_heads_are_still_too_many_for_one_program(monkeypatch, poison):
    span = make_span(1, 1, 130, 256)
    assert_alike(*both(FittedSpec(num_centroids=40), span, monkeypatch), span)


def test_a_bf16_span_of_any_strides_is_packed_as_it_lies(monkeypatch, poison):
    wide = make_span(2, 2, 140, 64, dtype=torch.bfloat16).transpose(1, 2).contiguous()
    span = wide[:, ::2].transpose(1, 2)
    assert not span.is_contiguous()
    assert_alike(*both(FittedSpec(unbiased=0.8), span, monkeypatch), span)


def test_channels_that_never_change_and_tokens_that_are_alike_are_packed(monkeypatch, poison):
    flat = torch.full((1, 1, 40, 64), 2.5)
    codec, _, found = both(FittedSpec(), flat, monkeypatch)
    assert torch.equal(codec.decode(found), flat)
    # All rotated channels are equally large: every codeword is a tie, so only what they decode to is alike.
    ramp = flat.clone()
    ramp[..., 7] = torch.arange(40) / 8
    codec, expected, found = both(FittedSpec(), ramp, monkeypatch)
    torch.testing.assert_close(codec.decode(found), codec.decode(expected))


def test_a_heads_bytes_do_not_depend_on_other_heads(monkeypatch, poison):
    monkeypatch.setenv("QVG_KERNELS", "triton")
    span = make_span(2, 2, 40, 64)
    whole = build_codec(FittedSpec()).encode(span, seed=5)
    part = build_codec(FittedSpec()).encode(span[1:, 1:2], seed=5)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor[1:, 1:2], part.tensors[name]), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), pytest.param(-float("inf"), marks=SLOW)])
def test_a_value_that_is_not_finite_is_named(value, monkeypatch):
    monkeypatch.setenv("QVG_KERNELS", "triton")
    span = make_span(1, 3, 70, 64)
    span[0, 1, 66, 5] = span[0, 2, 3, 4] = value
    message = rf"2 NaN or infinite .*\({value}\) in batch 0, head 1, token 66, channel 5"
    with pytest.raises(NonFiniteError, match=message):
        build_codec(FittedSpec()).encode(span, seed=1)
