.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two thread pools on few cores cost far more than they give.
export OMP_NUM_THREADS ?= $(shell nproc)
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo test soak check bench gpu clean

# An environment that is there already, with or without this package: a GPU host may be offline.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

help: ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make .venv with everything the other targets need (idempotent)

$(VENV)/.ready: pyproject.toml constraints.txt .ci/setup $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h kernels/cpu/*.py)
	@PYTHON=$(PYTHON) bash .ci/setup $(VENV)
	@touch $@

demo: setup ## exact answers from a long document, and a real language model: dense beside sparse
	@PATH="$$PATH:$(CURDIR)/.uv/bin" $(BIN)/sparsekv demo --out demo-out

test: setup ## every test that this machine can run
	@$(BIN)/python tests/run.py

soak: setup ## the same tests at full size, and the long ones; figures go to docs/results/soak
	@$(BIN)/python tests/run.py --soak && $(BIN)/python -m tests.mutation

check: setup ## ruff and mypy
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup ## kernels and whole servers, against SGLang's torch_native in the same run
	@mkdir -p bench/results
	@$(BIN)/python -m bench.kernels --device cpu --json bench/results/kernels-cpu-$$(date +%Y%m%d-%H%M%S).json
	@$(BIN)/python -m bench.serve.decode --device cpu --json bench/results/serve-cpu-$$(date +%Y%m%d-%H%M%S).json
	@$(BIN)/python -m bench.serve
	@$(BIN)/python -m bench.report

gpu: ## everything a GPU must tell; WHEELS=DIR installs from there first, GPU_ARGS=... as docs/gpu.md
	@$(GPU_PYTHON) -m bench.gpu $(if $(WHEELS),--wheels "$(WHEELS)") $(GPU_ARGS); \
	status=$$?; [ $$status -eq 2 ] || $(GPU_PYTHON) -m bench.report; exit $$status

clean: ## remove the virtual environment and build products
	rm -rf $(VENV) .uv build *.egg-info kernels/cpu/*.so
