"""How codes, scales and signs lie in bytes: exact, both ways, for every value there is."""

import pytest
import torch

from qvg_kernels.codecs.fitted.grids import grid
from qvg_kernels.quant import bitpack, e4m3, lattice, roots
from qvg_kernels.quant import hadamard as rotation


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 128)], ids=str)
def test_codes_come_back_from_their_bytes(bits, shape):
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    packed = bitpack.pack(codes, bits)
    assert packed.shape == (*shape[:-1], shape[-1] * bits // 8)
    assert torch.equal(bitpack.unpack(packed, bits), codes)


def test_the_first_code_of_a_byte_is_in_its_lowest_bits():
    codes = torch.tensor([1, 2, 3, 0], dtype=torch.uint8)
    assert bitpack.pack(codes, 2).tolist() == [0b00_11_10_01]


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 17, 100])
def test_trits_come_back_from_any_run_of_rows(rows):
    trits = torch.randint(0, 3, (rows, 8), dtype=torch.uint8)
    packed = bitpack.pack_trits(trits)
    assert packed.shape == (-(-rows // 5), 8)
    for start, stop in ((0, rows), (rows // 2, rows), (rows - 1, rows), (0, 1), (rows, rows)):
        assert torch.equal(bitpack.unpack_trits(packed, start, stop), trits[start:stop])


def test_a_byte_of_trits_holds_five_rows_of_a_channel():
    trits = torch.tensor([[2], [0], [1], [0], [1]], dtype=torch.uint8)
    assert bitpack.pack_trits(trits).tolist() == [[2 + 0 * 3 + 1 * 9 + 0 * 27 + 1 * 81]]


def test_e4m3_reads_every_bit_pattern_as_the_format_says():
    bits = torch.arange(256, dtype=torch.uint8)
    for pattern, value in zip(bits.tolist(), e4m3.from_bits(bits).tolist(), strict=True):
        exponent, mantissa = (pattern >> 3) & 15, pattern & 7
        if exponent == 15 and mantissa == 7:
            continue
        size = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        assert value == (-size if pattern & 128 else size)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (448.0, 448.0),
        (1e5, 448.0),
        (-1e5, -448.0),
        (1.0625, 1.0),
        (1.1875, 1.25),
        (2.0**-10, 0.0),
        (2.0**-9, 2.0**-9),
    ],
)
def test_e4m3_rounds_to_nearest_even_and_saturates(value, rounded):
    assert e4m3.from_bits(e4m3.to_bits(torch.tensor([value]))).item() == rounded


@pytest.mark.parametrize("largest", [1e-6, 0.3, 224.0, 448.0, 449.0, 1e5])
def test_a_unit_is_the_least_power_of_two_that_fits(largest):
    _, unit = e4m3.round_to_unit(torch.tensor([largest / 3, largest]))
    assert torch.log2(unit).item() == round(torch.log2(unit).item())
    assert largest / unit <= 448.0 < 2 * largest / unit


@pytest.mark.parametrize("name", ["e8x1", "trit", "int2", "e8", "int3", "int4"])
def test_levels_come_back_from_their_codes(name):
    levels = grid(name).quantize(torch.randn(23, 64))
    codes = grid(name).write(levels)
    assert torch.equal(grid(name).read(codes, 0, 23, 64), levels)
    assert torch.equal(grid(name).read(codes[None, None], 7, 16, 64)[0, 0], levels[7:16])
    assert torch.equal(levels, levels.to(torch.int8).float())


def all_codewords():
    words = lattice.codewords(torch.device("cpu")).view(torch.int8).reshape(256, 256, 8)
    return words[:, : len(lattice.patterns())].reshape(-1, 8).float()


def test_the_lattice_has_65280_different_codewords_of_odd_quarters():
    words = all_codewords()
    assert len(words) == 65280
    assert len({tuple(word) for word in words.int().tolist()}) == 65280
    assert (words % 2 != 0).all()
    assert words.abs().max() == 11


@pytest.mark.parametrize("size", [1.0, 4.0, 9.0])
def test_the_nearest_codeword_is_the_nearest_of_all(size):
    values = size * torch.randn(40, 8)
    found = lattice.nearest(values)
    best = torch.cdist(values.double(), all_codewords().double()).min(-1).values
    assert torch.allclose((values - found).double().norm(dim=-1), best, atol=1e-5)


def test_every_codeword_packs_into_its_own_two_bytes():
    words = all_codewords()
    codes = lattice.pack(words)
    assert len({tuple(code) for code in codes.tolist()}) == 65280
    assert torch.equal(lattice.unpack(codes), words)


def test_no_codeword_is_further_from_itself_than_from_another():
    words = all_codewords()[::37]
    assert torch.equal(lattice.nearest(words), words)


def test_every_root_packs_into_its_own_byte():
    words = roots.codewords(torch.device("cpu"))
    assert roots.pack(words).flatten().tolist() == list(range(256))
    assert torch.equal(roots.unpack(roots.pack(words)), words)


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_the_nearest_root_is_the_nearest_of_all(size):
    values = size * torch.randn(500, 8)
    best = torch.cdist(values.double(), roots.codewords(torch.device("cpu")).double()).min(-1).values
    assert torch.allclose((values - roots.nearest(values)).double().norm(dim=-1), best, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "most_db"),
    [("e8x1", -4.9), ("trit", -7.1), ("int2", -9.2), ("e8", -10.3), ("int3", -14.4), ("int4", -20.0)],
)
def test_a_grid_loses_on_gaussian_values_what_theory_says(name, most_db):
    values = torch.randn(2000, 128)
    levels = grid(name).quantize(values)
    scale = (values * levels).sum(-1, keepdim=True) / levels.square().sum(-1, keepdim=True)
    error = (values - scale * levels).square().mean() / values.square().mean()
    assert 10 * torch.log10(error) < most_db


@pytest.mark.parametrize("size", [64, 128, 256])
def test_hadamard_is_its_own_inverse(size):
    matrix = rotation.hadamard(size, torch.device("cpu"))
    assert torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-6)
    assert torch.equal(matrix, matrix.T)


def test_the_integer_hash_has_its_published_values():
    def lowbias32(x):
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    values = [0, 1, 2, 12345, 0x80000000, 0xFFFFFFFF]
    assert rotation.mix(torch.tensor(values)).tolist() == [lowbias32(value) for value in values]


def test_sign_patterns_are_balanced_and_unlike_each_other():
    signs = rotation.sign_patterns(128, torch.device("cpu"))
    assert signs.mean().abs() < 0.03
    products = signs @ signs.T / 128
    assert (products - torch.eye(len(signs))).abs().max() < 0.5
