# make demo and make test are the two commands that matter; make help lists the rest.

VENV ?= .venv
OUT ?= out/demo
CASE ?= int8
# Passed on to pip, for example PIP_FLAGS="--constraint FILE".
PIP_FLAGS ?=
# Test processes: the number of cores, at most four. The tests of a file share one, and what it has
# compiled and run for them.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	if [ $$n -gt 4 ]; then n=4; fi; echo $$n)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)
READY := $(VENV)/.ready
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# Exits 0 where a Python can carry the project; the second also names it.
USABLE := import sys; assert sys.version_info >= (3, 11); import pip
CAPABLE := import sys; assert sys.version_info >= (3, 11); import ensurepip, venv; \
	print(sys.executable + " (Python %d.%d.%d)" % sys.version_info[:3])

export PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-full lint format bench report notebooks docs clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## all three methods; the report goes to OUT (default out/demo)
	$(BIN)/python -m experiments demo --out "$(OUT)"

test: $(READY) ## the tests, without the slow ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-full: $(READY) ## all tests, the slow and wide ones too
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m ""

lint: $(READY) ## ruff (lint and format) and pyrefly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(READY) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## the benchmark CASE (default int8); numbers go to out/bench
	@mkdir -p out/bench
	$(BIN)/python -m benchmarks $(CASE) --json out/bench/$(CASE).json

report: $(READY) ## write README, docs and the claims anew from committed results
	$(BIN)/python -m benchmarks.readme
	$(BIN)/python -m benchmarks.rate.report
	$(BIN)/python -m experiments report

notebooks: $(VENV)/.ready-notebooks ## execute every notebook, keep no output
	@test -n "$(NOTEBOOKS)" || { echo "no notebooks found in notebooks/" >&2; exit 1; }
	@set -e; for notebook in $(NOTEBOOKS); do \
		echo "executing $$notebook"; \
		JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter-execute --timeout=600 "$$notebook"; \
	done

docs: $(VENV)/.ready-docs ## the documentation, in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

setup: $(READY) ## make VENV (default .venv) and install what the other commands need
	@echo "$(VENV) is ready ($$($(BIN)/python --version))"

# A changed pyproject.toml installs again. PYTHON chooses the interpreter of a new environment.
$(READY): pyproject.toml
	@if "$(BIN)/python" -c '$(USABLE)' >/dev/null 2>&1; then exit 0; fi; \
	if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; \
	else set -- python3.13 python3.12 python3.11 python3; fi; \
	for candidate in "$$@"; do \
		if found=$$("$$candidate" -c '$(CAPABLE)' 2>/dev/null); then \
			echo "making $(VENV) with $$found"; \
			exec "$$candidate" -m venv --clear "$(VENV)"; \
		fi; \
	done; \
	if [ -n "$$PYTHON" ]; then \
		echo "PYTHON=$$PYTHON is not usable: set it to a Python 3.11 or newer that has venv and ensurepip." >&2; \
	else \
		echo "no usable Python found: install Python 3.11 or newer with venv (on Debian the package python3-venv), or set PYTHON to one." >&2; \
	fi; \
	exit 1
	@echo "installing tinyjax and its tools into $(VENV) (the first time takes a few minutes)"
	@$(PIP) --editable '.[experiments,dev]'
	@touch $@

$(VENV)/.ready-%: $(READY)
	@echo "installing what $* needs into $(VENV)"
	@$(PIP) --editable '.[$*]'
	@touch $@

clean: ## remove the environments, caches and built files; results in out/ stay
	rm -rf .venv .venv-py311 build dist docs/_build docs/api/generated
	rm -rf .pytest_cache .ruff_cache .hypothesis .pyrefly_cache *.egg-info
	find tinyjax experiments benchmarks tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
