# Python must not put the working folder on sys.path: `kernels` would become importable under that name.
export PYTHONSAFEPATH := 1

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
# A script run by its path gets its own folder on sys.path, never the root.
SCRIPT := PYTHONSAFEPATH= $(PY)
# Options for the program behind a target: make test ARGS="-k fold", make demo ARGS="--data digits".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs bench mutants wheel check clean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)  ## train a network with SGD, AdamW and SNGD; print a table, draw a plot
	$(SCRIPT) examples/compare.py $(ARGS)

test: $(STAMP)  ## every test, one torch thread per worker
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8 $(ARGS)

lint: $(STAMP)  ## ruff's rules and format, and who may import whom
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

format: $(STAMP)  ## let ruff format and repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(STAMP)  ## mypy, strict
	mkdir -p build/typing
	ln -sfn ../../kernels build/typing/sngd_kernels
	$(PY) -m mypy sngd_compile build/typing/sngd_kernels examples $(wildcard benchmarks)

docs: $(STAMP)  ## build the documentation, running every example in it
	$(SCRIPT) docs/build.py $(ARGS)

bench: $(STAMP)  ## step time and memory against plain SGD
	$(SCRIPT) benchmarks/step_time.py $(ARGS)

mutants: $(STAMP)  ## plant each known bug and see that a test catches it
	$(SCRIPT) tests/mutants/run.py $(ARGS)

wheel: $(STAMP)  ## source distribution and wheel, in dist/
	$(PY) -m build --no-isolation --outdir dist .

check: lint types test mutants docs wheel  ## all that must pass before a change is merged

clean:  ## remove what was built, the virtual environment too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter no longer runs (moved, or Python was upgraded) is made again.
ifneq ($(shell $(PY) -c 'print("runs")' 2>/dev/null),runs)
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml constraints.txt requirements-oracle.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is missing or older than Python 3.11; choose one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	    || { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo 'Installing PyTorch and the tools into $(VENV): a minute or two, once.'
	$(PIP_INSTALL) --constraint constraints.txt 'setuptools>=77'
	$(PIP_INSTALL) --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(PIP_INSTALL) --no-deps --requirement requirements-oracle.txt
	@touch $@
