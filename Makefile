# Every target first makes the environment if it is missing: .venv, an active conda environment, or VENV=path.
# On a fresh machine `make lab` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV   ?= $(or $(CONDA_PREFIX),.venv)
STAMP  := $(VENV)/.flowlib-installed
BIN    := $(VENV)/bin
export OMP_NUM_THREADS ?=

.DEFAULT_GOAL := help
.PHONY: help lab test notebooks results bench lint clean

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

