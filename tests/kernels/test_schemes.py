"""A scheme is a folder: what is asked of every one, and that adding one touches nothing else."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from qvg_kernels.codecs.registry import SCHEMES, build_codec

from .conftest import REPOSITORY, every_spec
from .histories import make_span

# Heads of one block, as ranks of several GPUs would hold them; the last cuts are uneven.
CUTS = [(0, 5), (0, 2, 5), (0, 1, 4, 5), (0, 1, 2, 3, 4, 5)]


@pytest.mark.slow
def test_a_folder_alone_makes_a_scheme():
    script = Path(__file__).parent / "schemes" / "use_absmax.py"
    subprocess.run([sys.executable, str(script)], check=True)


def test_every_scheme_has_a_preset_and_its_section_in_the_format():
    page = (REPOSITORY / "docs" / "cache-format.md").read_text()
    presets = [yaml.safe_load(path.read_text()) for path in (REPOSITORY / "configs" / "cache").glob("*.yaml")]
    assert set(SCHEMES) == {preset["k"]["scheme"] for preset in presets}
    for name, scheme in SCHEMES.items():
        assert f"`{name}`" in page
        assert scheme.spec().scheme == name


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("spec", every_spec())
def test_heads_that_are_packed_apart_have_the_bytes_of_all_heads_together(spec, cuts):
    codec, block = build_codec(spec), make_span(2, 5, 131, 64)
    whole = codec.encode(block, seed=5).tensors
    apart = [codec.encode(block[:, a:b], seed=5).tensors for a, b in itertools.pairwise(cuts)]
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([tensors[name] for tensors in apart], 1), tensor), name
