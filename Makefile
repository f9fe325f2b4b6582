# make demo    the embedded example, end to end: two to five minutes on two CPU cores, and what
#              installing takes the first time
# make app     the inspect app on http://127.0.0.1:7860
# make test    the tests, but for the slow ones
# make docs    the pages in docs/, into build/docs; a broken link is an error
# make check   what continuous integration runs: lint, types, docs, then all tests
# make fuzz    the property tests, with twenty times the cases and new ones on every run
# make mutants faults put into the pure modules, which their tests must notice
# make faults  a hundred kills and full disks, after each of which everything must go on
# make bench   speed against TRL, transformers and the kit itself, into build/bench: half an hour
#              on a CPU; BENCH=--quick takes minutes, BENCH="--only rollout --output FOLDER" a part
# Each makes .venv first when it is missing. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo app test lint docs check fuzz mutants faults bench clean

demo: $(READY)
	$(BIN)/kit demo

app: $(READY)
	$(BIN)/kit app

# a process for each core, up to four: each takes about 2 GB
PROCESSES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/mkdocs build --quiet

check: $(READY)
	$(MAKE) --jobs 2 lint docs
	$(PYTEST) --durations 30

fuzz: $(READY)
	$(PYTEST) -m hypothesis --hypothesis-profile thorough

mutants: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --faults 120

bench: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python benchmarks/bench.py $(BENCH)

$(READY): requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $(PYTHON) is older; try make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the tested versions into $(VENV) first; this alone takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --constraint constraints.txt --requirement requirements-dev.txt --editable .
	@# compiled on all cores instead of one; a file for a newer Python is no error
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
