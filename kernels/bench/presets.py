"""Cache presets from configs/cache, as the benches take them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter

from qvg_kernels.spec import CodecSpec

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "cache"
ADAPTER: TypeAdapter[Any] = TypeAdapter(Annotated[CodecSpec, Field(discriminator="scheme")])


@dataclass(frozen=True)
class Preset:
    """A cache preset's two specs."""

    name: str
    key: Any
    value: Any


def load_preset(text: str) -> Preset:
    """A preset written `name` or `name:knob=value,knob=value`."""
    name, _, knobs = text.partition(":")
    settings = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    for knob in filter(None, knobs.split(",")):
        key, _, value = knob.partition("=")
        settings["k"][key] = settings["v"][key] = yaml.safe_load(value)
    return Preset(text, ADAPTER.validate_python(settings["k"]), ADAPTER.validate_python(settings["v"]))


def load_presets(texts: list[str]) -> list[Preset]:
    """Presets as `load_preset` reads them, of those that are there; all that pack if none is given."""
    if texts:
        there = [text for text in texts if (PRESETS / f"{text.partition(':')[0]}.yaml").is_file()]
        if left_out := [text for text in texts if text not in there]:
            print(f"no presets: {', '.join(left_out)}", flush=True)
        return [load_preset(text) for text in there]
    presets = [load_preset(path.stem) for path in sorted(PRESETS.glob("*.yaml"))]
    return [preset for preset in presets if preset.key.scheme not in ("none", "bf16")]
