"""Options are declared once: what a family declares is on every command, and no option of 0.1 is lost."""

import re
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from qvg_cli.commands.generate import generate
from qvg_cli.commands.options import with_options
from qvg_cli.config.load import Request
from qvg_cli.config.options import FamilyOption
from qvg_cli.main import _Command, app
from qvg_cli.models import registry
from qvg_cli.models.longcat.family import LongCat
from qvg_cli.models.registry import find_family, load_config
from qvg_cli.models.self_forcing.family import SelfForcing

DOCUMENTED = {
    "clean": ("--out= --yes --json --debug"),
    "compare": (
        "--prompt= --prompts= --seed= --seeds= --backend= --pocket --seconds= --frames= --size= "
        "--pose= --pad-pose= --image= --context= --window= --sink= --lpips --resume= --out= "
        "--device= --config= --set= --json -q --quiet -v --verbose --debug"
    ),
    "doctor": ("--out= --json --debug"),
    "download": ("--list --dry-run --revision= -q --quiet -v --verbose --debug"),
    "extend": (
        "--backend= --pocket --cache= --seconds= --frames= --segments= --size= --window= --sink= "
        "--seed= --prompts= --schedule= --resume= --out= --dry-run --card= --device= --config= "
        "--set= --json -q --quiet -v --verbose --debug"
    ),
    "generate": (
        "--backend= --pocket --cache= --seconds= --frames= --segments= --size= --pose= --pad-pose= "
        "--image= --context= --window= --sink= --seed= --prompts= --schedule= --shard= --resume= "
        "--out= --dry-run --card= --device= --config= --set= --json -q --quiet -v --verbose --debug"
    ),
    "plan": (
        "--cache= --card= --backend= --pocket --seconds= --frames= --segments= --size= --pose= "
        "--pad-pose= --image= --context= --window= --sink= --device= --config= --set= --json -q "
        "--quiet --debug"
    ),
    "show": ("--out= --gallery= --json --debug"),
}
"""Commands and options of docs/cli.md at version 0.1; those with = take a value."""
VALUES = {"--seconds": "1", "--frames": "9", "--segments": "1", "--seed": "1", "--seeds": "1", "--sink": "1"}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_option_of_the_first_version_is_still_read(name):
    command = typer.main.get_command(app).commands[name]
    for option in DOCUMENTED[name].split():
        flag, is_valued, _ = option.partition("=")
        given = VALUES.get(flag, "x")
        with command.make_context(name, [flag, *([given] if is_valued else [])]) as context:
            (parameter,) = [each for each in command.params if flag in each.opts]
            value = context.params[parameter.name]
        if parameter.multiple:
            (value,) = value
        assert str(value) == (given if is_valued else "True") or value == float(given)


class _Declares(SelfForcing):
    """A family that declares one more option, and does nothing else for it."""

    options = (
        *SelfForcing.options,
        FamilyOption("--context-noise", "sampler.context_noise", "Noise of the clean pass.", "STEP", float),
    )


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setitem(registry.FAMILIES, "self-forcing", _Declares)
    program = typer.Typer(rich_markup_mode=None)
    program.callback()(lambda: None)
    program.command(cls=_Command)(with_options(generate.__wrapped__))
    return lambda *arguments: CliRunner().invoke(program, ["generate", *arguments])


def test_an_option_is_one_declaration(program):
    told = program("--help").stdout
    section = told.partition("Options of self-forcing:")[2].partition("Options of hyworldplay:")[0]
    assert "--context-noise STEP" in section
    assert "Noise of the clean pass." in section
    result = program("a", "--dry-run", "--context-noise", "2000")
    assert "sampler.context_noise=2000.0 (--context-noise): must be less than" in result.stderr
    assert program("a", "--dry-run", "--context-noise", "3").exit_code == 0


