# Each target makes its environment when it is missing. PYTHON chooses the interpreter.
PYTHON ?= python3.11
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
WORKERS ?= 2
STAMP := $(VENV)/.installed

# What `make models` fetches into the model cache.
MODELS ?= smollm2 gemma3-270m

.PHONY: test test-untyped models demo notebooks lint bench mutants clean

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev,gguf,notebooks]'
	touch $@

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

# The same tests without the run-time check of shapes and types, as users run the package.
test-untyped: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -o addopts="-q -rfE --strict-markers --strict-config" -m "not real and not llm"

models: $(STAMP)
	$(BIN)/lens-steer get $(MODELS)

demo: $(STAMP)
	$(BIN)/lens-steer demo

notebooks: $(STAMP)
	$(BIN)/jupyter-execute notebooks/*.ipynb

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

# Hours: mutates statistics/, ranking/ and effects/ one place at a time and asks whether a test notices. ONLY narrows it
# to the mutants of a pattern, such as ONLY="lens_steer.statistics.verdict*"; results are kept in mutants/ and resumed.
mutants: $(STAMP)
	$(BIN)/mutmut run $(ONLY)
	$(BIN)/mutmut export-cicd-stats
	$(BIN)/mutmut results

clean:
	rm -rf $(VENV) .venv-compat .pytest_cache .mypy_cache .ruff_cache
