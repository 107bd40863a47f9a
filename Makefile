# `make demo` and `make test` set everything up by themselves; after `make setup`, nothing needs the network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Ranks and workers are processes; each with as many threads as cores they would fight for them.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint setup clean
demo: setup
	@$(BIN)/xmodal demo

test: setup
	@# By files: what a file's tests share (a Ray, an S3 server) is started once. Most of the time is spent waiting.
	@$(BIN)/pytest -n 2 --dist loadfile

lint: setup
	@$(BIN)/ruff format --check --quiet . || { echo "lint: run '$(BIN)/ruff format .'"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

setup: $(STAMP)
	@:

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: $(PYTHON) is older than 3.11; give another: make PYTHON=python3.12"; exit 1; }
	@echo "setup: installing into $(VENV) (some minutes the first time)"
	@# Where Python comes without its `venv` package, the first try leaves an environment that has no pip.
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
		--constraint constraints.txt --editable '.[dev]' > $(VENV)/setup.log 2>&1 \
		|| { tail -n 20 $(VENV)/setup.log; echo "setup: pip failed; all of its output is in $(VENV)/setup.log"; exit 1; }
	@touch $(STAMP)

clean:
	rm -rf $(VENV)
