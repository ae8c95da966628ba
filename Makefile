# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow test-all mutate lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'segjax needs Python 3.11 or newer: make PYTHON=python3.12 setup'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train a small U-Net on the built-in data set, evaluate it, show where to look
	$(BIN)/segjax train --config=configs/unet/scenes.py --workdir=runs/demo
	$(BIN)/segjax evaluate --workdir=runs/demo

# worksteal: a file's tests stay together, so that what its fixtures made is made once, but for the
# few that an idle worker takes over at the end.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

test: $(READY)  ## every test but the long ones
	$(PYTEST) -m 'not slow'

test-slow: $(READY)  ## only those: kill and resume, several processes
	$(PYTEST) -m slow

test-all: $(READY)  ## every test, the long ones too, compiled as for users
	SEGJAX_TEST_OPTIMIZED=1 $(PYTEST)

mutate: $(READY)  ## do the tests notice small changes of the code? Half an hour
	$(BIN)/python tests/mutation.py
	$(BIN)/python tests/mutation.py --page > experiments/mutation/README.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info
