PYTHON ?= python3.11
SEED ?= 0
BIN := .venv/bin
READY := .venv/.ready
ESCAPES := tests/test_sandbox_escapes.py

.PHONY: setup demo test check

setup: $(READY)

# torch comes first and by its exact version: anything else would bring several GB of CUDA to a machine without a GPU.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: setup
	$(BIN)/python examples/demo.py --seed $(SEED)

# Attempts to get out of a sandbox run alone: without namespaces, they can reach what others run as the same user.
test: setup
	$(BIN)/pytest -n 2 --dist loadfile -m "not long" --ignore $(ESCAPES)
	$(BIN)/pytest $(ESCAPES)

check: setup
	$(BIN)/ruff check agentgym tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports
