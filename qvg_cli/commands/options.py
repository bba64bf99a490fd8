"""Options that commands share, each declared once: its name, type, help, panel of `--help` and setting.

A group is a dataclass. A command names the groups that it takes as parameters, and `with_options` spreads
them over its command line. What a family adds comes from the family's own declaration.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import typer

from qvg_cli.commands.completion import complete_backends, complete_cards, complete_presets, complete_runs
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import families

if TYPE_CHECKING:
    from qvg_cli.config.load import Layer, Request
    from qvg_cli.config.options import FamilyOption

SIZE, PROMPTS, RUN, WORKERS = "Length and size", "Prompts", "Runs", "Workers"
SETTINGS, OUTPUT = "Device and settings", "Output"
FAMILY_PANEL = "Options of a family"
"""`--help` shows these under the name of each family that has them."""
PANELS = ("Arguments", "Options", SIZE, PROMPTS, FAMILY_PANEL, WORKERS, RUN, SETTINGS, OUTPUT)
"""Sections of `--help`, from what a newcomer needs to what few do."""


class _Option(typer.models.OptionInfo):
    """An option, and the dotted setting that it becomes; a group of settings if `parse` gives several."""

    def __init__(self, setting: str | None, parse: Callable[[Any], object], **known: Any) -> None:
        super().__init__(**known)
        self.setting, self.parse = setting, parse

    @property
    def flag(self) -> str:
        assert self.param_decls is not None
        return self.param_decls[0]


def option(
    form: str,
    help: str,
    *,
    default: Any = None,
    panel: str | None = None,
    complete: Callable[[str], list[str]] | None = None,
    setting: str | None = None,
    parse: Callable[[Any], object] = lambda value: value,
    **known: Any,
) -> Any:
    """The default of a parameter that is an option of the command line.

    Args:
        form: As `--help` shows it: names, and what stands for its value, which a switch has not.
        parse: From the option's value to that of its setting; a wrong one is a `UsageError`.
        known: What else Typer knows of options.
    """
    words = form.split()
    names = [word for word in words if word.startswith("-")]
    metavar = " ".join(words[len(names) :]) or None
    if metavar is None:
        default = False
    return _Option(
        setting,
        parse,
        default=default,
        param_decls=names,
        metavar=metavar,
        help=help,
        rich_help_panel=panel,
        autocompletion=complete,
        **known,
    )


OUT = option(
    "--out -o FOLDER",
    "Write results to FOLDER/<model>/<name>/; existing results are never overwritten.",
    default=Path("results"),
)
QUIET = option("--quiet -q", "Show errors only.", panel=OUTPUT)
VERBOSE = option(
    "--verbose -v", "Also print the log, with timings (QVG_LOG=debug prints more).", panel=OUTPUT
)
DEBUG = option("--debug", "Show the traceback of errors.", panel=OUTPUT)


@dataclass(frozen=True)
class Options:
    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """One for each option, as Typer reads them."""
        hints = get_type_hints(cls)
        return [_keyword(field.name, hints[field.name], field.default) for field in fields(cls)]

    @classmethod
    def collect(cls, values: dict[str, Any]) -> Self:
        """Take the group's own values out of those of a command."""
        return cls(**{parameter.name: values.pop(parameter.name) for parameter in cls.parameters()})

    def given(self) -> dict[str, object]:
        """Values by option, of those that were given."""
        values = [(parameter.default, getattr(self, parameter.name)) for parameter in self.parameters()]
        return {option.flag: value for option, value in values if value not in (option.default, None)}

    def layers(self) -> Iterator[Layer]:
        from qvg_cli.config.load import Layer, nest

        for parameter in self.parameters():
            option, value = parameter.default, getattr(self, parameter.name)
            if option.setting is not None and value is not None:
                yield Layer(option.flag, nest(option.setting, option.parse(value)))


