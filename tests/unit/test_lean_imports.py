"""Importing diffusers and transformers without what they import for others."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from qvg_cli import lean_imports
lean_imports.begin()
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
assert not {"transformers", "peft", "scipy", "torch._dynamo"} & set(sys.modules), sorted(sys.modules)
from transformers import UMT5EncoderModel
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
