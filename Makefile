# Everything runs in .venv, made once from the pins in constraints.txt.
PYTHON ?= python3
# More options for pip, such as an index of CPU builds of torch.
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := offline,dev
OUT ?= runs/quickstart
# A worker per core, at most eight, each with one thread; one that is done takes tests from another.
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
# Least share of lines and branches, in percent, that the tests together run.
FLOOR := 95

.DEFAULT_GOAL := help
.PHONY: help install demo test e2e coverage check bench docs pins clean

help: ## Show this list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Create .venv and install what is pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "DynamoRouter needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	       "install one and run: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian: sudo apt install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet $(PIP_FLAGS) --progress-bar off -c constraints.txt \
	  "$$(grep '^torch==' constraints.txt)" -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP) ## Train the quickstart system and let it answer a few texts
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh $(OUT)

test: $(STAMP) ## Run the tests, offline, on all cores; the longest are left out
	$(PYTEST) $(if $(COVER),--cov --cov-append --cov-report=term:skip-covered --cov-fail-under=$(FLOOR))

e2e: $(STAMP) ## Run the longest tests: whole runs, killed as processes or trained to the end
	$(PYTEST) -m e2e $(if $(COVER),--cov --cov-report=)

coverage: ## Run all tests and show which lines and branches none of them runs
	$(MAKE) e2e COVER=yes
	$(MAKE) test COVER=yes

check: $(STAMP) ## Lint, format, types, layers, and the pages that name them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests/docs/test_project_files.py tests/docs/test_rooms.py

bench: $(VENV)/.bench ## Run every benchmark and write benchmarks/results/
	@set -e; for script in benchmarks/*.py; do \
	  case $$script in */_*) continue;; esac; \
	  echo "== $$script"; $(BIN)/python $$script; \
	done

$(VENV)/.bench: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --progress-bar off -c constraints.txt -e ".[offline,dev,bench]"
	@touch $@

docs: $(VENV)/.docs ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --progress-bar off -c constraints.txt -e ".[docs]"
	@touch $@

pins: ## Rewrite constraints.txt from the newest versions
	rm -rf build/pins
	$(PYTHON) -m venv build/pins
	build/pins/bin/pip install --quiet $(PIP_FLAGS) torch -e ".[all,dev,docs]"
	{ head -n 1 constraints.txt; build/pins/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/pins

clean: ## Remove .venv and everything that was built; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
