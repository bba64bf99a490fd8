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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_type_hints

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


@dataclass(frozen=True)
class Setting:
    """The setting that an option becomes.

    Attributes:
        name: Dotted; of a group of settings if `parse` gives several.
        parse: From the option's value to the setting's; a wrong one is a `UsageError`.
    """

    name: str
    parse: Callable[[Any], object] = lambda value: value


@dataclass(frozen=True)
class Options:
    """Base of every group."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """One for each option, as Typer reads them."""
        hints = get_type_hints(cls, include_extras=True)
        return [_keyword(field.name, hints[field.name], field.default) for field in fields(cls)]

    @classmethod
    def collect(cls, values: dict[str, Any]) -> Self:
        """Take the group's own values out of those of a command."""
        return cls(**{parameter.name: values.pop(parameter.name) for parameter in cls.parameters()})

    def given(self) -> dict[str, object]:
        """Values by option, of those that were given."""
        return {
            _flag(parameter): getattr(self, parameter.name)
            for parameter in self.parameters()
            if getattr(self, parameter.name) not in (parameter.default, None)
        }

    def layers(self) -> Iterator[Layer]:
        """The settings of options that were given, each with its option's name."""
        from qvg_cli.config.load import Layer, nest

        for parameter in self.parameters():
            value = getattr(self, parameter.name)
            for setting in parameter.annotation.__metadata__:
                if isinstance(setting, Setting) and value is not None:
                    yield Layer(_flag(parameter), nest(setting.name, setting.parse(value)))


@dataclass(frozen=True)
class ModelOptions(Options):
    """The model and its settings."""

    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model, e.g. self-forcing, hyworldplay or longcat; qvg download --list shows all [default: "
            "the built-in demo model].",
            show_default=False,
            autocompletion=complete_backends,
        ),
    ] = None
    pocket: Annotated[
        bool, typer.Option("--pocket", help="Use the small built-in demo weights of the model.")
    ] = False
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Device: auto, cpu, cuda or cuda:N [default: auto].",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
        Setting("device", str.lower),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Load settings from a YAML file; the run.yaml of a run reproduces it.",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting, e.g. --set cache.keep_recent_chunks=1 (repeatable).",
            show_default=False,
            rich_help_panel=SETTINGS,
        ),
    ] = None

    def request(self, *groups: Options, prompt: str | None = None, prompt_option: str = "PROMPT") -> Request:
        """What these and other options ask for."""
        from qvg_cli.config.load import Layer, Request
        from qvg_cli.planning.prompts import prompt_of_argument

        layers = [layer for group in (self, *groups) for layer in group.layers()]
        if prompt is not None:
            layers.insert(0, Layer(prompt_option, {"prompt": prompt_of_argument(prompt)}))
        return Request(self.backend, self.pocket, self.config, self.set_ or (), layers)


@dataclass(frozen=True)
class LengthOptions(Options):
    """How much is made."""

    seconds: Annotated[
        float | None,
        typer.Option(
            help="Video length in seconds, rounded up to a whole chunk [default: the length of the model].",
            show_default=False,
        ),
    ] = None
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            "--num-frames",
            help="Video length in frames, rounded up to a whole chunk (for latent frames: --set "
            "video.frames=N).",
            show_default=False,
            rich_help_panel=SIZE,
        ),
    ] = None
    segments: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of segments to add to the first clip or the input (longcat only).",
            show_default=False,
            rich_help_panel=SIZE,
        ),
    ] = None

    def check(self) -> None:
        """Refuse a length that is given twice."""
        if len(given := list(self.given())) > 1:
            raise UsageError(f"{given[0]} and {given[1]} were both given", hint="use one of them")


def _parse_size(text: str) -> dict[str, int]:
    """`video.height` and `video.width` of a `--size`."""
    width, separator, height = (part.strip() for part in text.lower().replace("\u00d7", "x").partition("x"))
    # Longer numbers than this Python does not even read.
    is_size = height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10
    if not (separator and is_size):
        raise UsageError(f"--size {text} is not of the form WIDTHxHEIGHT", hint="e.g. --size 832x480")
    return {"height": int(height), "width": int(width)}


