# Python must not put the working folder on sys.path: `kernels` would become importable under that name.
export PYTHONSAFEPATH := 1

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
# A script run by its path gets its own folder on sys.path, never the root.
SCRIPT := PYTHONSAFEPATH= $(PY)
# Benchmarks are modules in folders; the data sets of the demo are those of the study.
BENCHMARK := PYTHONPATH=benchmarks:examples $(PY) -m
# Options for the program behind a target: make test ARGS="-k fold", make demo ARGS="--data digits".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch test-slow nightly fuzz test-interpreter test-gpu test-triton-matrix lint format types docs site bench
.PHONY: bench-peers bench-muon bench-why bench-one-rate bench-exact bench-fishers reproduce bench-profile bench-kernels bench-roots
.PHONY: bench-metrics bench-refresh monitoring report-picture bench-gpu bench-gpu-steps bench-gpu-all bench-layers bench-compiled
.PHONY: bench-memory test-torch-matrix release-check tensorboard-picture
.PHONY: kernel-table mutants mutants-only wheel check clean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)  ## train a network with SGD, AdamW and SNGD; print a table, draw a plot
	$(SCRIPT) examples/compare.py $(ARGS)

# Every torch thread of every worker beside the others would be slower than one for each.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest
SHARED_OUT = --numprocesses auto --maxprocesses 8 --dist worksteal

# $(call stages,one two): make them one after the other and print the seconds of each.
define stages
	@begin=$$(date +%s); times=; for stage in $(1); do \
	    start=$$(date +%s); \
	    $(MAKE) --no-print-directory $$stage || exit 1; \
	    times="$$times$$stage $$(($$(date +%s) - start)) s, "; \
	done; echo "make $@: $${times}together $$(($$(date +%s) - begin)) s"
endef

test: $(STAMP)  ## the tests but the slow ones; the kernels on CPU operations, then interpreted
	$(call stages,test-torch $(if $(ARGS),,test-interpreter))

test-torch: $(STAMP)
	$(PYTEST) $(SHARED_OUT) $(ARGS)

test-slow: $(STAMP)  ## the tests, slow ones too: most compile, or start processes of their own
	$(PYTEST) $(SHARED_OUT) -m 'not nightly' --hypothesis-profile check $(ARGS)

nightly: $(STAMP)  ## every test, nightly ones too, with many random networks
	$(PYTEST) $(SHARED_OUT) -m '' --hypothesis-profile nightly $(ARGS)
	$(INTERPRET) -m '' $(ARGS)
	$(if $(ARGS),,$(MAKE) --no-print-directory release-check)

fuzz: $(STAMP)  ## 11,200 random trainings, other ones each time; what they met, and what broke
	$(PYTEST) $(SHARED_OUT) tests/fuzz --hypothesis-profile fuzz --hypothesis-show-statistics $(ARGS)

# Triton reads TRITON_INTERPRET when it is imported: one process is one mode.
INTERPRET = TRITON_INTERPRET=1 $(PYTEST) $(SHARED_OUT) tests/ops/interpreter
HAS_TRITON = $(PY) -c 'import triton' 2>/dev/null || { echo 'No Triton here: no kernels to test'; exit 0; }

test-interpreter: $(STAMP)  ## the Triton kernels in Triton's interpreter, alone
	@$(HAS_TRITON); $(INTERPRET) $(ARGS)

test-gpu: $(STAMP)  ## the Triton kernels, and training, on this machine's GPU
	@$(PY) -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "test-gpu needs a GPU; torch sees none")'
	$(PY) -m pytest tests/ops/device tests/device -m '' $(ARGS)

# Triton 3.6 interprets loops with numpy before 2.4 only, and has it warn.
OLD_NUMPY = -W 'ignore:Conversion of an array with ndim:DeprecationWarning'

test-triton-matrix: $(STAMP)  ## the tests of the kernels on the oldest and the pinned Triton
	for version in 3.6.0 pinned; do \
	    path=build/triton-$$version; \
	    [ $$version = pinned ] || [ -e $$path ] \
	        || $(PIP_INSTALL) --no-deps --target $$path triton==$$version 'numpy<2.4' || exit 1; \
	    PYTHONPATH=$$path $(PY) -m pytest tests/ops/ahead_of_time -m '' $(ARGS) || exit 1; \
	    PYTHONPATH=$$path $(INTERPRET) $(OLD_NUMPY) $(ARGS) || exit 1; \
	done

# The least that pyproject.toml allows, and the pinned one. Where the package index serves builds for CUDA alone,
# those for the processor are found with pip's own PIP_EXTRA_INDEX_URL.
TORCHES ?= $(shell sed -n 's/.*"torch>=\(.*\)".*/\1/p' pyproject.toml) $(shell sed -n 's/^torch==//p' constraints.txt)
# torch names the triton and the setuptools that it works with.
OF_TORCH = ^(setuptools|torch|triton)==

test-torch-matrix: $(STAMP)  ## the tests but the slow ones on the oldest and the pinned torch
	mkdir -p build
	grep -vE '$(OF_TORCH)' constraints.txt > build/constraints-matrix.txt
	for version in $(TORCHES); do \
	    path=build/torch-$$version; \
	    [ -e $$path/installed ] || { \
	        $(PYTHON) -m venv --clear $$path \
	        && $$path/bin/python -m pip install --quiet --disable-pip-version-check \
	            --constraint build/constraints-matrix.txt torch==$$version --editable '.[test]' \
	        && touch $$path/installed; } || exit 1; \
	    $(subst $(PY),$$path/bin/python,$(PYTEST)) $(SHARED_OUT) $(ARGS) || exit 1; \
	done

