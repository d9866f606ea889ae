# make demo    train a small model on two nodes, and ask it a question (a few minutes, with the installation)
# make check   lint, types and the tests of one process (under two minutes)
# make test    everything, on a real Slurm cluster of this machine where it may be installed (root on Debian)
# make soak    the long faults: random ones over a run, races, thousands of corruptions (an hour)
# make docs    the site of docs/, in build/site; installs mkdocs
# make lab     start that cluster for use by hand; make lab-down ends it

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# Tests of one process share the cores; those that start ranks or clusters take the machine for themselves.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test soak check lint unit docs lab lab-down clean

demo: $(READY)
	$(BIN)/python -m sft.quickstart.demo

test: $(READY) lint
	-$(BIN)/python slurm/lab/lab.py install
	$(BIN)/python -m pytest $(PARALLEL) -m "not ranks and not cluster and not soak"
	$(BIN)/python -m pytest -m "(ranks or cluster) and not soak"

check: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not ranks and not cluster and not oracle and not soak"

soak: $(READY)
	-$(BIN)/python slurm/lab/lab.py install
	$(BIN)/python -m pytest -m soak --timeout 3600

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m docsite.build

lab: $(READY)
	$(BIN)/python slurm/lab/lab.py install
	$(BIN)/python slurm/lab/lab.py up

lab-down: $(READY)
	$(BIN)/python slurm/lab/lab.py down

# torch by its exact version: a range would take the newest build, with gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing the pinned packages into .venv (one to four minutes) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache
