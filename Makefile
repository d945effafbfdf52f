# Everything here sets itself up on a machine with Python 3.11 and nothing else: `make serve` and `make test` are enough.
#
#   make serve ARGS="--port 9000"     options for `switchyard serve`
#   make test ARGS="-k ollama"        options for pytest (and for make slow), which then is one process
#   make test JOBS=6                  how many processes share all tests (3)
#   make PYTHON=/path/to/python3.11   another Python

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help serve demo-traffic test slow check format bench dashboards lock licences clean setup
ARGS ?=
JOBS ?= 3
RUN := .venv/bin/python -m
CODE := router providers tools tests

# The first of these that is a Python 3.11; empty if none is. A version that is named with PYTHON= is taken as it is.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

help: ## list what make can do
	@echo "usage: make TARGET [ARGS=\"...\"]"
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do printf '  %-13s %s\n' "$$name" "$$what"; done

setup:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "make: Python 3.11 is missing: neither python3.11 nor python3 on the PATH is one." >&2; \
	  echo "      Debian/Ubuntu: apt-get install python3.11 python3.11-venv   macOS: brew install python@3.11   any: uv python install 3.11" >&2; \
	  echo "      If it is elsewhere: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@"$(PYTHON)" tools/setup_env.py

serve: setup ## set up if needed, then run the router
	@exec .venv/bin/switchyard serve $(ARGS)

demo-traffic: setup ## a minute of mixed traffic through simulated providers (ARGS="--keep --prometheus" to look at it)
	@$(RUN) tests.demo_traffic $(ARGS)

test: setup ## set up if needed, then run all tests
	@$(RUN) pytest $(or $(ARGS),-n $(JOBS))

slow: setup ## the tests that take minutes: long outages, many rounds, mutations
	@$(RUN) pytest -m slow $(ARGS)

check: setup ## format, lint, types, import layers, documentation
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy $(CODE)
	@.venv/bin/lint-imports --no-cache
	@$(RUN) tools.check_docs
	@$(RUN) tools.metrics_page --check
	@$(RUN) tools.dashboards --check

format: setup ## put the code into its format and sort imports
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

bench: setup ## measure the router beside nginx and two peers (tests/bench/README.md)
	@$(RUN) tests.bench $(ARGS)

dashboards: setup ## write the Grafana boards and the list of alerts anew (docs/dashboards.md)
	@$(RUN) tools.dashboards

lock: setup ## resolve the lock files again from pyproject.toml (ARGS=--upgrade for newer versions), then: make licences
	@$(RUN) tools.lock $(ARGS)

licences: setup ## write docs/licences.md: what every locked package is licensed under
	@$(RUN) tools.licences $(ARGS)

clean: ## remove the environment and the caches; keeps data/
	rm -rf .venv .venv-incomplete .venv.lock .clients build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
