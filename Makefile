# Each target works alone on a fresh clone. On a machine without a GPU, PIP_ARGS can point pip at a CPU build
# of torch, which is much smaller: make demo PIP_ARGS="--find-links FOLDER".
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-slow test-browser lint fix docs build size

demo: $(VENV)/run.stamp  ## one video from the built-in pocket model, with its memory report
	$(BIN)/qvg generate

test: $(VENV)/dev.stamp  ## every quick test, offline
	$(BIN)/pytest -n 2 -m "not slow and not gpu and not browser"
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 tests/interpreter

test-slow: $(VENV)/dev.stamp
	$(BIN)/pytest -m "slow and not gpu and not browser"

test-browser: $(VENV)/dev.stamp  ## the page of qvg play in a Chromium: the distribution's, or QVG_CHROMIUM
	$(INSTALL) --editable ".[browser]"
	$(BIN)/pytest -m browser

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/codespell qvg_cli kernels docs tests scripts *.md

fix: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(VENV)/dev.stamp  ## docs/cli.md from the --help of every command
	$(BIN)/python scripts/write_cli_docs.py

build: $(VENV)/dev.stamp  ## the wheel, into dist/
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

size:  ## lines of each Python file of the library
	find qvg_cli kernels/qvg_kernels -name '*.py' | xargs wc -l | sort -n

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[dev]"
	touch $@ $(VENV)/run.stamp
