# `make demo` and `make test` do all set-up themselves. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.tare-setup

.PHONY: help setup packages test-packages demo test check lint types imports bench clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: packages $(STAMP)  ## Debian packages (when root), a virtual environment, byte code

packages:
	@scripts/install-packages run

test-packages:
	@scripts/install-packages test
	@scripts/fetch-criu

$(STAMP): pyproject.toml requirements.lock scripts/quick-start
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@# setuptools drops a .pth file into every interpreter start; nothing here needs it
	@$(BIN)/python -m pip uninstall --quiet --yes setuptools 2>/dev/null || true
	@scripts/quick-start $(VENV)
	@touch $@

# Byte code is compiled at set-up: the environment may forbid writing it later, and each start would pay for that.
compile: $(STAMP)
	@$(BIN)/python -m compileall -q -j 0 src $(VENV)/lib >/dev/null 2>&1 || true
	@$(BIN)/python -m compileall -q src

.PHONY: compile

demo: setup compile  ## the main job: an image from our own registry runs as an isolated, limited container
	@$(BIN)/python scripts/demo.py

test: setup test-packages compile  ## every test
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup lint types imports  ## ruff, mypy --strict, import layers

lint:
	@$(BIN)/ruff check src tests bench scripts
	@$(BIN)/ruff format --check src tests bench scripts

types:
	@$(BIN)/mypy

imports:
	@$(BIN)/lint-imports

bench: setup test-packages compile  ## figures beside docker's and podman's
	@$(BIN)/python bench/run.py

clean:           ## remove what set-up and the demo made here
	rm -rf $(VENV) .demo build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
