# Two commands for a fresh machine: `make bench` and `make test`. Everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# The environment's tools before the system's: torch finds its compilers on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: bench bench-full report test check overhead clean

bench: .venv/installed
	stepbench machine
	asv run --skip-existing-successful --show-stderr
	stepbench report
	stepbench publish

# The whole product with enough rounds for intervals: hours on a small machine.
bench-full: .venv/installed
	asv run --show-stderr --record-samples -a repeat=8 -b .
	stepbench report
	stepbench publish

test: .venv/installed
	pytest

check: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# The harness' step beside the same loop written by hand, side by side in one process.
overhead: .venv/installed
	python -m benchmarks.by_hand

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .asv
