"""Settings of a tiny walk of the real classes."""

import pytest

from qvg_cli.config.load import Request
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.models.registry import load_config


@pytest.fixture(scope="session")
def walk_config(walk_weights):
    """A function: settings as `--set` takes them to a checked configuration of a tiny walk."""
    tiny = {
        "prompt": "red ball",
        "model": {
            "weights": str(walk_weights),
            "text_tokens": 8,
            "latent_channels": 16,
            "spatial_factor": 8,
            "dtype": "float32",
        },
        "video": {"height": 32, "width": 64},
        "sampler": {"steps": [1000, 500]},
        "cache": {"preset": "none"},
        "walk": {"image": None},
    }
    file = walk_weights / "tiny.yaml"
    file.write_text(format_yaml(tiny), encoding="utf-8")
    return lambda *sets: load_config(Request(backend="hyworldplay", file=file, sets=sets)).config
