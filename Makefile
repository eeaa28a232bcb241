# Two commands do everything on a machine with Python and make: `make demo` and `make test`.

# A Python that works, of the versions given. Below pyenv, one that is installed but not selected is in a folder of its own.
installed = python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1)*/bin/python$(1))
working = $(shell for p in $(1); do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { command -v $$p; break; }; done)
# The newest one: all dependencies have wheels for it. Name another one with `make PYTHON=python3.12 test`.
PYTHON ?= $(call working,$(foreach v,3.13 3.12 3.11,$(call installed,$(v))) python3)
VENV ?= .venv
BIN = $(VENV)/bin
# Where uv is there, it installs several times as fast as pip. What pip would compile, Python compiles when it is first
# used; the tests, which are several processes and use nearly all of it, have it compiled before by all processors.
UV := $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),uv pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile)
# That first use keeps what it compiled, also where the environment forbids it, as images of containers do: otherwise each
# process compiles all of its imports, which takes six seconds of nine.
unexport PYTHONDONTWRITEBYTECODE
# Each process has clusters of its own. One more than there usually are cores: tests wait for a part of their time.
PYTEST = python -m pytest -n $(PROCESSES) --dist worksteal
PROCESSES = 3
# Threads of linear algebra in processes that share the cores wait for each other by spinning, which takes up to ten times
# the processor time of one thread. Tests of threads set their number themselves, and .ci/exact runs with several.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test test-matrix test-lowest test-torch bench docs image clean environment environment-test environment-lowest environment-torch

demo: environment
	$(BIN)/dal demo

# CI runs the slow tests, too: it sets CI, as they all do.
test: environment-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@echo "Types are checked beside the tests, which wait for much of their time."
	@$(BIN)/mypy & types=$$!; \
	$(ONE_THREAD) $(BIN)/$(PYTEST) $(if $(CI),,-m "not slow"); tests=$$?; \
	wait $$types && exit $$tests

# Each Python with the newest versions of all dependencies, and the oldest Python with the lowest ones. Each has an
# environment that is kept.
test-matrix: $(foreach v,3.11 3.12 3.13,test-on-$(v)) test-lowest

# A Python that is not there is fetched by uv.
python-of = $(or $(call working,$(call installed,$(1))),$(if $(UV),$(1)))

test-on-%:
	$(MAKE) PYTHON=$(call python-of,$*) VENV=.venv-$* environment-test
	$(ONE_THREAD) .venv-$*/bin/$(PYTEST) -m "not slow" $(TESTS)

test-lowest: environment-lowest
	$(ONE_THREAD) .venv-lowest/bin/$(PYTEST) -m "not slow" $(TESTS)

# What needs torch; everything else is tested without it.
test-torch: environment-torch
	.venv-torch/bin/$(PYTEST) -m torch $(TESTS)

bench: environment-test
	$(BIN)/python -m benchmarks suite

# The API reference, from the docstrings.
docs: environment-test
	$(BIN)/python -W error docs/api.py build/api

# The image of cluster/containers, where no registry is reached: as root, with debootstrap and buildah, below build/image.
image:
	cluster/containers/build-without-registry

# What a user installs, and what the tests need as well.
environment: $(VENV)/installed
environment-test: $(VENV)/installed-test
environment-lowest:
	$(MAKE) PYTHON=$(call python-of,3.11) VENV=.venv-lowest CONSTRAINTS=.venv-lowest/lowest.txt environment-test

# The newest version of which there is a build for processors alone, and the Python that it is for. Others bring gigabytes.
environment-torch:
	$(MAKE) PYTHON=$(call python-of,3.11) VENV=.venv-torch EXTRA=test-torch PINS=torch==2.13.0 environment-test

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing dal and all it needs into $(VENV): less than a minute where downloads are near."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing dal and all that its tests need into $(VENV): some minutes."
	@$(INSTALL) --editable ".[$(or $(EXTRA),test)]" $(PINS) $(addprefix --constraint ,$(CONSTRAINTS))
	@# Packages may hold files for a newer Python, which nothing imports here; torch holds too many of which few are used.
	@$(if $(EXTRA),,$(BIN)/python -W ignore -m compileall -q -j 0 $(VENV)/lib >/dev/null || true)
	@touch $@ $(VENV)/installed

$(VENV)/lowest.txt: pyproject.toml tests/lowest.py | $(BIN)/python
	@$(BIN)/python tests/lowest.py pyproject.toml > $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 with venv must be installed; found none. Name one: make PYTHON=..."; exit 1; }
	@echo "Making an environment of $(PYTHON) in $(VENV), with $(if $(UV),uv,pip)."
	@$(if $(UV),uv venv --quiet --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

clean:
	rm -rf $(VENV) .venv-3.* .venv-lowest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis demo
