"""What people try in their first hour: sizes, prompts from a pipe, names in capitals, help, a killed run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qvg_cli.batch.shards import Shard
from qvg_cli.errors import UsageError
from qvg_cli.main import app
from qvg_cli.planning.cards import CARDS, parse_card
from qvg_cli.report.doctor import GIB


@pytest.mark.parametrize("size", ["224x128", "224X128", "224\u00d7128", "224 x 128"])
def test_a_size_is_width_by_height(qvg, size):
    result = qvg("generate", "a red ball", "--size", size, "--frames", 9, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "video: 224x128" in result.stderr
    assert "--size is" not in result.stderr


def test_a_size_that_may_be_written_the_other_way_round_gets_a_word(qvg):
    result = qvg("generate", "a red ball", "--size", "128x224", "--frames", 9, "--dry-run")
    assert "video: 128x224" in result.stderr
    said = "--size is width x height, so this video is portrait; for landscape use --size 224x128"
    assert said in result.stderr.splitlines()


def test_the_example_of_set_in_help_works(qvg):
    [example] = re.findall(r"e\.g\.\s+--set\s+(\S+)\s+\(repeatable\)", qvg("generate", "--help").stdout)
    result = qvg("generate", "a red ball", "--set", example, "--frames", 9, "--dry-run")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("command", "given"),
    [
        *((["generate", "-"], given) for given in ("a red ball\n", "\ufeffa red ball\r\n", "  a red ball")),
        (["compare", "bf16", "int2-qvg", "--prompt", "-"], "a red ball\n"),
    ],
)
def test_a_prompt_comes_from_a_pipe(tiny, tmp_path, given, command):
    arguments = [*command, *tiny.arguments[: -2 if command[0] == "compare" else None], "--frames", "9"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), "--quiet"], input=given.encode())
    assert result.exit_code == 0, result.stderr
    [settings, *_] = tmp_path.rglob("run.yaml")
    assert "\nprompt: a red ball\n" in settings.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "the prompt is empty"),
        (b"caf\xe9", "cannot read the prompt from stdin: it is not UTF-8 text"),
        (b"a\x00b", "the prompt: character 2 is U+0000, a control character"),
    ],
)
def test_a_pipe_without_a_prompt_is_told(given, message):
    result = CliRunner().invoke(app, ["generate", "-"], input=given)
    assert (result.exit_code, f"error: {message}" in result.stderr) == (2, True)


def test_plan_names_the_number_of_its_verdict(qvg):
    result = qvg("plan", "--backend", "self-forcing", "--cache", "int2", "--card", "8GiB")
    [most] = re.findall(r"(?m)^peak +([\d.,]+)", result.stdout)
    [verdict] = re.findall(r"int2: does not fit, ([\d.]+) GiB of", result.stdout)
    assert float(most) / 1024 == pytest.approx(float(verdict), abs=0.05)
    [prompts] = re.findall(r"text encoder +0 +([\d.,]+)", result.stdout)
    assert prompts == most


def test_missing_weights_are_told_before_torch_is_loaded():
    code = (
        "import sys\nfrom qvg_cli.main import main\nsys.argv = ['qvg', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    for command in (["generate", "a"], ["compare", "int2", "bf16"]):
        arguments = [*command, "--backend", "self-forcing"]
        told = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert told.stdout == "3 False\n", told.stderr


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["model.weights=./empty"], "empty does not contain a model: it has no folder vae"),
        (["model.checkpoint=none.pt"], "model.checkpoint=none.pt does not exist"),
    ],
)
def test_a_folder_without_a_model_is_told(tiny, tmp_path, monkeypatch, sets, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    result = tiny("a red ball", *(part for text in sets for part in ("--set", text)))
    assert (result.exit_code, message in result.stderr) == (3, True), result.stderr


def test_a_killed_run_is_shown(start, tiny, qvg, tmp_path):
    before = tiny("a red ball", "--frames", 9, "--out", tmp_path, "--quiet")
    program = start("generate", *tiny.arguments, "a ball", "--frames", 117, "-o", tmp_path)
    for line in program.stderr:
        # The newest may still be being written, and is lost then.
        if line.startswith("chunk 3/"):
            break
    folder = tmp_path / "self-forcing" / "a-ball-seed0"
    assert f"the run in {folder} is in progress, " in qvg("show", "--out", tmp_path).stdout
    program.send_signal(signal.SIGKILL)
    program.communicate()
    made = json.loads(qvg("show", folder, "--json").stdout)
    assert (made["status"], made["prompt"], made["planned_chunks"]) == ("cut off", "a ball", 10)
    assert made["chunks"] >= 2
    said = f"the run in {folder} was interrupted, {made['chunks']} of 10 chunks are complete: 'a ball'; "
    said += f"resume with: qvg generate --resume {folder}"
    assert qvg("show", "-o", tmp_path).stdout == f"{said}\n"
    # A later run is the newest; the killed one is still named.
    os.utime(Path(before.stdout.strip()).parent / "memory.json", (2**32, 2**32))
    result = qvg("show", "-o", tmp_path)
    assert "a red ball" in result.stdout
    assert result.stderr == f"{said}\n"
    assert f"{said}\n" in qvg("show", "--gallery", tmp_path).stderr


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5060 Ti 16GB", "RTX 5060 Ti 16GB"),
        ("A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("6000 Ada", "RTX 6000 Ada"),
        ("Tesla T4", "T4"),
    ],
)
def test_a_card_is_known_as_people_and_drivers_call_it(text, name):
    card = parse_card(text)
    assert (card.name, card.memory_bytes) == (name, CARDS[name] * GIB)


@pytest.mark.parametrize("text", ["a100", "4060 Ti", "RTX 5060 Ti"])
def test_a_card_that_is_sold_with_several_sizes_is_asked_for(text):
    with pytest.raises(UsageError, match="is sold with several memory sizes"):
        parse_card(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a red ball", "--cache", "INT2", "--dry-run"],
        ["generate", "a red ball", "--set", "cache.preset=Int2", "--dry-run"],
        ["generate", "a red ball", "--backend", "Self-Forcing", "--pocket", "--device", "CPU", "--dry-run"],
        ["generate", "a red ball", "--window", "ALL", "--dry-run"],
        ["plan", "--cache", "INT2", "--cache", "BF16"],
        ["plan", "--card", "4090", "--num-frames", "10"],
    ],
)
def test_capitals_make_no_other_name(qvg, arguments):
    result = qvg(*arguments)
    assert result.exit_code == 0, result.stderr


def test_presets_in_capitals_are_arms(tiny, qvg, tmp_path):
    result = qvg("compare", "BF16", "int2-QVG", *tiny.arguments[:-2], "--frames", 9, "-o", tmp_path, "--json")
    assert [arm["name"] for arm in json.loads(result.stdout)["arms"]] == ["bf16", "int2-qvg"], result.stderr


@pytest.mark.parametrize("command", [[], ["generate"], ["show"], ["help"]])
def test_help_is_a_command(qvg, command):
    said = qvg("help", *command)
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.split() == qvg(*command, "--help").stdout.split()


def test_help_for_no_command_names_the_nearest(qvg):
    result = qvg("help", "genrate")
    assert (result.exit_code, "hint: nearest: generate; known: " in result.stderr) == (2, True)


def test_a_part_that_is_being_made_is_not_made_twice(start, tiny, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("red\nball\n")
    arguments = ["--prompts", prompts, "--frames", 9, "--out", tmp_path / "out", "--shard"]
    folder = tmp_path / "out" / "self-forcing"
    folder.mkdir(parents=True)
    with Shard(prompts, 1, 1).hold(folder):
        # As another process would: the lock of this one is another object.
        second = start("generate", *tiny.arguments, *arguments, "1/1")
        _, stderr = second.communicate()
    assert second.returncode == 2
    assert f"error: another qvg process works on --shard 1/1 of {prompts} in {folder}" in stderr
    assert [path for path in folder.iterdir() if not path.name.startswith(".")] == []
    assert tiny(*arguments, "1/1", "--quiet").exit_code == 0
    assert json.loads((folder / "p-1-of-1.json").read_text())["status"] == "complete"
    assert len(list(folder.rglob("video.mp4"))) == 2
