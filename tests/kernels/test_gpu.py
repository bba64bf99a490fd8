"""The torch codecs on a GPU: same meaning as on the CPU, same bytes every time."""

from dataclasses import replace

import pytest
import torch

from qvg_kernels.codecs.registry import build_codec

from .conftest import every_spec
from .histories import make_span

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("spec", every_spec())
def test_a_span_packed_on_the_cpu_decodes_alike_on_the_gpu(spec):
    codec = build_codec(spec)
    packed = codec.encode(make_span(1, 3, 333, 128), seed=1)
    moved = replace(
        packed,
        tensors={name: tensor.cuda() for name, tensor in packed.tensors.items()},
        matrix=None if packed.matrix is None else packed.matrix.cuda(),
    )
    torch.testing.assert_close(codec.decode(moved).cpu(), codec.decode(packed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", every_spec())
def test_the_gpu_packs_the_same_bytes_every_time_and_for_any_heads(spec):
    codec, span = build_codec(spec), make_span(1, 4, 1000, 128).cuda()
    first = codec.encode(span, seed=3)
    second = codec.encode(span, seed=3)
    part = codec.encode(span[:, 1:3], seed=3)
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
        assert torch.equal(tensor[:, 1:3], part.tensors[name]), name


@pytest.mark.parametrize("spec", every_spec())
def test_the_gpu_loses_as_much_as_the_cpu(spec):
    codec, span = build_codec(spec), make_span(1, 2, 1000, 128)
    here, there = (
        (codec.decode(codec.encode(values, seed=3)).cpu() - span).square().sum()
        for values in (span, span.cuda())
    )
    assert there == pytest.approx(here.item(), rel=0.02, abs=1e-6)
