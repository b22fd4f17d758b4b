# make demo   the main job: from budgets to a size, on the source text of Python's own standard library
# make test   all tests        make check   ruff and mypy        make clean   remove the environment and what tools left
# Needs only Python >= 3.11 and make; the first call makes .venv. Another Python: make test PYTHON=python3.12
.DEFAULT_GOAL := help
.PHONY: help install demo test check clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
DEMO := outputs/gpt-python
WORKERS ?= 2

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)

# torch first and by itself: it is the one large download, and a wrong build shows before anything else is installed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'flops-fit needs Python >= 3.11: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'this Python cannot make environments (ensurepip is missing): on Debian, apt-get install python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV) (a minute or more the first time)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[train,data,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/flops-fit find gpt-python --output $(DEMO)

# one thread a worker: several on a core wait for each other longer than they work
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