def test_a_family_without_the_option_refuses_it_by_name(program):
    result = program("a", "--dry-run", "--backend", "longcat", "--pocket", "--context-noise", "3")
    assert result.exit_code == 2
    assert "--context-noise is not an option of this model" in result.stderr


def test_help_shows_what_most_need_first_and_the_rest_by_purpose():
    lines = CliRunner().invoke(app, ["generate", "--help"]).stdout.splitlines()
    titles = [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments", "Options", "Length and size", "Prompts", "Options of self-forcing",
        "Options of hyworldplay", "Options of longcat", "Runs", "Device and settings", "Output",
    ]  # fmt: skip
    first = lines[lines.index("Options:") : lines.index("Length and size:")]
    flags = [line.split()[0] for line in first if line.startswith("  -")]
    assert flags == [
        "--backend",
        "--pocket",
        "--seconds",
        "--size",
        "--seed",
        "--cache",
        "-o,",
        "--dry-run",
        "-h,",
    ]


def test_extend_has_no_option_of_what_a_video_begins_with():
    told = CliRunner().invoke(app, ["extend", "--help"]).stdout
    assert "--sink" in told
    assert "--guidance-scale" in told
    assert "--image" not in told
    assert "--pose" not in told


def test_generic_options_set_what_a_family_has():
    def settings(*arguments):
        result = CliRunner().invoke(app, ["plan", *arguments, "--json", "--device", "cpu"])
        assert result.exit_code == 0, result.stderr
        return result

    told = settings("--height", "96", "--width", "160", "--fps", "8", "--num-frames", "10", "--steps", "2")
    assert '"height": 96, "width": 160, "fps": 8' in told.stdout
    assert '"pixel_frames": 21' in told.stdout
    assert "--frames 10 rounded up to 21" in told.stderr


def test_an_option_without_effect_is_refused():
    arguments = [
        "plan",
        "--backend",
        "longcat",
        "--pocket",
        "--set",
        "sampler.mode=distilled",
        "--steps",
        "9",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--steps has no effect with sampler.mode=distilled" in result.stderr
    assert "it needs sampler.mode=guided" in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("qvg generate --backend lo", "longcat"),
        ("qvg generate --cache int2-", "int2-qvg"),
        ("qvg plan --card 'RTX 5", "RTX 5090"),
        ("qvg show ", "results/self-forcing/one-seed0"),
        ("qvg generate --resume results/s", "results/self-forcing/one-seed0"),
        ("qvg compare bf", "bf16"),
    ],
)
def test_a_shell_completes_names(tmp_path, monkeypatch, words, expected):
    folder = tmp_path / "results" / "self-forcing" / "one-seed0"
    folder.mkdir(parents=True)
    (folder / "run.yaml").touch()
    monkeypatch.chdir(tmp_path)
    asked = {"_QVG_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    result = CliRunner().invoke(app, [], env=asked, prog_name="qvg")
    assert expected in result.stdout


def test_steps_are_spaced_evenly():
    (option,) = [each for each in SelfForcing.options if each.flag == "--steps"]
    assert option.read(4) == (1000, 750, 500, 250)
    (option,) = [each for each in LongCat.options if each.flag == "--steps"]
    assert replace(option, needs=None).read("30") == 30


@pytest.mark.parametrize("family", ["self-forcing", "hyworldplay", "longcat"])
def test_defaults_in_help_are_those_of_the_model(family):
    config = load_config(Request(backend=family)).config.model_dump()
    options = {option.setting: option.help for option in find_family(family).options}
    told = {name: said for name, text in options.items() for said in re.findall(r"\[default: ([^],]+)", text)}
    words = ("absolute positions", "the list of the authors")
    told = {name: said for name, said in told.items() if said not in words}
    assert len(told) >= 2
    for name, said in told.items():
        section, _, setting = name.partition(".")
        value = config[section][setting]
        shown = "all" if value is None else len(value) if isinstance(value, tuple) else value
        assert (f"{shown:g}" if isinstance(shown, float) else str(shown)).startswith(said), name
