# Two commands for a fresh machine: `make bench` and `make test`. Everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# The environment's tools before the system's: torch finds its compilers on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: bench bench-full report test check overhead aa agreement clean

bench: .venv/installed
	stepbench machine
	asv run -b '^(precision|accumulation|checkpointing|product)\.' -b 'parallel.*(ranks|threads)2'; failed=$$?; \
	stepbench report && stepbench publish && exit $$failed

# `asv run` alone adds data loading, the CNN and the recipes. The whole product with enough rounds for intervals: hours on a small machine.
bench-full: .venv/installed
	asv run -b product_full -a repeat=8 --record-samples; failed=$$?; \
	stepbench report && stepbench publish && exit $$failed

# The floors are about time: nothing else runs beside them.
test: .venv/installed
	pytest -n 2 --dist worksteal --ignore tests/floors
	pytest tests/floors

check: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# The harness' step beside the same loop written by hand, side by side in one process.
overhead: .venv/installed
	stepbench selfcheck overhead

# How often the gate is wrong here: equal trees and planted slowdowns, about an hour; goes on from
# where it was stopped.
aa: .venv/installed
	stepbench selfcheck gate

# Do the intervals keep their promise? The default sweep twice under a changing load, about half an
# hour; goes on from where it was stopped.
agreement: .venv/installed
	stepbench selfcheck intervals

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .asv
