"""What goes beside the imports when a command starts."""

import gc

import pytest
import torch

from qvg_cli.quick_start import load_kernels, quick_start


def test_garbage_is_collected_again_after_the_imports():
    with quick_start("cpu"):
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_call_that_loads_kernels_is_a_valid_one(device):
    # What fails is not told in a command, which goes on without.
    load_kernels(torch.device(device))