@dataclass(frozen=True)
class Model(Options):
    backend: str | None = option(
        "--backend NAME",
        "Model, e.g. self-forcing, hyworldplay or longcat; qvg download --list shows all [default: the "
        "built-in demo model].",
        complete=complete_backends,
    )
    pocket: bool = option("--pocket", "Use the small built-in demo weights of the model.")
    device: str | None = option(
        "--device NAME",
        "Device: auto, cpu, cuda or cuda:N [default: auto].",
        panel=SETTINGS,
        setting="device",
        parse=str.lower,
    )
    config: Path | None = option(
        "--config FILE",
        "Load settings from a YAML file; the run.yaml of a run reproduces it.",
        panel=SETTINGS,
    )
    set_: list[str] | None = option(
        "--set KEY=VALUE",
        "Override a setting, e.g. --set cache.keep_recent_chunks=1 (repeatable).",
        panel=SETTINGS,
    )

    def request(self, *groups: Options, prompt: str | None = None, prompt_option: str = "PROMPT") -> Request:
        from qvg_cli.config.load import Layer, Request
        from qvg_cli.planning.prompts import prompt_of_argument

        layers = [layer for group in (self, *groups) for layer in group.layers()]
        if prompt is not None:
            layers.insert(0, Layer(prompt_option, {"prompt": prompt_of_argument(prompt)}))
        return Request(self.backend, self.pocket, self.config, self.set_ or (), layers)


@dataclass(frozen=True)
class Length(Options):
    seconds: float | None = option(
        "--seconds <float>",
        "Video length in seconds, rounded up to a whole chunk [default: the length of the model].",
    )
    frames: int | None = option(
        "--frames --num-frames <int>",
        "Video length in frames, rounded up to a whole chunk (for latent frames: --set video.frames=N).",
        panel=SIZE,
    )
    segments: int | None = option(
        "--segments N", "Number of segments to add to the first clip or the input (longcat only).", panel=SIZE
    )

    def asked(self) -> dict[str, Any]:
        """As `plan_jobs` takes it; a length that is given twice is refused."""
        if len(given := list(self.given())) > 1:
            raise UsageError(f"{given[0]} and {given[1]} were both given", hint="use one of them")
        return vars(self)


def _parse_size(text: str) -> dict[str, int]:
    """`video.height` and `video.width` of a `--size`."""
    width, separator, height = (part.strip() for part in text.lower().replace("\u00d7", "x").partition("x"))
    # Longer numbers than this Python does not even read.
    is_size = height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10
    if not (separator and is_size):
        raise UsageError(f"--size {text} is not of the form WIDTHxHEIGHT", hint="e.g. --size 832x480")
    return {"height": int(height), "width": int(width)}


@dataclass(frozen=True)
class Size(Options):
    size: str | None = option(
        "--size WIDTHxHEIGHT",
        "Frame size in pixels, e.g. 832x480 [default: the size of the model].",
        setting="video",
        parse=_parse_size,
    )
    height: int | None = option("--height PIXELS", "Frame height.", panel=SIZE, setting="video.height")
    width: int | None = option("--width PIXELS", "Frame width.", panel=SIZE, setting="video.width")
    fps: int | None = option(
        "--fps N", "Frames per second [default: the rate of the model].", panel=SIZE, setting="video.fps"
    )

    def layers(self) -> Iterator[Layer]:
        for name in ("--height", "--width"):
            if self.size is not None and name in self.given():
                raise UsageError(f"--size and {name} were both given", hint="use one of them")
        return super().layers()


@dataclass(frozen=True)
class Seed(Options):
    seed: int | None = option("--seed N", "Random seed [default: 0].", setting="seed")


@dataclass(frozen=True)
class Prompting(Seed):
    prompts: Path | None = option(
        "--prompts FILE",
        "Batch mode: a .txt file with one prompt per line (# starts a comment), or a .jsonl file with one "
        "object per line (keys prompt, seed, name). With --segments: one video, one prompt per clip.",
        panel=PROMPTS,
    )
    schedule: Path | None = option(
        "--schedule FILE",
        'Change the prompt during the video: a .jsonl file, one object per line with "prompt" and "frame", '
        '"seconds" or "chunk", counted in new frames and rounded up to the next chunk.',
        panel=PROMPTS,
    )

    def check(self, prompt: str | None, length: Length, *, prompt_option: str = "PROMPT") -> None:
        """Refuse prompts that are given twice."""
        if prompt is not None and self.prompts is not None:
            raise UsageError(
                f"{prompt_option} and --prompts were both given", hint="put the prompt in the file"
            )
        if None not in (self.prompts, length.segments, self.schedule):
            raise UsageError(
                "--schedule and --prompts with --segments were both given", hint="use one of them"
            )


@dataclass(frozen=True)
class Cache(Options):
    cache: str | None = option(
        "--cache PRESET",
        "KV-cache preset, e.g. int2, int4, trit or bf16 [default: int2].",
        complete=complete_presets,
        setting="cache.preset",
    )


