# Each target is tiny; what it does is in the tool it calls. `make help` lists them.
#
# A fresh machine needs Python 3.11 or newer, git and make: `make demo` builds .venv from a hashed lock and goes.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input -qq
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--group build --extra engine --extra examples
BENCHES := $(filter-out bench/_%,$(wildcard bench/*.py))
# Tests wait for processes more than they compute.
TEST_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
BENCH_LIMIT_S ?= 300
SOAK_MINUTES ?= 10
SOAK_FAULTS ?= 500
SOAK_KILLS ?= 200

# Compiled modules are kept: the tests start hundreds of processes, and each would compile the whole package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench bench-gateway soak docs lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/demo.stamp ## play the golden path on this machine: train, kill, resume, register, serve, bill, tear down
	@$(BIN)/python examples/demo.py

setup: $(VENV)/dev.stamp ## make .venv with everything a developer needs
	@:

test: $(VENV)/dev.stamp ## run the tests, a file to a worker
	@$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/dev.stamp ## lint, formatting, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## put the code in the house's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/dev.stamp ## every performance claim, measured on this machine
	@for bench in $(BENCHES); do echo "== $$bench"; timeout --signal INT --kill-after 30 $(BENCH_LIMIT_S) $(BIN)/python $$bench || exit 1; done

bench-gateway: $(VENV)/dev.stamp ## the gateway beside other proxies, which are installed into a cache first; ARGS="--only requests"
	@$(BIN)/python bench/gateway.py --install --only all $(ARGS)

soak: $(VENV)/dev.stamp ## random faults against a real control plane and sshd hosts, SOAK_FAULTS (500), SOAK_KILLS (200) and SOAK_MINUTES (10) long
	@$(BIN)/python -m tests.faults --faults $(SOAK_FAULTS) --minutes $(SOAK_MINUTES) $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.artifact_kills --kills $(SOAK_KILLS) $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.gateway.soak --minutes $(SOAK_MINUTES) $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.gateway.description --examples 200 $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.gateway.fuzz --minutes $(SOAK_MINUTES) $(if $(SEED),--seed $(SEED))

docs: $(VENV)/dev.stamp ## make docs/MAP.md and docs/reference/ anew from the code's own words
	@$(BIN)/python docs/make_map.py
	@$(BIN)/python docs/make_reference.py

lock: ## resolve the dependencies anew (needs uv)
	@$(LOCK) pyproject.toml -o requirements/demo.lock
	@$(LOCK) --extra postgres --group dev pyproject.toml -o requirements/dev.lock

clean: ## remove what make made; never touches GROUND_HOME
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis bench/results
	@find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/demo.stamp: requirements/demo.lock pyproject.toml | $(BIN)/python
	@echo "installing what the lock names ($<) into $(VENV); the first time takes a minute or two"
	@$(INSTALL) --require-hashes -r $<
	@$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "installing what the lock names ($<) into $(VENV); the first time takes a minute or two"
	@$(INSTALL) --require-hashes -r $<
	@$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@ $(VENV)/demo.stamp

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH" >&2; \
		echo "hint: install one, or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); Groundplane needs Python 3.11 or newer" >&2; \
		echo "hint: make demo PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module" >&2; echo "hint: apt-get install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
