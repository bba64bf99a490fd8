# Each target works alone on a fresh clone. On a machine without a GPU, PIP_ARGS can point pip at a CPU build
# of torch, which is much smaller: make demo PIP_ARGS="--find-links FOLDER".
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-slow test-ray test-browser lint fix docs docs-check docs-pictures docs-site docs-screenshots build size

demo: $(VENV)/run.stamp  ## one video from the built-in pocket model, with its memory report
	$(BIN)/qvg generate

test: $(VENV)/dev.stamp  ## every quick test, offline
	$(BIN)/pytest -n 2 --dist loadscope -m "not slow and not gpu and not browser and not ray"
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m "not slow" tests/interpreter

test-slow: $(VENV)/dev.stamp
	$(BIN)/pytest -m "slow and not gpu and not browser and not ray"
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m slow tests/interpreter

test-ray: $(VENV)/dev.stamp  ## qvg batch on a real Ray on this machine
	$(INSTALL) --editable ".[ray]"
	$(BIN)/pytest -m ray

test-browser: $(VENV)/dev.stamp  ## the page of qvg play in a Chromium: the distribution's, or QVG_CHROMIUM
	$(INSTALL) --editable ".[browser]"
	$(BIN)/pytest -m browser

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/codespell qvg_cli kernels docs tests scripts *.md && $(BIN)/hadolint Dockerfile

fix: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(VENV)/dev.stamp  ## docs/cli.md from the --help of every command, tables from qvg plan
	$(BIN)/python scripts/write_cli_docs.py
	$(BIN)/python -m scripts.docs.write_tables

docs-check: $(VENV)/dev.stamp  ## whether they are up to date
	$(BIN)/python scripts/write_cli_docs.py --check
	$(BIN)/python -m scripts.docs.write_tables --check

docs-pictures: $(VENV)/dev.stamp  ## the README's badges, animation and plots
	$(BIN)/python -m scripts.docs.draw_badges docs/images
	$(BIN)/python -m scripts.docs.draw_demo docs/images/demo.webp
	$(BIN)/python -m scripts.docs.draw_memory_plot docs/images/why-two-bits.png
	$(BIN)/python -m scripts.docs.draw_codec docs/images/codec.png

docs-site: $(VENV)/docs.stamp  ## the documentation as a site, into build/site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-screenshots: docs-site  ## its pages at desktop and phone width, into build/screenshots/; needs Chromium
	$(BIN)/python -m scripts.docs.take_screenshots build/screenshots

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

$(VENV)/docs.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[docs]"
	touch $@ $(VENV)/run.stamp
