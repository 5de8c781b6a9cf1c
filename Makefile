# `make demo` and `make test` each do all set-up: Python >= 3.11, a C++ compiler and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench clean

help:
	@echo "make demo   set up, then run the examples"
	@echo "make test   set up, then run the tests"
	@echo "make lint   ruff, mypy and the import contract"
	@echo "make bench  every benchmark this machine can run"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "attndsl needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,examples,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/own_normalizer.py
	$(BIN)/python examples/train_layer.py
	$(BIN)/python examples/packed_minilm.py

# Two tiers: triton decides when it is imported whether it compiles kernels or interprets them.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m interpreter

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.emit
	$(BIN)/python -m benchmarks.compile
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.dispatch
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.gallery_compile
	$(BIN)/python -m benchmarks.gallery
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.gpu_training

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