@dataclass(frozen=True)
class Run(Cache):
    out: Path = OUT
    dry_run: bool = option("--dry-run", "Print the plan (memory, disk, chunks) and exit, like qvg plan.")
    gpu: str | None = option(
        "--gpu --card NAME|SIZE",
        'With --dry-run: GPU to plan for, e.g. "RTX 4090" or 24GiB [default: the GPU of this machine].',
        panel=RUN,
        complete=complete_cards,
    )
    resume: Path | None = option(
        "--resume FOLDER",
        "Resume the run in FOLDER after its last complete chunk, with its own settings.",
        panel=RUN,
        complete=complete_runs,
    )
    json_: bool = option(
        "--json", "Print one JSON object per video, with paths and statistics, to stdout.", panel=OUTPUT
    )

    def check(self) -> None:
        """Refuse what has no effect."""
        if self.out.suffix in (".mp4", ".mkv", ".webm"):
            raise UsageError(
                f"--out {self.out} looks like a file",
                hint="--out takes a folder; the video in it is video.mp4",
            )
        if self.gpu is not None and not self.dry_run:
            raise UsageError("--gpu has no effect without --dry-run", hint="use qvg plan instead")


@dataclass(frozen=True)
class Output(Options):
    """What is said while a command works. The program reads `verbose` and `debug` before the command runs."""

    quiet: bool = QUIET
    verbose: bool = VERBOSE
    debug: bool = DEBUG


@dataclass(frozen=True)
class Family(Options):
    """Options that families declare; a command takes those of all, and a run those of its own."""

    values: Mapping[str, Any]
    command: ClassVar[str] = ""
    """Name of the command, where some of the options would have no effect in it."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        return [_family_parameter(declared) for declared in cls._declared().values()]

    @classmethod
    def collect(cls, values: dict[str, Any]) -> Self:
        return cls({flag: values.pop(_name(flag)) for flag in cls._declared()})

    def given(self) -> dict[str, object]:
        return {flag: value for flag, value in self.values.items() if value is not None}

    def layers(self) -> Iterator[Layer]:
        from qvg_cli.config.load import Layer

        # Which setting it is depends on the family, which is not known yet.
        return (Layer(flag, {flag: value}) for flag, value in self.given().items())

    @classmethod
    def _declared(cls) -> dict[str, dict[str, FamilyOption]]:
        """Families and their declarations by flag."""
        declared: dict[str, dict[str, FamilyOption]] = {}
        for name, family in families().items():
            if cls.command == "extend" and not family.can_extend:
                continue
            for option in family.options:
                if cls.command not in option.not_in:
                    declared.setdefault(option.flag, {})[name] = option
        return declared


class ExtendFamily(Family):
    """Those of families that go on from a video."""

    command = "extend"


class PlayFamily(Family):
    """Those of a video that is played."""

    command = "play"


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each of its parameters that is a group of options in place of the group."""
    groups: dict[str, type[Options]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if inspect.isclass(hint) and issubclass(hint, Options):
            groups[parameter.name] = hint
            parameters += hint.parameters()
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hint, kind=kind))

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        collected = {name: group.collect(values) for name, group in groups.items()}
        command(**values, **collected)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def family_help(flag: str) -> dict[str, str]:
    """What `--help` says of an option under each family that has it."""
    return {
        name: option.help
        for name, family in families().items()
        for option in family.options
        if option.flag == flag
    }


def refuse_beside_resume(
    *groups: Options, own: Mapping[str, object], only: Collection[str] | None = None
) -> None:
    """Refuse options that a run which goes on cannot take.

    Args:
        own: The command's own arguments and options, by their names.
        only: Those of the groups that it cannot take; `None` for all.
    """
    names = [name for name, value in own.items() if value is not None]
    names += [name for group in groups for name in group.given() if only is None or name in only]
    if names:
        raise UsageError(
            f"{names[0]} and --resume were both given", hint="a resumed run keeps its own settings"
        )


def _family_parameter(declared: Mapping[str, FamilyOption]) -> inspect.Parameter:
    first, *others = declared.values()
    kind = first.type if all(other.type is first.type for other in others) else str
    annotation = list[kind] | None if first.is_repeatable else kind | None  # type: ignore[valid-type]
    shown = option(f"{first.flag} {first.metavar}", first.help, panel=FAMILY_PANEL)
    return _keyword(_name(first.flag), annotation, shown)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
