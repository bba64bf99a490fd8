"""Prompts of walks: a part of the pocket grammar, whose words the text encoder that is shared knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from scripts.pocket.prompts import SceneSpec, pick, tidy

WORLD_GRAMMAR_PATH = (
    Path(__file__).resolve().parents[2] / "qvg_cli" / "data" / "pocket" / "world" / "grammar.yaml"
)
# What a walk's scene has no say in.
FIXED = {"size": "medium", "motion": "rest", "camera": "fixed"}


@dataclass(frozen=True)
class WalkGrammar:
    """Concepts with their values and phrases, sentence templates and filler words."""

    concepts: Mapping[str, Mapping[str, list[str]]]
    templates: list[str]
    fillers: list[str]

    @classmethod
    def load(cls, path: Path = WORLD_GRAMMAR_PATH) -> WalkGrammar:
        return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))

    def words(self) -> set[str]:
        """Every word of a training prompt, lower case."""
        groups = [group for values in self.concepts.values() for group in values.values()]
        phrases = [phrase for group in groups for phrase in group]
        text = " ".join([*phrases, *self.fillers, *(re.sub(r"{\w+}", " ", t) for t in self.templates)])
        return set(re.findall(r"[a-z]+", text.lower()))

    def sample_spec(self, generator: torch.Generator, *, held_out: bool = False) -> SceneSpec:
        """Draw a scene from the training combinations, or from the held-out ones."""
        while True:
            drawn = {name: pick(list(values), generator) for name, values in self.concepts.items()}
            spec = SceneSpec(**FIXED, **drawn)
            if spec.is_held_out == held_out:
                return spec

    def sample_prompt(self, spec: SceneSpec, generator: torch.Generator) -> str:
        """Name the scene with a random template and random synonyms."""
        template = pick(self.templates, generator)
        phrases = {
            name: pick(values[getattr(spec, name)], generator) for name, values in self.concepts.items()
        }
        return tidy(template.format(**phrases))
