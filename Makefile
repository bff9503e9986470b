# Each target makes its environment when it is missing. PYTHON chooses the interpreter.
PYTHON ?= python3.11
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev,docs,gguf,notebooks
BIN := $(VENV)/bin
WORKERS ?= 2
# Every worker has one core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
STAMP := $(VENV)/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# A type check that fails raises, so what passes with it passes without it too, but where a test expects an error: without
# the check run the tests that speak of one (marked by tests/conftest.py). Of those these expect none that a check could
# raise first: source text, pages, damaged files, the command line's options, and studies through the public names.
TYPED_ONLY := tests/test_style.py tests/test_directories.py tests/test_damaged_artifacts.py tests/analyses tests/report \
  tests/cli/test_bad_values.py tests/cli/test_demo.py tests/notebooks

# What `make models` fetches into the model cache.
MODELS ?= smollm2 gemma3-270m

.PHONY: install test test-untyped models demo demo-llm notebooks $(NOTEBOOKS) docs wheel-test lint bench mutants clean

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@

install: $(STAMP)

# All but the tests marked plain.
test: $(STAMP)
	$(PYTEST)

# Without the run-time check of shapes and types, as users run the package: what is handed in meets the package's own
# checks first. With the tests marked plain.
test-untyped: $(STAMP)
	$(PYTEST) -m "(refusal or plain) and not real and not llm" $(addprefix --ignore=,$(TYPED_ONLY)) \
	  -o addopts="-q -rfE --strict-markers --strict-config"

models: $(STAMP)
	$(BIN)/lens-steer get $(MODELS)

demo: $(STAMP)
	$(BIN)/lens-steer demo

# Needs `make models`, or MODELS=smollm2 of it.
demo-llm: $(STAMP)
	$(BIN)/lens-steer demo --model smollm2

# `make --jobs 2 notebooks demo` runs two at a time.
notebooks: $(NOTEBOOKS)

$(NOTEBOOKS): $(STAMP)
	$(BIN)/jupyter-execute $@

# A warning, such as a link that leads nowhere within the site, is an error. LENS_STEER_DOCS_ONLINE=1 links names of other
# projects to their own documentation.
docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --builder html --nitpicky --fail-on-warning --quiet docs docs/_build/html

wheel-test: $(STAMP)
	BIN=$(BIN) .ci/wheel

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

# Hours: mutates statistics/, ranking/, effects/ and report/ one place at a time and asks whether a test notices. ONLY
# narrows it to the mutants of a pattern, such as ONLY="lens_steer.statistics.verdict*"; results are kept in mutants/ and resumed.
mutants: $(STAMP)
	$(BIN)/mutmut run $(ONLY)
	$(BIN)/mutmut export-cicd-stats
	$(BIN)/mutmut results

clean:
	rm -rf $(VENV) .venv-compat docs/_build docs/notebooks .pytest_cache .mypy_cache .ruff_cache
