# The interpreter that makes .venv, the versions and extras it installs, and further arguments for pytest.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# pip would compile 18,000 files, most of which are never imported. Python compiles what it imports, unless it is told not
# to keep the result.
unexport PYTHONDONTWRITEBYTECODE
# Newer than its two sources exactly when .venv holds what they ask for, with these extras.
READY := $(VENV)/.ready-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint cards docs verify benchmark

help:
	@echo "make demo       train a small VAE on real digits and show it: runs/demo/"
	@echo "make test       run the tests but the slow ones (no network; ARGS=\"-k vae\" is passed to pytest)"
	@echo "make test-all   run all tests, those that start processes and train for long too"
	@echo "make lint       ruff check, ruff format --check, lint-imports, pyright"
	@echo "make cards      render model_cards/, docs/results.md and the README's table from the results.json files"
	@echo "make docs       build the site of README, docs/, cards and API in site/; a broken link fails it"
	@echo "make verify     score the published weights again (ROWS=\"vae_digits ...\" names some)"
	@echo "make benchmark  measure speed; prints tables, writes JSON"
	@echo
	@echo "Each of them first makes .venv if it is missing or older than pyproject.toml and constraints.txt."
	@echo "Another interpreter: make test PYTHON=python3.12. Other versions: make test CONSTRAINTS=my-constraints.txt."
	@echo "With the tests of the demo, in Chromium where there is one: make test EXTRAS=dev,browser."

$(VENV)/.ready-%: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 10) and sys.exit(f"python>=3.10 is needed, {sys.executable} is {v.major}.{v.minor}; name another one with make PYTHON=...")'
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing torch: the largest part, this can take some minutes"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c $(CONSTRAINTS) torch
	@echo "Installing hf-latentgen and its development tools"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$*]"
	@touch $@
	@echo "$(VENV) is ready"

demo: $(READY)
	@$(BIN)/python scripts/demo.py

# Two workers, because the time limit is set for two cores; one file stays with one worker, so its fixtures are made once.
# tests/conftest.py orders the files.
TEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	@$(TEST) -m "not slow" $(ARGS)

test-all: $(READY)
	@$(TEST) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyright

cards: $(READY)
	@$(BIN)/python scripts/cards.py

docs: $(READY),docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is in site/index.html"

verify: $(READY)
	@$(BIN)/hf-latentgen verify $(ROWS)

benchmark: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done