@dataclass(frozen=True)
class SizeOptions(Options):
    """The shape of a frame, and how many are shown in a second."""

    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Frame size in pixels, e.g. 832x480 [default: the size of the model].",
            show_default=False,
        ),
        Setting("video", _parse_size),
    ] = None
    height: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Frame height.", show_default=False, rich_help_panel=SIZE),
        Setting("video.height"),
    ] = None
    width: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Frame width.", show_default=False, rich_help_panel=SIZE),
        Setting("video.width"),
    ] = None
    fps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Frames per second [default: the rate of the model].",
            show_default=False,
            rich_help_panel=SIZE,
        ),
        Setting("video.fps"),
    ] = None

    def layers(self) -> Iterator[Layer]:
        for name in ("--height", "--width"):
            if self.size is not None and name in self.given():
                raise UsageError(f"--size and {name} were both given", hint="use one of them")
        return super().layers()


@dataclass(frozen=True)
class SeedOptions(Options):
    """What a video's noise is drawn from."""

    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Random seed [default: 0].", show_default=False),
        Setting("seed"),
    ] = None


@dataclass(frozen=True)
class PromptOptions(SeedOptions):
    """Which videos are made."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Batch mode: a .txt file with one prompt per line (# starts a comment), or a .jsonl "
            "file with "
            "one object per line (keys prompt, seed, name). With --segments: one video, one prompt per clip.",
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None
    schedule: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Change the prompt during the video: a .jsonl file, one object per line with "prompt" and '
            '"frame", "seconds" or "chunk", counted in new frames and rounded up to the next chunk.',
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None

    def check(self, prompt: str | None, length: LengthOptions, *, prompt_option: str = "PROMPT") -> None:
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
class CacheOptions(Options):
    """How the history is kept."""

    cache: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="KV-cache preset, e.g. int2, int4, trit or bf16 [default: int2].",
            show_default=False,
            autocompletion=complete_presets,
        ),
        Setting("cache.preset"),
    ] = None


Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        help="Write results to FOLDER/<model>/<name>/; existing results are never overwritten.",
    ),
]


@dataclass(frozen=True)
class RunOptions(CacheOptions):
    """Where a run is kept, and whether it is made at all."""

    out: Out = Path("results")
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (memory, disk, chunks) and exit, like qvg plan.")
    ] = False
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            "--card",
            metavar="NAME|SIZE",
            help='With --dry-run: GPU to plan for, e.g. "RTX 4090" or 24GiB [default: the GPU of this '
            "machine].",
            show_default=False,
            rich_help_panel=RUN,
            autocompletion=complete_cards,
        ),
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Resume the run in FOLDER after its last complete chunk, with its own settings.",
            show_default=False,
            rich_help_panel=RUN,
            autocompletion=complete_runs,
        ),
    ] = None
    json_: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object per video, with paths and statistics, to stdout.",
            rich_help_panel=OUTPUT,
        ),
    ] = False

    def check(self) -> None:
        """Refuse what has no effect."""
        if self.out.suffix in (".mp4", ".mkv", ".webm"):
            raise UsageError(
                f"--out {self.out} looks like a file",
                hint="--out takes a folder; the video in it is video.mp4",
            )
        if self.gpu is not None and not self.dry_run:
            raise UsageError("--gpu has no effect without --dry-run", hint="use qvg plan instead")


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also print the log, with timings (QVG_LOG=debug prints more).",
        rich_help_panel=OUTPUT,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True)
class OutputOptions(Options):
    """What is said while a command works. The program reads `verbose` and `debug` before the command runs."""

    quiet: Quiet = False
    verbose: Verbose = False
    debug: Debug = False


@dataclass(frozen=True)
class FamilyOptions(Options):
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


class ExtendFamilyOptions(FamilyOptions):
    """Those of families that go on from a video."""

    command = "extend"


class PlayFamilyOptions(FamilyOptions):
    """Those of a video that is played."""

    command = "play"


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each of its parameters that is a group of options in place of the group."""
    groups: dict[str, type[Options]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
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
    option = typer.Option(
        first.flag, metavar=first.metavar, help=first.help, show_default=False, rich_help_panel=FAMILY_PANEL
    )
    annotation = list[kind] | None if first.is_repeatable else kind | None  # type: ignore[valid-type]
    return _keyword(_name(first.flag), Annotated[annotation, option], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _flag(parameter: inspect.Parameter) -> str:
    """The option's name on the command line."""
    for option in parameter.annotation.__metadata__:
        # The first of several is kept where Typer keeps a default.
        if isinstance(option, typer.models.OptionInfo) and isinstance(option.default, str):
            return option.default
    return f"--{parameter.name.replace('_', '-')}"
