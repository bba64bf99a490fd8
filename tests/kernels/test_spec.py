"""What a spec promises before anything runs: checked settings, exact bytes, bits within their budgets."""

import pytest
from pydantic import ValidationError

from qvg_kernels.spec import AsymSpec, FittedSpec, KiviSpec, QvgSpec, RtnSpec, TurboQuantSpec

from .conftest import ADAPTER, preset_names, preset_specs

MIB = 2**20

FITTED = {"int2", "int2-scalar", "int2-lite", "int3", "int4", "trit", "bit1"}
FITTED |= {"int2-shaped", "trit-shaped", "bit1-shaped"}
PEERS = {"int2-qvg", "int2-qvg-pro", "int2-asym", "rtn-int2", "kivi-int2", "quarot-int2", "turboquant-int2"}
PEERS |= {"quantwm-int2"}
PRESETS = {"none", "bf16"} | FITTED | PEERS


def allocated_mib(payload):
    """MiB of one span, each tensor rounded up to the 512 bytes of torch's CUDA allocator."""
    return sum(-(-size // 512) * 512 for size in payload.values()) / MIB


def preset_bits(name, tokens, head_dim=128):
    return sum(spec.bits_per_value(tokens, head_dim) for spec in preset_specs(name)) / 2


def test_every_preset_is_there():
    assert set(preset_names()) == PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_being_written_and_read(name):
    for spec in preset_specs(name):
        assert ADAPTER.validate_python(ADAPTER.dump_python(spec)) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "qvg", "blok_size": 16}, "qvg.blok_size"),
        ({"scheme": "int5"}, "does not match any of the expected tags"),
        ({"scheme": "qvg", "stages": 5}, "stages=5 is out of range; choose 1 to 4"),
        ({"scheme": "qvg", "num_centroids": 512}, "num_centroids=512 is out of range; choose 1 to 256"),
        ({"scheme": "fitted", "unbiased": 1.5}, "unbiased=1.5 is out of range; choose 0 to 1"),
        ({"scheme": "quarot", "clip_ratio": 0.1}, "clip_ratio=0.1 is out of range; choose 0.5 to 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QvgSpec(bits=3), "bits=3 is not possible; choose one of 2, 4"),
        (lambda: QvgSpec(block_size=48), "block_size=48 is not possible; choose one of 16, 32, 64, 128"),
        (
            lambda: FittedSpec(grid="int5"),
            "grid=int5 is not possible; choose one of e8x1, trit, int2, e8, int3, int4",
        ),
        (lambda: AsymSpec(num_centroids=0), "num_centroids=0 is out of range; choose 1 to 256"),
        (lambda: KiviSpec(along="heads"), "along=heads is not possible; choose one of tokens, channels"),
        (lambda: RtnSpec(group_size=8), "group_size=8 is not possible; choose one of 32, 64, 128"),
        (lambda: TurboQuantSpec(bits=3), "bits=3 is not possible; choose one of 2, 4"),
    ],
)
def test_settings_are_checked_without_pydantic_too(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("tokens", [4680, 5000, 7040, 9360, 18720, 29640, 37440, 1_000_000])
def test_the_default_stays_within_its_bits(tokens):
    assert preset_bits("int2", tokens) <= 2.25
    assert preset_bits("trit", tokens) <= 1.88
    assert preset_bits("bit1", tokens) <= 1.25


@pytest.mark.parametrize("tokens", [336, 672, 1008, 1680, 2352, 4368])
def test_short_spans_of_small_models_stay_below_two_and_a_half_bits(tokens):
    assert preset_bits("int2", tokens) <= 2.5


def test_the_default_never_takes_more_bits_than_the_paper():
    for tokens in (8, 64, 336, 1560, 4680, 9360, 37440, 200_000):
        assert preset_bits("int2", tokens) <= preset_bits("int2-qvg", tokens)


def test_the_table_grows_with_the_span():
    sizes = [FittedSpec().centroids(tokens) for tokens in range(1, 40_000, 50)]
    assert sizes == sorted(sizes)
    assert FittedSpec().centroids(5) == 5
    assert FittedSpec().centroids(4680) == 64
    assert FittedSpec().centroids(37440) == 256
    assert FittedSpec(num_centroids=100).centroids(60) == 60


@pytest.mark.parametrize(
    "spec", [QvgSpec(), QvgSpec(stages=4, block_size=16), QvgSpec(bits=4, block_size=32)]
)
@pytest.mark.parametrize("tokens", [4680, 29640, 37440])
def test_the_papers_formula_gives_its_bits(spec, tokens):
    # Codes, e4m3 scales, uint8 ids and bf16 centroids, per value.
    formula = spec.bits + 8 / spec.block_size + spec.stages * (8 / 128 + 256 * 16 / tokens)
    assert spec.bits_per_value(tokens, 128) == pytest.approx(formula)


@pytest.mark.parametrize(
    ("layers", "heads", "tokens", "head_dim", "spans", "scalars", "published_mib"),
    [
        pytest.param(48, 32, 29_640, 128, 1, 0, 3231.28, id="longcat"),
        pytest.param(30, 12, 37_440, 128, 7, 2, 6613.59, id="self-forcing"),
        pytest.param(30, 24, 7_040, 256, 5, 0, 4235.45, id="hyworldplay"),
    ],
)
def test_the_papers_memory_tables_follow(layers, heads, tokens, head_dim, spans, scalars, published_mib):
    span = QvgSpec().payload_bytes(heads, tokens, head_dim)
    layer_mib = 2 * spans * allocated_mib(span) + scalars * 512 / MIB
    # The published totals are a layer's figure, two decimals or not, times the layers.
    assert layers * layer_mib == pytest.approx(published_mib, abs=0.006)


def test_the_head_size_of_any_model_can_be_kept_unpacked():
    for name in ("none", "bf16"):
        key, _ = preset_specs(name)
        assert key.payload_bytes(3, 10, 20) == {"bf16": 3 * 10 * 20 * 2}
    assert preset_specs("none")[0].payload_bytes(3, 10, 20, element_bytes=4) == {"dense": 2400}


def test_ratios_in_the_summaries_are_true():
    ratios = {"int2": 7.1, "bit1": 12.9, "trit": 8.7, "int2-lite": 7.7, "int3": 4.9, "int4": 3.8}
    for name, ratio in ratios.items():
        assert round(16 / preset_bits(name, 4680), 1) == ratio
