# Each target sets up what it needs. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test lint docs bench
help:
	@echo "make setup   virtual environment with selfsight and its development tools"
	@echo "make demo    pretrain, evaluate, report and learn from 5 labels a digit, about two minutes"
	@echo "make test    the tests"
	@echo "make lint    format, lint, types, import order"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make bench   the long measurements of benchmarks/, resumable"

setup: .venv/ready
.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "torch>=2.9" torchvision $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/selfsight demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/zensical build --strict

bench: setup
	$(BIN)/python benchmarks/speedrun.py test cifar10 --seeds 0,1,2
	$(BIN)/python benchmarks/speedrun.py test steel --seeds 0,1
