# Every target first makes its environment if that is missing: .venv, an active conda environment, or VENV=path.
PYTHON ?= python3
CONDA  := $(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX))
VENV   ?= $(or $(CONDA),.venv)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.flowlib-installed
# uv, where there is one, installs faster than pip; UV= on the command line takes pip all the same.
UV     := $(shell command -v uv 2> /dev/null)
PIP    := $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install)
# make lab CPU=1 on the first call: PyTorch without CUDA, from its own index, for machines without an NVIDIA GPU.
CPU    ?=
# What pyproject.toml lists under these names; more than dev, for a site or browser tests, is else installed when needed.
EXTRAS ?= dev
WHEELS := https://download.pytorch.org/whl/cpu
# As measured on Linux, Python 3.11, torch 2.14 and 2.15, two busy cores, a fast mirror (2026-11-26); with CPU=1 an upper
# bound: the same without CUDA's libraries, PyTorch's own wheel not yet the smaller one.
SIZE   := $(if $(CPU),below 0.8 GB to download and 2.2 GB on disk,3.2 GB to download and 6 GB on disk (below 0.8 and 2.2 with CPU=1))
TIME   := $(if $(UV),one minute,four minutes)
FLOORS := .venv-floors
QUICK  := FLOWLIB_FAST=1 OMP_NUM_THREADS=1
PYTEST := -m pytest --ignore=tests/browser
NBVAL  := --nbval-lax --nbval-current-env --nbval-cell-timeout=120 --ignore-glob='notebooks/*.py'
TWO    := -n 2 --durations=10 --dist
PLAYWRIGHT = $(BIN)/python -c 'import playwright' 2> /dev/null || $(PIP) --quiet --editable '.[browser]'

.DEFAULT_GOAL := help
.PHONY: help lab test test-floors browser-test notebooks site site-test train results bench lint clean

help: ## this list
	@awk -F ' *: .*## | *: ## |:.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

lab: $(STAMP) ## open the series in JupyterLab
	@echo 'JupyterLab starts. Without a browser, open the address of 00_start_here.ipynb that it prints; Ctrl-C twice ends it.'
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

test: $(STAMP) ## unit tests, docstrings' examples, every notebook and solution, on short budgets
	$(QUICK) $(BIN)/python $(PYTEST) $(TWO) loadfile --no-loadscope-reorder $(NBVAL) --doctest-modules flowlib tests notebooks

test-floors: $(FLOORS)/installed ## unit tests and a notebook with the oldest versions that pyproject.toml allows
	$(QUICK) $(FLOORS)/venv/bin/python $(PYTEST) $(TWO) loadfile --no-loadscope-reorder $(NBVAL) tests notebooks/02_two_moons.ipynb

browser-test: $(STAMP) ## the sliders of every notebook in JupyterLab in Chromium; skipped where there is no Chromium
	-$(PLAYWRIGHT)
	$(QUICK) $(BIN)/python -m pytest -rs $(TWO) loadscope tests/browser

notebooks: $(STAMP) ## execute in full the notebooks that changed (ALL=1: every one) and store their outputs
	$(BIN)/python notebooks/execute.py $(if $(ALL),--all)

site: build/twins.json ## the book as a web site in build/site, from the stored outputs: no notebook is run again
	@$(BIN)/python -c 'import furo, latex2mathml, myst_nb, ziamath' 2> /dev/null || $(PIP) --quiet --editable '.[site]' \
	  || { echo 'The site was not built: it needs Sphinx and what else pyproject.toml lists under "site", and they could not be installed.'; exit 1; }
	@mkdir -p build/site-source
	$(BIN)/python -m sphinx -q -E -W --keep-going -c site -d build/site-doctrees build/site-source build/site
	@echo 'open build/site/index.html'

site-test: $(STAMP) ## every page of build/site in Chromium; skipped where there is no Chromium or no site
	-$(PLAYWRIGHT)
	$(BIN)/python -m pytest -rs tests/browser/test_site.py

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
	rm -rf .venv $(FLOORS) build .pytest_cache .ruff_cache *.egg-info
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
	@echo 'Installing flowlib and what it needs into $(VENV), only this time, with $(if $(UV),uv,pip).'
	@echo '$(SIZE); $(TIME) where the network is fast.'
	$(if $(CPU),$(PIP) --index-url $(WHEELS) torch torchvision)
	$(PIP) --editable '.[$(EXTRAS)]'
	@mkdir -p $(VENV)/share/jupyter/lab/settings  # sliders are saved with the notebook; no news popup
	@cp .jupyterlab.json $(VENV)/share/jupyter/lab/settings/overrides.json
	@touch $@

# The explorers' pictures for the site, drawn again when a notebook or flowlib changes.
build/twins.json: site/twins.py site/slices.py $(wildcard notebooks/[0-9]*.ipynb notebooks/checkers/*.py flowlib/*.py flowlib/*/*.py) | $(STAMP)
	$(BIN)/python site/twins.py

# The lower bounds of pyproject.toml as exact versions, and an environment of them (Python 3.10 to 3.12).
$(FLOORS)/constraints.txt: pyproject.toml
	@mkdir -p $(@D)
	grep -oE '"[A-Za-z0-9-]+>=[0-9.]+"' $< | tr -d '"' | sed 's/>=/==/' > $@

$(FLOORS)/installed: $(FLOORS)/constraints.txt
	$(PYTHON) -m venv --clear $(FLOORS)/venv
	PIP_CONSTRAINT=$< $(FLOORS)/venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@
