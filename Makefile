# `make demo` and `make test` set up .venv by themselves, from any Python 3.11 or newer with pip.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo test test-slow slow-list test-x64 bench lint format clean

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none was found on PATH. Install it, or call make PYTHON=/path/to/python3.11"; exit 1; }
	@# Debian ships venv without ensurepip unless python3-venv is installed: then pip comes from outside.
	$(PYTHON) -m venv .venv >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	@touch .venv/ready

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@touch .venv/ready-dev

demo: .venv/ready
	$(BIN)/python -m jopt demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest -n auto

test-slow: .venv/ready
	$(BIN)/python -m pytest -n auto -m slow

slow-list: .venv/ready
	@: > tests/slow.txt
	$(BIN)/python -m pytest -n 2 --durations=0 --durations-min=0.05 > slow-list.log
	$(BIN)/python tests/slowest.py < slow-list.log > tests/slow.txt && rm slow-list.log

test-x64: .venv/ready
	JOPT_TEST_X64=1 $(BIN)/python -m pytest -n auto tests/test_laws.py

bench: .venv/ready
	$(BIN)/python -m benchmarks.update_cost --out benchmarks/update_cost.json | tee benchmarks/update_cost.txt

lint: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-colab demo
