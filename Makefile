# Two commands do everything on a machine with Python and make: `make demo` and `make test`.

# The newest Python that works: all dependencies have wheels for it. Name another one with `make PYTHON=python3.12 test`.
# Below pyenv, a version that is installed but not selected is found in its own folder.
CANDIDATES = $(foreach v,3.13 3.12 3.11,python$(v) $(wildcard $(HOME)/.pyenv/versions/$(v)*/bin/python$(v))) python3
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test bench clean environment

demo: environment
	$(BIN)/dal demo

# CI runs the slow tests, too: it sets CI, as they all do.
test: environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal $(if $(CI),,-m "not slow")

bench: environment
	$(BIN)/python -m benchmarks suite

environment: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Expected Python 3.11, 3.12 or 3.13 with venv; found none. Name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis demo
