"""Sample scenes and the prompts that name them, from the grammar that ships with the weights.

A scene is one value per concept. One combination in ten is held out by a hash of its values: training never
draws it, evaluation draws nothing else, so every evaluated prompt is a combination that the model has not
seen.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

GRAMMAR_PATH = Path(__file__).resolve().parents[2] / "qvg_cli" / "data" / "pocket" / "grammar.yaml"
HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class SceneSpec:
    """The value of every concept of one scene, in the grammar's words."""

    size: str
    color: str
    shape: str
    motion: str
    ground: str
    sky: str
    camera: str

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32("/".join(asdict(self).values()).encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Grammar:
    """Concepts with their values and phrases, sentence templates and filler words.

    `rough` holds more values of the concepts: the model is taught them, but they are not promised to work.
    """

    concepts: Mapping[str, Mapping[str, list[str]]]
    rough: Mapping[str, Mapping[str, list[str]]]
    templates: list[str]
    fillers: list[str]

    @classmethod
    def load(cls, path: Path = GRAMMAR_PATH) -> Grammar:
        return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))

    @property
    def taught(self) -> dict[str, dict[str, list[str]]]:
        """All values that training draws: those of `concepts`, then the rough ones."""
        return {name: {**values, **self.rough.get(name, {})} for name, values in self.concepts.items()}

    def words(self) -> list[str]:
        """Every word a training prompt can contain, lower case, sorted: the tokenizer's whole words."""
        phrases = [phrase for values in self.taught.values() for group in values.values() for phrase in group]
        text = " ".join([*phrases, *self.fillers, *(re.sub(r"{\w+}", " ", t) for t in self.templates)])
        return sorted(set(re.findall(r"[a-z]+", text.lower())))

    def sample_spec(self, generator: torch.Generator, *, held_out: bool = False) -> SceneSpec:
        """Draw a scene from the training combinations, or from the held-out ones of promised values."""
        choices = self.concepts if held_out else self.taught
        while True:
            spec = SceneSpec(**{name: pick(list(values), generator) for name, values in choices.items()})
            if spec.is_held_out == held_out:
                return spec

    def sample_prompt(self, spec: SceneSpec, generator: torch.Generator) -> str:
        """Name the scene with a random template and random synonyms; unmentioned defaults leave no trace."""
        template = pick(self.templates, generator)
        phrases = {name: pick(self.taught[name][value], generator) for name, value in asdict(spec).items()}
        return tidy(template.format(**phrases))


def pick(options: list[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def tidy(text: str) -> str:
    """Close the gaps that empty phrases leave: double spaces, orphaned commas, a missing capital."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.])", r"\1", text).strip(" ,.")
    text = re.sub(r"\bis and\b", "is", text)
    return text[:1].upper() + text[1:]
