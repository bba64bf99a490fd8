"""The arithmetic that kernels share, against torch's."""

import torch
import triton
import triton.language as tl

from qvg_kernels.quant import e4m3, numbers
from qvg_kernels.quant import hadamard as rotation


@triton.jit
def _apply(source, target, FUNCTION: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(target + at, FUNCTION(tl.load(source + at)))


def applied(function, source, dtype):
    target = torch.full_like(source, 99, dtype=dtype)
    _apply[(1,)](source, target, function, source.numel())
    return target


def test_every_e4m3_pattern_has_its_value():
    bits = torch.arange(256, dtype=torch.uint8)
    finite = ~torch.isnan(e4m3.from_bits(bits))
    values = applied(numbers.e4m3_value, bits, torch.float32)
    assert torch.equal(values[finite], e4m3.from_bits(bits)[finite])


def test_rounding_takes_ties_to_even():
    values = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 3.49])
    assert torch.equal(applied(numbers.round_half_even, values, torch.float32), values.round())


@triton.jit
def _patterns(phase, target, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(target + at, numbers.token_pattern(at + 37000, tl.load(phase)))


def test_tokens_get_the_sign_patterns_of_the_reference():
    phase = torch.tensor([211], dtype=torch.uint8)
    found = torch.empty(256, dtype=torch.int32)
    _patterns[(1,)](phase, found, 256)
    expected = rotation.token_patterns(torch.arange(37000, 37256), phase)
    assert torch.equal(found.long(), expected)


@triton.jit
def _flip(values, flips, target, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(target + at, numbers.flip_signs(tl.load(values + at), tl.load(flips + at)))


def test_flips_are_sign_patterns():
    flips = numbers.sign_flips(128, torch.device("cpu"))[5].contiguous()
    values = torch.randn(128).half()
    found = torch.empty(128, dtype=torch.float16)
    _flip[(1,)](values, flips, found, 128)
    assert torch.equal(found, values * rotation.sign_patterns(128, torch.device("cpu"))[5])


def test_e4m3_rounds_as_torch_does():
    finite = e4m3.from_bits(torch.arange(256, dtype=torch.uint8))
    finite = finite[~torch.isnan(finite)].sort().values
    ties = (finite[1:] + finite[:-1]) / 2
    edges = torch.tensor([0.0, -0.0, 1e-30, 448.0, 464.0, 1e9, -1e9, 2.0**-10])
    values = torch.cat([finite, ties, ties.nextafter(finite[1:]), ties.nextafter(finite[:-1]), edges])
    values = torch.nn.functional.pad(values, (0, 1024 - len(values)), value=1.0)
    assert torch.equal(applied(numbers.e4m3_bits, values, torch.uint8), e4m3.to_bits(values))


@triton.jit
def _unit(values):
    return numbers.power_of_two(numbers.unit_exponent(values))


def test_units_are_those_of_the_reference():
    powers = 2.0 ** torch.arange(-40, 40)
    edges = [448 * powers, (448 * powers).nextafter(torch.tensor(1e30)), 449 * powers]
    largest = torch.cat([*edges, torch.tensor([0.0, 1e-38, 1.0]), torch.rand(13)])
    expected = torch.stack([e4m3.round_to_unit(value)[1] for value in largest])
    assert torch.equal(applied(_unit, largest, torch.float32), expected)
