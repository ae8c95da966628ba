# Start with `make demo` or `make test`; both create the virtual environment on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow test-nightly test-all test-slurm test-versions mutate faults lint format docs docs-serve clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'segjax needs Python 3.11 or newer: make PYTHON=python3.12 setup'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train and evaluate a small U-Net on the built-in data set
	$(BIN)/segjax train --config=configs/unet/scenes.py --workdir=runs/demo
	$(BIN)/segjax evaluate --workdir=runs/demo

# worksteal keeps the tests of a file on one worker, so that module fixtures run once, until idle
# workers steal tests at the end.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

# Where rounding may depend on the optimization, tests are compiled as for users: operations, layers,
# and train steps. All others are compiled fast, see tests/conftest.py.
NUMERICAL := $(addprefix tests/,losses nn ops metrics/confusion_test.py metrics/panoptic_test.py \
  $(addprefix training/,optim_test.py optimized_test.py step_test.py))
NUMERICAL_TEST := tests/tasks/queries_test.py::test_devices_and_parts_change_nothing
test: $(READY)  ## all but the slow tests
	$(PYTEST) -m 'not slow' $(addprefix --ignore=,$(NUMERICAL)) --deselect=$(NUMERICAL_TEST)
	SEGJAX_TEST_OPTIMIZED=1 $(PYTEST) -m 'not slow' $(NUMERICAL) $(NUMERICAL_TEST)

test-slow: $(READY)  ## only the slow tests: kill and resume, several processes
	$(PYTEST) -m 'slow and not nightly'

test-nightly: $(READY)  ## combinations, and what measures (GPU hour, speed) at toy size; not in CI
	$(PYTEST) -m nightly

test-all: $(READY)  ## all tests, with full XLA optimization
	SEGJAX_TEST_OPTIMIZED=1 $(PYTEST)

# Debian's Slurm, on this machine and only while the test runs; needs root.
test-slurm: $(READY)  ## jobs of a real Slurm: preempted, requeued, resumed
	apt-get install --yes --no-install-recommends slurm-wlm munge
	SEGJAX_TEST_SLURM=1 $(BIN)/pytest tests/launch/on_slurm_test.py

# Two worker processes each, as `make test`; the first time, each environment is made.
test-versions: $(READY)  ## the default tests on Python 3.12 and 3.13, with newest and lowest packages
	$(BIN)/python tests/versions.py

faults: $(READY)  ## break training runs, and count what they lose; takes a few hours
	$(BIN)/python experiments/faults/run.py

mutate: $(READY)  ## mutation testing; takes about half an hour
	$(BIN)/python tests/mutation.py
	$(BIN)/python tests/mutation.py --page > experiments/mutation/README.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of the site and what they are built from; a broken link or reference is an error.
docs: $(VENV)/.docs  ## the site, in build/site
	$(BIN)/python docs/tools/config_keys.py > docs/config_keys.md
	$(BIN)/mkdocs build
	@echo 'build/site/index.html'

docs-serve: $(VENV)/.docs  ## the site on http://127.0.0.1:8000, rebuilt while you write
	$(BIN)/mkdocs serve

$(VENV)/.docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
