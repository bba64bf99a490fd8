"""docs/cache-format.md says what the codecs do: its worked example, decoded by hand and by the codec."""

import itertools
import json
import re
import struct

import pytest
import torch

from qvg_kernels.codec import PackedTensor
from qvg_kernels.codecs.fitted.reference import KINDS
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.quant import roots
from qvg_kernels.quant.lattice import patterns
from qvg_kernels.spec import FittedSpec

from .conftest import REPOSITORY, preset_specs

PAGE = (REPOSITORY / "docs" / "cache-format.md").read_text()
SPEC = FittedSpec(grid="e8", num_centroids=2, unbiased=1.0)
TOKENS, CHANNELS = 3, 64


def example_bytes():
    block = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL).group(1)
    return {name: bytes.fromhex("".join(parts)) for name, parts in json.loads(block).items()}


def row(label):
    """The numbers of a line of the example's table."""
    line = re.search(rf"^\| {label} \| (.*) \|$", PAGE, re.MULTILINE).group(1)
    return [float(number) for number in line.strip("`").split()]


def e4m3(pattern):
    exponent, mantissa = (pattern >> 3) & 15, pattern & 7
    return mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def mix(x):
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def e8_levels(code, bits):
    """Eight levels of two bytes, as the page says."""
    allowed = [
        pattern
        for pattern in itertools.product((1, 3, 5), repeat=8)
        if (pattern.count(5) == 0 and pattern.count(3) in (0, 1, 2, 3, 4, 6))
        or (pattern.count(5) == 1 and pattern.count(3) <= 1)
    ]
    pattern = sorted(allowed)[code]
    negative = [bits >> place & 1 for place in range(7)]
    negative.append((sum(negative) + pattern.count(3)) % 2)
    shift = -1 if bits & 128 else 1
    return [2 * (-entry if minus else entry) + shift for entry, minus in zip(pattern, negative, strict=True)]


