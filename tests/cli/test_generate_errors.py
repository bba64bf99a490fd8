"""A request that cannot be carried out: one message with value, limit and remedy, and its exit code."""

import pytest


def assert_refused(result, code, message, hint=None):
    expected = f"error: {message}\n" + (f"\nhint: {hint}\n" if hint else "")
    shown = result.stderr[result.stderr.index("error: ") :]
    assert (result.exit_code, shown, result.stdout) == (code, expected, "")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            ["  "],
            "the prompt is empty",
            'describe the video, e.g. qvg generate "a red ball bounces"',
        ),
        (["a", "--prompts", "p.txt"], "PROMPT and --prompts were both given", "put the prompt in the file"),
        (["--seconds", "1", "--frames", "9"], "--seconds and --frames were both given", "use one of them"),
        (["--frames", "0"], "--frames 0 is not a valid length", "the shortest video has 1 frame"),
        (["--size", "224x128", "--width", "208"], "--size and --width were both given", "use one of them"),
        (
            ["--guidance-scale", "3"],
            "--guidance-scale is not an option of this model",
            "use --backend with a model that has it",
        ),
        (["--steps", "0"], "--steps 0 is not a valid number of denoising steps", "use 1 to 1000"),
        (["--set", "video.frames=20"], "20 latent frames (77 pixel frames) do not fit chunks of 3; nearest: "
         "18 (69 pixel frames), 21 (81 pixel frames)", None),
        (["--size", "480"], "--size 480 is not of the form WIDTHxHEIGHT", "e.g. --size 832x480"),
        (["--size", "224x100"], "height 100 is not a multiple of 16; nearest: 96, 112", None),
        (["--size", "224x0"], "video.height=0 (--size): must be greater than 0", None),
        (["--cache", "int2qvg"], "unknown cache preset 'int2qvg' (--cache)", ...),
        (["--backend", "selfforcing"], "unknown backend 'selfforcing'", ...),
        (["--fps", "100000"], "video.fps=100000 (--fps): must be less than or equal to 1000", None),
        (["--set", "video.fp=3"], "unknown setting video.fp (--set video.fp)", "nearest: video.fps"),
        (["--seed", "-1"], "seed=-1 (--seed): must be greater than or equal to 0", None),
        (
            ["--out", "x.mp4"],
            "--out x.mp4 looks like a file",
            "--out takes a folder; the video in it is video.mp4",
        ),
        (["--device", "gpu"], "unknown device 'gpu'", "use auto, cpu, cuda, cuda:0, cuda:1, ..."),
        (["--config", "no.yaml"], "cannot read no.yaml: No such file or directory", None),
        (["--prompts", "no.txt"], "cannot read no.txt: No such file or directory", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_usage(qvg, tmp_path, monkeypatch, arguments, message, hint):
    monkeypatch.chdir(tmp_path)
    result = qvg("generate", *arguments)
    if hint is ...:
        hint = result.stderr.partition("hint: ")[2].removesuffix("\n")
        assert hint
    assert_refused(result, 2, message, hint)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(qvg, tmp_path):
    result = qvg("generate", "--device", "cuda:99", "--out", tmp_path)
    assert result.exit_code == 2
    assert "error: device 'cuda:99' is not available: " in result.stderr


def test_a_prompt_file_without_a_good_line_is_refused(qvg, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('\n{"prmpt": "x"}\n')
    assert_refused(
        qvg("generate", "--prompts", file, "--out", tmp_path / "out"),
        2,
        f"{file} line 2: no text under prompt",
        'a line looks like {"prompt": "...", "seed": 7}',
    )
    assert not (tmp_path / "out").exists()


def test_a_trap_in_the_users_file_is_named_by_line(qvg, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\nsampler:\n  shift: 5e0\n")
    assert_refused(
        qvg("generate", "--config", file),
        2,
        f"{file} line 3: 5e0 is ambiguous: YAML 1.1 reads it as text",
        "write a plain number such as 1500, 0.0001 or 1.0e-4, or '5e0' for text",
    )


def test_a_folder_that_cannot_be_written(qvg, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(
        qvg("generate", "--out", tmp_path / "file"),
        2,
        f"cannot write to {tmp_path}/file/self-forcing: Not a directory",
        "use another folder with --out",
    )


def test_missing_weights(qvg, tmp_path):
    result = qvg("generate", "--set", f"model.weights={tmp_path}/none", "--out", tmp_path / "out")
    assert_refused(
        result,
        3,
        f"no weights at {tmp_path}/none",
        "use --pocket for the built-in demo weights, or --set model.weights=FOLDER for your own",
    )
    assert not list((tmp_path / "out").rglob("*.*"))


def test_this_folder_is_no_name(qvg):
    result = qvg("generate", "--set", "model.weights=.")
    assert (result.exit_code, "error: . does not contain a model" in result.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--lora", "no.safetensors"], 3, "no adapter at no.safetensors"),
        (["--cache", "int2-shaped", "--set", "cache.matrices=no.safetensors"], 2, "there is no such file"),
        (["--cache", "int2-shaped", "--set", "cache.matrices=prompts.txt"], 2, "cannot read the matrices"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_before_the_model_is_loaded(
    qvg, tmp_path, monkeypatch, arguments, exit_code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    result = qvg("generate", *arguments, "--out", tmp_path / "out")
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr
    assert "loading" not in result.stderr


def test_missing_ffmpeg(qvg, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert_refused(
        qvg("generate", "--out", tmp_path),
        3,
        "no ffmpeg at /nowhere/ffmpeg",
        "install the package imageio-ffmpeg, which contains it, or set IMAGEIO_FFMPEG_EXE",
    )
    assert not list(tmp_path.iterdir())


def test_an_unknown_option(qvg):
    result = qvg("generate", "--second", "3")
    assert result.exit_code == 2
    assert "--seconds" in result.stderr


def test_debug_shows_where_and_keeps_the_exit_code(qvg, capfd):
    result = qvg("generate", "--size", "3", "--debug")
    assert result.exit_code == 2
    shown = result.stderr + capfd.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "error: --size 3 is not of the form WIDTHxHEIGHT" in shown
