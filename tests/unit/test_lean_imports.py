"""Importing diffusers and transformers without what they import for others."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch

from qvg_cli.lean_imports import _HIDDEN, _hiding

PROGRAM = """
import sys
from qvg_cli import lean_imports
lean_imports.begin()
from qvg_cli.models.self_forcing.pipeline import SelfForcingPipeline
from scripts.random_models import TINY
from qvg_cli.models.self_forcing.pipeline import SelfForcingTransformer
from qvg_cli.models.wan.checkpoint import Checkpoint
layout = TINY["self-forcing"].transformer
model = SelfForcingTransformer(**layout)
found = Checkpoint(lambda: SelfForcingTransformer(**layout), model.state_dict(), "made").load()
assert all((found.state_dict()[name] == each).all() for name, each in model.state_dict().items())
unused = {"transformers", "peft", "scipy", "sympy", "torch._dynamo", "torch.distributed.tensor"}
unused |= {"diffusers.models.transformers.transformer_flux", "torch.ao.nn"}
assert not unused & set(sys.modules), unused & set(sys.modules)
from transformers import UMT5EncoderModel
from diffusers.models.transformers import FluxTransformer2DModel
from diffusers.models import transformers
assert transformers.FluxTransformer2DModel is FluxTransformer2DModel
import torch
import torch.distributions.normal
assert torch.distributions.normal.Normal is torch.distributions.Normal
assert torch.quantization.QConfig is torch.ao.quantization.QConfig
assert torch.nn.quantized.Linear is torch.ao.nn.quantized.Linear
assert torch.export.export
"""


@pytest.mark.slow
def test_what_imports_transformers_itself_may_be_installed(tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "__init__.py").write_text("import transformers\n__version__ = '0.21.2'\n", encoding="utf-8")
    about = tmp_path / "peft-0.21.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.21.2\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env={**os.environ, "PYTHONPATH": path})


def test_two_threads_that_import_at_once_leave_everything_as_it_was():
    before = importlib.metadata.packages_distributions, torch.compiler.disable
    first, second = (_hiding(_HIDDEN["diffusers"]) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert (importlib.metadata.packages_distributions, torch.compiler.disable) == before
    assert None not in [sys.modules.get(name, "") for name in _HIDDEN["diffusers"]]
