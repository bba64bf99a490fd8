"""What every codec owes: exact byte counts, equal bytes for equal input, slices, and no surprise at the
edges."""

import pytest
import torch

from qvg_kernels.codec import NonFiniteError
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.spec import Bf16Spec, FittedSpec, KiviSpec, NoneSpec, QvgSpec

from .conftest import every_spec, packed_specs
from .histories import make_span

SHAPES = [(1, 2, 113, 128), (2, 3, 37, 64), (1, 1, 300, 256), (1, 2, 1, 128)]


def shape_id(shape):
    return "B{}-H{}-S{}-D{}".format(*shape)


def equal_bytes(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("spec", every_spec())
def test_a_span_takes_the_bytes_its_spec_says(spec, shape):
    batch, heads, tokens, head_dim = shape
    packed = build_codec(spec).encode(make_span(*shape, dtype=torch.bfloat16), seed=1)
    predicted = spec.payload_bytes(batch * heads, tokens, head_dim)
    assert packed.payload_bytes() == predicted
    assert spec.bits_per_value(tokens, head_dim) == pytest.approx(
        8 * sum(predicted.values()) / (batch * heads * tokens * head_dim)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spec", every_spec())
def test_decoding_gives_the_shape_and_dtype_back_and_keeps_the_values(spec, dtype, shape):
    span = make_span(*shape, dtype=dtype)
    codec = build_codec(spec)
    decoded = codec.decode(codec.encode(span, seed=1))
    assert decoded.shape == span.shape
    assert decoded.dtype == dtype
    error = (decoded - span).float().square().sum() / span.float().square().sum()
    assert error < 0.6


@pytest.mark.parametrize(
    ("heads", "tokens"),
    [
        (slice(1, 2), slice(None)),
        (slice(None), slice(7, 61)),
        (slice(0, 2), slice(112, 113)),
        (slice(-1, None), slice(-9, None)),
        (slice(None), slice(3, 50, 4)),
        (slice(None), slice(5, 5)),
        (slice(0, 0), slice(None)),
    ],
)
@pytest.mark.parametrize("spec", every_spec())
def test_a_slice_decodes_as_it_does_in_the_whole(spec, heads, tokens):
    codec = build_codec(spec)
    packed = codec.encode(make_span(2, 3, 113, 64), seed=1)
    whole = codec.decode(packed)[:, heads, tokens]
    part = codec.decode(packed, heads=heads, tokens=tokens)
    assert part.shape == whole.shape
    # Matrix products of other sizes may sum in another order.
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", every_spec())
def test_the_same_span_and_seed_give_the_same_bytes(spec):
    codec, span = build_codec(spec), make_span(1, 2, 150, 128)
    torch.manual_seed(1)
    first = codec.encode(span, seed=5)
    torch.manual_seed(2)
    assert equal_bytes(first.tensors, build_codec(spec).encode(span, seed=5).tensors)


@pytest.mark.parametrize("spec", every_spec())
def test_a_head_packs_alike_whatever_else_is_in_the_call(spec):
    codec, span = build_codec(spec), make_span(2, 3, 150, 128)
    whole = codec.encode(span, seed=5).tensors
    for heads in (slice(0, 1), slice(1, 3)):
        part = codec.encode(span[:, heads], seed=5).tensors
        assert equal_bytes(part, {name: tensor[:, heads] for name, tensor in whole.items()})
    alone = codec.encode(span[1:], seed=5).tensors
    assert equal_bytes(alone, {name: tensor[1:] for name, tensor in whole.items()})


@pytest.mark.parametrize("spec", every_spec())
def test_the_global_random_stream_is_left_alone(spec):
    state = torch.random.get_rng_state()
    build_codec(spec).encode(make_span(1, 1, 40, 64), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("spec", packed_specs())
def test_a_span_may_be_a_view_and_is_not_changed(spec):
    stored = make_span(1, 90, 2, 64)
    view = stored.transpose(1, 2)
    before = stored.clone()
    codec = build_codec(spec)
    assert equal_bytes(codec.encode(view, seed=0).tensors, codec.encode(view.contiguous(), seed=0).tensors)
    assert torch.equal(stored, before)


@pytest.mark.parametrize("spec", every_spec())
def test_what_is_packed_does_not_follow_the_buffer_it_came_from(spec):
    span = make_span(1, 2, 64, 64)
    codec = build_codec(spec)
    packed = codec.encode(span, seed=0)
    before = codec.decode(packed).clone()
    span.zero_()
    assert torch.equal(codec.decode(packed), before)


@pytest.mark.parametrize("spec", every_spec())
def test_zeros_stay_zeros(spec):
    codec = build_codec(spec)
    decoded = codec.decode(codec.encode(torch.zeros(1, 2, 40, 64), seed=0))
    assert torch.equal(decoded, torch.zeros(1, 2, 40, 64))


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
@pytest.mark.parametrize("spec", every_spec())
def test_constant_channels_keep_their_value(spec, tokens):
    if isinstance(spec, QvgSpec | FittedSpec | KiviSpec | NoneSpec | Bf16Spec):
        value = torch.linspace(-900.0, 1000.0, 64)
        codec = build_codec(spec)
        decoded = codec.decode(codec.encode(value.expand(1, 1, tokens, 64), seed=0))
        if getattr(spec, "along", "tokens") == "tokens":
            torch.testing.assert_close(decoded[0, 0], value.expand(tokens, 64), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize(
    "spec", [param for param in packed_specs() if not param.id.startswith(("int2-qvg", "quantwm"))]
)
def test_the_error_does_not_depend_on_the_scale_of_the_values(spec, scale):
    span = make_span(1, 1, 200, 128)
    codec = build_codec(spec)
    unscaled = codec.decode(codec.encode(span, seed=0))
    scaled = codec.decode(codec.encode(span * scale, seed=0)) / scale
    error, reference = ((decoded - span).square().sum() for decoded in (scaled, unscaled))
    assert torch.isfinite(scaled).all()
    assert error < 1.1 * reference


@pytest.mark.parametrize("spec", packed_specs())
def test_one_huge_channel_and_one_huge_token_stay_finite(spec):
    span = make_span(1, 1, 200, 128)
    span[..., 7] *= 1e4
    span[:, :, 11] *= 1e2
    codec = build_codec(spec)
    assert torch.isfinite(codec.decode(codec.encode(span, seed=0))).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spec", every_spec())
def test_values_that_are_not_finite_are_refused_by_place(spec, value):
    span = make_span(1, 3, 50, 64)
    span[0, 2, 17, 5] = value
    span[0, 2, 30, 6] = value
    with pytest.raises(NonFiniteError, match=r"2 NaN or infinite values.*batch 0, head 2, token 17") as error:
        build_codec(spec).encode(span, seed=0)
    assert (error.value.head, error.value.token, error.value.count) == (2, 17, 2)


@pytest.mark.parametrize("spec", packed_specs())
def test_other_head_sizes_are_refused_by_name(spec):
    message = (
        f"head_dim=96 cannot be packed with scheme '{spec.scheme}', which takes 64, 128, 256; "
        "use the cache preset 'none' or 'bf16' for this model"
    )
    with pytest.raises(ValueError, match=message):
        build_codec(spec).encode(torch.zeros(1, 1, 8, 96), seed=0)
    with pytest.raises(ValueError, match=message):
        spec.payload_bytes(1, 8, 96)


@pytest.mark.parametrize("spec", packed_specs())
def test_an_empty_span_is_refused(spec):
    with pytest.raises(ValueError, match="tokens=0"):
        build_codec(spec).encode(torch.zeros(1, 1, 0, 64), seed=0)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_papers_knobs_go_together(bits, stages, block_size, head_dim):
    spec = QvgSpec(bits=bits, block_size=block_size, stages=stages, num_centroids=48, iterations=1)
    span = make_span(1, 1, 100, head_dim)
    codec = build_codec(spec)
    packed = codec.encode(span, seed=0)
    assert packed.payload_bytes() == spec.payload_bytes(1, 100, head_dim)
    error = (codec.decode(packed) - span).square().sum() / span.square().sum()
    assert error < (0.02 if bits == 2 else 0.002)


def test_more_stages_and_smaller_blocks_lose_less():
    span = make_span(1, 1, 600, 128)
    errors = []
    for settings in (
        {},
        {"stages": 2},
        {"stages": 4, "block_size": 16},
        {"stages": 4, "bits": 4, "block_size": 16},
    ):
        codec = build_codec(QvgSpec(num_centroids=32, **settings))
        errors.append((codec.decode(codec.encode(span, seed=0)) - span).square().sum().item())
    assert errors == sorted(errors, reverse=True)


def test_none_takes_any_head_size_and_gives_the_bits_back():
    span = make_span(1, 2, 9, 20)
    codec = build_codec(NoneSpec())
    packed = codec.encode(span, seed=0)
    assert torch.equal(codec.decode(packed), span)
    assert packed.payload_bytes() == {"dense": 1 * 2 * 9 * 20 * 4}


def test_a_still_scene_is_rounded_anew_in_every_span():
    span = make_span(1, 1, 120, 128)
    codec = build_codec(FittedSpec(num_centroids=8))
    first, second = (codec.decode(codec.encode(span, seed=seed)) - span for seed in (1, 2))
    correlation = (first * second).sum() / (first.norm() * second.norm())
    assert correlation.abs() < 0.2
