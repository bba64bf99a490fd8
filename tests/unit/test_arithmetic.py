"""A run says how its history is multiplied, and refuses arithmetic that the device does not have."""

import pytest
import torch

from qvg_cli.config.load import Request
from qvg_cli.device import attention_words
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config
from qvg_kernels.attention.attend import how_attended
from qvg_kernels.spec import Bf16Spec, FittedSpec, RtnSpec

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def ada(monkeypatch):
    """As if there were a GPU of compute capability 8.9."""
    monkeypatch.setattr("qvg_kernels.runtime.dispatch._capability", lambda index: (8, 9))


def test_a_cpu_attends_by_the_reference():
    config = load_config(Request(backend="self-forcing", sets=[], options=[])).config
    assert attention_words(config, CPU) == "the torch reference (device cpu)"


def test_fp8_is_refused_where_the_device_has_none():
    config = load_config(Request(backend="self-forcing", sets=["cache.arithmetic=fp8"], options=[])).config
    with pytest.raises(UsageError, match=r"cache.arithmetic=fp8 is not supported on cpu"):
        attention_words(config, CPU)


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("spec", "arithmetic", "words"),
    [
        (FittedSpec(), "auto", "history multiplied in int8 and fp8"),
        (FittedSpec(), "int8", "history multiplied in int8 and bf16"),
        (FittedSpec(), "bf16", "history multiplied in bf16"),
        (FittedSpec(grid="int4"), "auto", "history multiplied in bf16"),
        (Bf16Spec(), "auto", "history multiplied in bf16"),
        (RtnSpec(), "auto", "the torch reference (a scheme without kernels)"),
    ],
)
def test_codecs_coarser_than_e4m3_are_multiplied_in_it(spec, arithmetic, words):
    assert words in how_attended(GPU, torch.bfloat16, [spec, spec], arithmetic)


@pytest.mark.usefixtures("ada")
def test_float32_models_keep_to_the_reference():
    assert how_attended(GPU, torch.float32, [FittedSpec()], "auto") == "the torch reference (float32)"
