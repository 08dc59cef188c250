# Every target first makes its environment if that is missing: .venv, an active conda environment, or VENV=path.
PYTHON ?= python3
CONDA  := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
VENV   ?= $(or $(CONDA),.venv)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.flowlib-installed
PYTEST := $(BIN)/python -m pytest
NBVAL  := --nbval-lax --nbval-current-env --nbval-cell-timeout=120

.DEFAULT_GOAL := help
.PHONY: help lab test browser-test notebooks train results bench lint clean

help: ## this list
	@awk -F ' *: .*## | *: ## |:.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

lab: $(STAMP) ## open the series in JupyterLab
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

test: $(STAMP) ## unit tests, then every notebook and solution, on short budgets
	FLOWLIB_FAST=1 OMP_NUM_THREADS=1 $(PYTEST) $(NBVAL) -n 2 --dist loadfile --durations=10 --ignore=tests/browser tests notebooks

browser-test: $(STAMP) ## the sliders of every notebook in JupyterLab in Chromium; skipped where there is no Chromium
	-$(BIN)/python -m pip install --quiet --editable '.[browser]'
	FLOWLIB_FAST=1 OMP_NUM_THREADS=1 $(PYTEST) -rs tests/browser

notebooks: $(STAMP) ## execute in full the notebooks that changed (ALL=1: every one) and store their outputs
	$(BIN)/python notebooks/execute.py $(if $(ALL),--all)

train: $(STAMP) ## train a recipe, or go on with it: make train DATASET=mnist_small
	$(BIN)/python -m flowlib train $(or $(DATASET),mnist_small) --resume

results: $(STAMP) ## train the shipped models that are missing, and write the README's results table
	$(BIN)/python benchmarks/results.py

bench: $(STAMP) ## speed and quality against four other flow libraries; speed of image training
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/toy.py
	$(BIN)/python benchmarks/image.py

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove the environment that make made, and caches
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Made once, and again when pyproject.toml changes.
$(STAMP): pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	    || { echo "flowlib needs Python 3.10 or newer: install one and name it, as in  make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }; \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	    || { echo "this Python has no venv module: on Debian or Ubuntu run  sudo apt install python3-venv"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
