# `make` alone lists what there is. Everything lives in .venv and vendor/llama.cpp; nothing else is touched.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.ggq-installed

# Without bytecode every program that a test starts would compile ggq anew.
unexport PYTHONDONTWRITEBYTECODE

# Workers that have nothing left to do take tests of the others.
PYTEST := $(BIN)/pytest -q -n logical --maxprocesses 4 --dist worksteal --durations=10

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup unit test test-all test-lowest coverage lint types tests lock demo bench bench-pipeline bench-quality bench-memory bench-foresight \
	bench-sweep fuzz gpu-check docs architectures clean distclean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Python environment, then llama.cpp's tools: minutes the first time, seconds after
	$(BIN)/ggq setup

# Written last: an installation that was broken off begins again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ggq needs Python 3.11 or later; make setup PYTHON=python3.12 names another one." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	@touch $@

unit: $(INSTALLED) ## The tests that need no llama.cpp and no torch: a minute, before any build
	$(PYTEST) --unit

test: setup lint types tests ## Everything that a change must pass

lint: $(INSTALLED) ## Style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

types: $(INSTALLED) ## Static types
	$(BIN)/mypy

tests: $(INSTALLED) ## The tests alone
	$(PYTEST)

test-all: setup ## All tests: every architecture, long kill loops, more models, and `make fuzz`
	GGQ_TEST_ALL=1 $(PYTEST)
	$(BIN)/python tests/fuzzing

# The unit tier needs no PyTorch, and its lowest version would bring gigabytes of CUDA: it stays out.
LOWEST := .venv-lowest
test-lowest: $(INSTALLED) ## The unit tier with the lowest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --no-annotate --no-header pyproject.toml | \
		grep -Ev '^(torch|triton|nvidia-[^m]|cuda-)' > $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) --no-deps -r $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) --no-deps --editable .
	$(BIN)/uv pip install --quiet --python $(LOWEST) -c $(LOWEST)/lowest.txt --group test
	rm -f $(LOWEST)/.lock  # everybody may write to it, and ggq warns of that
	$(LOWEST)/$(PYTEST:.venv/%=%) --unit

coverage: setup ## All of make test's tests, and which lines of ggq they reach, children included
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST:.venv/bin/%=%) || true
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lock: $(INSTALLED) ## Write requirements-dev.lock again: every version that development stands on
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev pyproject.toml -c constraints.txt \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file requirements-dev.lock

demo: setup ## Make and measure ten presets of a small model, write a page of it, and talk with another
	$(BIN)/ggq convert-and-quantize examples/tiny-llama --preset k-quants --keep-base --outdir demo
	$(BIN)/ggq run demo/tiny-llama-Q4_K_M.gguf 'Remove the' -n 32
	$(BIN)/ggq bench demo --quick
	$(BIN)/ggq report demo -o demo/report.html
	$(BIN)/ggq convert-and-quantize tests/data/models/chat260K --preset q8_0 --outdir demo/chat
	echo 'What is the capital of France?' | $(BIN)/ggq chat demo/chat/chat260K-Q8_0.gguf

bench-pipeline: setup ## ggq against the same steps by hand: time and memory
	$(BIN)/python -m benchmarks.pipeline

bench-quality: setup ## `--until ranked` against the whole text: the same order, by fewer tokens (half an hour)
	$(BIN)/python -m benchmarks.quality

bench-memory: setup ## Measured memory against the sum of llama.cpp's buffers
	$(BIN)/python -m benchmarks.memory

bench-foresight: setup ## Sizes, memory and speed predicted, against what is made and measured
	$(BIN)/python -m benchmarks.foresight

bench-sweep: setup ## All presets in one pass against llama-quantize once per preset (half an hour)
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.fused

fuzz: setup ## 10,000 mutated inputs through every verb (some 25 minutes); no crash, no cost
	$(BIN)/python tests/fuzzing

bench: bench-pipeline bench-quality bench-memory bench-foresight bench-sweep ## All benchmarks

gpu-check: $(INSTALLED) ## A CUDA build where there is an NVIDIA GPU; offload and VRAM, predicted and measured
	$(BIN)/ggq setup --backend auto
	$(BIN)/python -m benchmarks.gpu

docs: $(INSTALLED) ## Write the generated part of docs/ again
	$(BIN)/python scripts/generate_cli_docs.py
	$(BIN)/python scripts/generate_api_docs.py

architectures: setup ## Try every architecture, and write docs/supported-models.md again (minutes)
	PYTHONPATH=tests/helpers $(BIN)/python tests/helpers/architectures.py > docs/architectures.new.md
	mv docs/architectures.new.md docs/supported-models.md

clean: ## Remove what the other targets made, but keep the environment and the build
	rm -rf demo bench-results build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*

distclean: clean ## Remove the environment and the build as well
	rm -rf .venv .venv-lowest vendor/llama.cpp/src vendor/llama.cpp/build vendor/llama.cpp/build.json
