# Every target prepares what it needs: a fresh machine with Python >= 3.11 and a C++ compiler is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sparseflow-stamp

.PHONY: env emulator quickstart test test-slow coverage snapshots operators fuzz check format docs bench clean

env: $(STAMP)

$(STAMP): pyproject.toml tools/install_env.sh
	PYTHON=$(PYTHON) VENV=$(VENV) bash tools/install_env.sh
	touch $(STAMP)

quickstart: env
	$(BIN)/sparseflow quickstart --out runs/quickstart

test: env
	$(BIN)/python -m pytest -m "not slow" -n auto

test-slow: env
	$(BIN)/python -m pytest -m slow -n auto

# Lines and branches that the fast tests run, as a table; build/coverage/index.html shows them in the source.
coverage: env
	$(BIN)/python -m pytest -m "not slow" -n auto --cov --cov-report=term --cov-report=html:build/coverage

# Generated code of a few kernels as text: refresh it after a change of code generation, and read the difference.
snapshots: env
	$(BIN)/python -m tests.kernels.snapshots

operators: env
	$(BIN)/python -m tools.operators

# Random networks against torch in float64: make fuzz N=1000 SEED=0; the same command goes on where it was stopped.
N ?= 100
SEED ?= 0
fuzz: env
	$(BIN)/python -m tools.fuzz --count $(N) --seed $(SEED)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A cross compiler, an emulator and TVM's runtime for aarch64; without them the aarch64 tests are skipped.
emulator: env
	PYTHON=$(BIN)/python bash tools/aarch64.sh

# A warning (a broken link, an unreadable docstring) is an error. Opens as build/docs/index.html.
docs: env
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs

bench: env
	$(BIN)/python benchmarks/whole_networks.py

clean:
	rm -rf $(VENV) runs build dist