def decode_by_hand(data, token):
    scale_unit, weight_unit, step_unit = struct.unpack("<3f", data["units"])
    codes = data["codes"][token * CHANNELS // 4 : (token + 1) * CHANNELS // 4]
    levels = [level for place in range(0, len(codes), 2) for level in e8_levels(*codes[place : place + 2])]
    pattern = mix(token + 65537 * data["phase"][0]) % 64
    values = []
    for channel in range(CHANNELS):
        sign = -1 if mix(256 * pattern + channel + 1) >> 16 & 1 else 1
        rotated = sum(level * (-1) ** (place & channel).bit_count() for place, level in enumerate(levels))
        residual = sign * e4m3(data["scales"][token]) * scale_unit * rotated / CHANNELS**0.5
        entry = struct.unpack_from("b", data["table"], data["ids"][token] * CHANNELS + channel)[0]
        centroid = e4m3(data["steps"][channel]) * step_unit * entry
        offset = struct.unpack_from("<f", data["offset"], 4 * channel)[0]
        values.append(offset + e4m3(data["weights"][channel]) * weight_unit * (centroid + residual))
    return values


def example_packed(data):
    """The example as the codec holds it."""
    like = build_codec(SPEC).encode(example_span(), seed=1)
    tensors = {
        name: torch.frombuffer(bytearray(data[name]), dtype=tensor.dtype).reshape(tensor.shape)
        for name, tensor in like.tensors.items()
    }
    return PackedTensor(like.shape, like.dtype, tensors, KINDS)


def example_span():
    token, channel = torch.arange(TOKENS)[:, None], torch.arange(CHANNELS)
    return (((7 * token + 3 * channel) % 11) - 5 + 20 * (channel == 5)).float()[None, None]


def test_the_example_has_the_bytes_it_says():
    data = example_bytes()
    assert set(data) == set(KINDS)
    sizes = {}
    for name, content in data.items():
        sizes[KINDS[name]] = sizes.get(KINDS[name], 0) + len(content)
    assert sizes == SPEC.payload_bytes(1, TOKENS, CHANNELS)
    assert f"{sum(sizes.values())} bytes: codes 48, scales 3, ids 3, tables 525" in PAGE


@pytest.mark.parametrize("token", range(TOKENS))
def test_the_example_decodes_by_hand_as_by_the_codec(token):
    data = example_bytes()
    decoded = build_codec(SPEC).decode(example_packed(data))[0, 0, token]
    assert decoded.tolist() == pytest.approx(decode_by_hand(data, token), abs=1e-4)


def test_the_examples_table_follows_from_its_bytes():
    data = example_bytes()
    decoded = build_codec(SPEC).decode(example_packed(data))[0, 0, 1, :8]
    assert decoded.tolist() == pytest.approx(row("decoded"), abs=6e-5)
    assert [round(value, 4) for value in decode_by_hand(data, 1)[:8]] == row("decoded")
    assert [round(struct.unpack_from("<f", data["offset"], 4 * c)[0], 4) for c in range(8)] == row("offset")
    assert e8_levels(0x2B, 0xBC) == [1, 1, -3, -7, -7, -3, 1, 1]
    assert e8_levels(*data["codes"][16:18]) == [1, 1, -3, -7, -7, -3, 1, 1]
    assert mix(1 + 65537 * 0xC0) % 64 == 31
    assert mix(1) & 0xFF == data["phase"][0]
    residual = row(re.escape("residual: weight * sign * scale * above"))
    assert residual == [
        1.75 * sign * 0.40625 * rotated
        for sign, rotated in zip((-1, -1, 1, -1, 1, -1, -1, 1), (-4, -2, -5, -3, 1, 3, 6, 4), strict=True)
    ]


def test_patterns_are_those_of_the_page():
    assert len(patterns()) == 255
    assert patterns() == sorted(patterns())
    assert [2 * entry + 1 for entry in patterns()[43]] == e8_levels(43, 0)


def e8x1_levels(code):
    """Eight levels of a byte, as the page says."""
    if code < 128:
        negative = [code >> place & 1 for place in range(7)]
        return [-1 if minus else 1 for minus in [*negative, sum(negative) % 2]]
    levels = [0] * 8
    if code < 240:
        pair, signs = divmod(code - 128, 4)
        first, second = list(itertools.combinations(range(8), 2))[pair]
        levels[first], levels[second] = 2 - 4 * (signs & 1), 2 - 4 * (signs >> 1)
    else:
        levels[(code - 240) // 2] = -3 if code & 1 else 3
    return levels


def test_the_words_of_grid_e8x1_are_those_of_the_page():
    words = roots.codewords(torch.device("cpu")).int().tolist()
    assert [e8x1_levels(code) for code in range(256)] == words


def test_the_pages_groups_of_grid_e8x1_get_its_bytes():
    lines = re.findall(r"^\| `([-0-9. ]+)` \| `([-0-9. ]+)` \| `0x(..)` \|$", PAGE, re.MULTILINE)
    assert len(lines) == 3
    for group, word, code in lines:
        values = torch.tensor([[float(value) for value in group.split()]])
        levels = roots.nearest(values / roots.STEP)
        assert levels[0].tolist() == [float(level) for level in word.split()]
        assert roots.pack(levels).tolist() == [[int(code, 16)]]


def test_the_bits_of_the_page_are_those_of_the_presets():
    lengths = (336, 2352, 4680, 9360, 37440)
    seen = set()
    for line in re.findall(r"^\| `.*\|$", PAGE, re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 8:
            continue
        for name in re.findall(r"`([^`]+)`", cells[0]):
            seen.add(name)
            key, value = preset_specs(name)
            for tokens, figure in zip(lengths, cells[3:], strict=True):
                bits = (key.bits_per_value(tokens, 128) + value.bits_per_value(tokens, 128)) / 2
                assert float(figure) == pytest.approx(bits, abs=6e-4), (name, tokens)
    assert {"none", "int2", "trit", "bit1", "int2-qvg", "kivi-int2"} <= seen
