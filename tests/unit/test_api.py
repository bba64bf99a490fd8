"""The Python API does what docs/api.md shows, and importing it loads nothing heavy."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import qvg_cli as qvg
from qvg_cli.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.mark.slow
def test_the_page_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A fence ends the output that an example is expected to print.
    text = PAGE.read_text(encoding="utf-8").replace("```", "\n")
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) > 20
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(examples, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert len(list(Path("frames").iterdir())) == 21
    assert Path("ball.mp4").stat().st_size > 0


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, qvg_cli as qvg; assert {'Engine', 'plan', 'compare'} <= set(dir(qvg));"
        "heavy = ('torch', 'numpy', 'pydantic', 'rich'); print([x for x in heavy if x in sys.modules]);"
        "qvg.plan(seconds=1); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "False"]


def test_a_name_that_it_has_not_is_told():
    with pytest.raises(AttributeError, match="has no attribute 'Enjine'"):
        qvg.Enjine  # noqa: B018, the look-up is what raises


def test_a_plan_is_the_text_of_the_command(capfd):
    from typer.testing import CliRunner

    from qvg_cli.main import app

    told = CliRunner().invoke(app, ["plan", "--seconds", "2", "--card", "24GiB", "--quiet"]).stdout
    plan = qvg.plan(seconds=2, card="24GiB")
    assert told == f"{plan}\n"
    assert (plan.verdict, plan.suggestions) == ("fits", {})


@pytest.mark.parametrize("name", ["Engine.generate", "Engine.extend", "Engine.session", "plan", "compare"])
def test_every_function_says_what_it_takes_and_raises(name):
    function = qvg
    for part in name.split("."):
        function = getattr(function, part)
    for section in ("Args:", "Raises:", "Example:"):
        assert section in function.__doc__


@pytest.mark.parametrize(
    ("call", "message", "nearest"),
    [
        (lambda: qvg.plan(gpu="24GiB"), r"plan\(\) has no argument gpu", "gpus"),
        (lambda: qvg.plan(windw=12), r"plan\(\) has no argument windw", "window"),
        (lambda: qvg.compare(None, [], framez=9), r"compare\(\) has no argument framez", "frames"),
        (lambda: qvg.Engine.session(None, "x", sed=9), r"session\(\) has no argument sed", "seed"),
    ],
)
def test_an_unknown_keyword_is_told_with_the_nearest(call, message, nearest):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert caught.value.hint.startswith(f"nearest: {nearest}; known: ")


def test_a_loaded_model_is_not_another(tmp_path):
    engine = qvg.Engine.load(pocket=True, device="cpu")
    with pytest.raises(UsageError, match="settings of memory are fixed when the model is loaded"):
        qvg.compare(engine, ["bf16", "int2"], frames=9, settings={"memory.vae": "model"}, out=tmp_path)
    assert not list(tmp_path.iterdir())