lint: $(STAMP)  ## ruff's rules and format, who may import whom, private names of torch
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(SCRIPT) tests/house/private_names.py

format: $(STAMP)  ## let ruff format and repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(STAMP)  ## mypy, strict
	mkdir -p build/typing
	ln -sfn ../../kernels build/typing/sngd_kernels
	$(PY) -m mypy sngd_compile build/typing/sngd_kernels examples $(wildcard benchmarks)

docs: $(STAMP)  ## build the documentation, running every example in it, and the site
	$(SCRIPT) docs/build.py $(ARGS)

site: $(STAMP)  ## the site alone, build/site/index.html, without running the examples
	$(SCRIPT) docs/website.py

bench: $(STAMP)  ## step time and memory against plain SGD
	$(BENCHMARK) steps.step_time $(ARGS)

bench-peers: $(STAMP)  ## loss and accuracy at equal time against what people use today
	$(BENCHMARK) study.convergence $(ARGS)

bench-muon: $(STAMP)  ## Muon on the reconstructed network beside Muon on the plain one
	$(BENCHMARK) study.muon $(ARGS)

bench-why: $(STAMP)  ## what explains the gain of each task, beside it
	$(BENCHMARK) study.why $(ARGS)

bench-one-rate: $(STAMP)  ## one learning rate for every task beside the best for each
	$(BENCHMARK) study.one_rate $(ARGS)

bench-exact: $(STAMP)  ## SGD and SNGD against exact natural gradient descent
	$(BENCHMARK) paper.exact_comparison $(ARGS)

bench-fishers: $(STAMP)  ## the local Fishers of Config against each other, by steps
	$(BENCHMARK) paper.local_fishers $(ARGS)

reproduce: $(STAMP)  ## the paper's experiments, on one page
	$(BENCHMARK) paper.reproduce $(ARGS)

bench-layers: $(STAMP)  ## what small layers add to a step
	$(BENCHMARK) steps.small_layers $(ARGS)

bench-memory: $(STAMP)  ## peak memory of a step against plain SGD's; state and refresh by size
	$(BENCHMARK) steps.memory_at_size $(ARGS)

bench-profile: $(STAMP)  ## where the time of a step goes, beside the least it could take
	$(BENCHMARK) profiling.profile_step $(ARGS)

bench-compiled: $(STAMP)  ## compiled step and compile time against the compiled plain network
	$(BENCHMARK) steps.compiled_step $(ARGS)

bench-kernels: $(STAMP)  ## the kernels' CPU paths against unfold and eigh
	$(BENCHMARK) micro.conv_second_moment
	$(BENCHMARK) micro.cholesky_inverse

bench-roots: $(STAMP)  ## time of each kind of root; on a GPU with ARGS="--device cuda"
	$(BENCHMARK) micro.root_times $(ARGS)

bench-refresh: $(STAMP)  ## a refresh on several processes: roots shared out, or each doing all
	$(BENCHMARK) steps.refresh_shares $(ARGS)

bench-metrics: $(STAMP)  ## time of a call of sngd.metrics; on a GPU with ARGS="--device cuda"
	$(BENCHMARK) micro.metrics_cost $(ARGS)

monitoring: $(STAMP)  ## draw the picture of docs/monitoring.md: metrics over a short training
	$(BENCHMARK) micro.metrics_over_time

tensorboard-picture: $(STAMP)  ## draw docs/tensorboard.png, the same in TensorBoard, with Chromium
	[ -e build/tensorboard ] \
	    || $(PIP_INSTALL) --constraint constraints.txt --target build/tensorboard tensorboard==2.21.0
	PYTHONPATH=benchmarks:$(CURDIR)/build/tensorboard $(PY) -m micro.tensorboard_picture

report-picture: $(STAMP)  ## draw docs/report.png, the page of the demo, with Chromium
	$(MAKE) demo
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1280,1300 \
	    --screenshot=docs/report.png build/demo/report.html

bench-gpu-steps: $(STAMP)  ## step time against plain SGD, on this machine's GPU
	$(BENCHMARK) gpu.gpu_steps $(ARGS)

bench-gpu: $(STAMP)  ## the Triton kernels against the best library path, on this machine's GPU
	$(BENCHMARK) gpu.gpu_kernels $(ARGS)

bench-gpu-all: $(STAMP)  ## all of that and some training within 8 minutes, the kernels checked first
	$(BENCHMARK) gpu.everything $(ARGS)

kernel-table: $(STAMP)  ## docs/kernels/resources.md: registers, shared memory, instructions
	PYTHONPATH=tests $(PY) tests/ops/ahead_of_time/table.py

mutants: $(STAMP)  ## plant each known bug and see that a test catches it
	$(SCRIPT) tests/mutants/run.py $(ARGS)

wheel: $(STAMP)  ## source distribution and wheel, in dist/
	$(PY) -m build --no-isolation --outdir dist .

release-check: $(STAMP)  ## wheel and sdist as a user gets them: metadata, types, an empty environment
	$(SCRIPT) tests/release/check.py

mutants-only: $(STAMP)
	$(SCRIPT) tests/mutants/run.py --tests-pass

CHECKS = lint types test-slow test-interpreter mutants-only docs wheel

check: $(STAMP)  ## all that must pass before a change is merged, with the seconds of each part
	$(call stages,$(CHECKS))

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
