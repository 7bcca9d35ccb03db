# Two commands: `make demo` looks at real tissue, `make test` runs everything that must pass.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint clean
demo: .venv/.ready
	$(BIN)/stainseq demo demo
	@echo "open demo/report.html"

test: .venv/.dev lint
	STAINSEQ_CPU_ONLY=1 $(BIN)/python -m pytest -n 2 -q

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and by its exact version: a CPU build that pip knows of is taken, and nothing later pulls CUDA packages in.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.ready
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
