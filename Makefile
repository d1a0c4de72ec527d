# Two commands on a fresh machine: `make demo` and `make test`. Both install by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torch is first and alone: its CPU build satisfies every later requirement
TORCH := $(shell grep -E '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench prove mutation up clean

help:
	@echo "make demo     from synthetic market data to an audited backtest, in a few minutes, no key needed"
	@echo "make test     lint, types, import contracts and the quick test suite"
	@echo "make up       the Dagster UI and daemon (http://127.0.0.1:3000)"
	@echo "make install  only create .venv and install into it"
	@echo "make bench    run the benchmarks and write benchmarks/RESULTS.md; BENCH=--quick only sees that they run"
	@echo "make prove    the long proofs (hours)"
	@echo "make mutation what share of small faults the tests of decision, validation and execution notice (an hour)"
	@echo "make lint     ruff, mypy, import contracts;  make format  rewrites what ruff can"
	@echo "make clean    remove .venv (your data in .mlbot stays)"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/mlbot demo

up: $(STAMP)
	@$(BIN)/mlbot up

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: lint
	@$(BIN)/python -m pytest -m "not slow and not prove" -n 2 --dist loadfile

bench: $(STAMP)
	@$(BIN)/python benchmarks/run_all.py $(BENCH)

prove: $(STAMP)
	@$(BIN)/python -m pytest -m prove --timeout 0

mutation: $(STAMP)
	@for package in decision validation execution; do \
		$(BIN)/python tests/mutation/run.py --package $$package --work build/mutation/$$package $(MUTATION) || exit 1; done

clean:
	rm -rf $(VENV)
