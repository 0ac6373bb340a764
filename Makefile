# Everything a newcomer runs. `make demo` and `make test` set up what they need.
#
#   PYTHON=python3.12            the Python (3.10 or newer) that .venv is made with
#   TORCH='torch==2.14.1'        another PyTorch than the one pinned in constraints.txt: any one pip requirement
#   ARGS='-k samplers'           more arguments for pytest, demo or bench
#
# On Linux, PyPI's PyTorch brings CUDA along. pip's own settings choose another build: PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS.

PYTHON ?= python3
TORCH ?= $(shell grep '^torch' constraints.txt)
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
STAMP := $(VENV)/.setup

# glibc: keep freed memory instead of handing it back after each tensor. Other systems ignore these.
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export MALLOC_MMAP_THRESHOLD_ ?= 100000000000
export MALLOC_TOP_PAD_ ?= 1000000000

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all check docs bench gpu results engines clean

help:
	@echo "make setup | demo | test | test-slow | test-all | check | docs | bench | gpu | results | engines | clean"

setup: $(STAMP)

# A TORCH given by the user that is not the one installed last sets up again.
ifneq ($(origin TORCH),file)
ifneq ($(TORCH),$(shell cat $(BASE) 2>/dev/null))
.PHONY: $(BASE)
endif
endif

# PyTorch first; what comes after is held to the version that was installed, so that no dependency moves it.
# The demo needs two extras. Everything else is installed on top of them.
$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/constraints.txt
	grep -v '^torch' constraints.txt >> $(VENV)/constraints.txt
	$(BIN)/python -m pip install -e '.[plot,eval]' -c $(VENV)/constraints.txt
	echo '$(TORCH)' > $@

$(STAMP): $(BASE)
	$(BIN)/python -m pip install -e '.[train,plot,eval,lm-eval,reasoning,space,dev]' -c $(VENV)/constraints.txt
	cp $(BASE) $@

demo: $(BASE)
	$(BIN)/python examples/demo.py $(ARGS)

# One thread per worker: two workers on two cores otherwise wait for each other. Tests that share what takes long to
# make are a group, for one worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# without the tests marked `slow`, which repeat on a larger scale what others show
test: $(STAMP) check
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP)
	$(PYTEST) -m slow $(ARGS)

test-all: $(STAMP) check
	$(PYTEST) $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(STAMP)
	$(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python examples/bench.py $(ARGS)
	$(BIN)/python examples/bench_training.py $(ARGS)

# decoding and training on one GPU, at most eight minutes; runs/gpu.json
gpu: $(STAMP)
	$(BIN)/python examples/bench_gpu.py $(ARGS)

# the tables of docs/results/ that need nothing trained before: two hours of a core, a row at a time
results: export PYTHONPATH = tests
results: $(STAMP)
	$(BIN)/python examples/bench_estimators.py
	$(BIN)/python examples/bench_ablation.py --updates 150
	$(BIN)/python examples/bench_known_answers.py
	$(BIN)/python examples/bench_curves.py --model examples/sudoku-denoiser --scorer examples/sudoku-scorer \
		--task sudoku --bound --figure runs/sudoku.png

# The published code of the serving engines, for tests/serving: no engine is installed. Those that are on no registry:
# docs/serving.md, Tests.
engines: $(STAMP)
	$(BIN)/python -m pip download --no-deps --dest engines sglang==0.5.23 diffusers==0.42.1
	cd engines && unzip -qo 'sglang-*.whl' 'sglang/srt/dllm/*' -d sglang && unzip -qo 'diffusers-*.whl' -d diffusers
	rm -f engines/*.whl

clean:
	rm -rf dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find hf_learned_order examples tests -name __pycache__ -type d -prune -exec rm -rf {} +
