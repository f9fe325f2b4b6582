# make demo    the embedded example, end to end: five to ten minutes on two CPU cores
# make app     the inspect app on http://127.0.0.1:7860
# make test    the whole test suite
# make docs    the pages in docs/, into build/docs; a broken link is an error
# make check   what continuous integration runs: lint and types, then the tests
# Each makes .venv first when it is missing. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo app test lint docs check clean

demo: $(READY)
	$(BIN)/kit demo

app: $(READY)
	$(BIN)/kit app

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/mkdocs build --quiet

check: lint docs test

$(READY): requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $(PYTHON) is older; try make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the tested versions into $(VENV); this takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --requirement requirements-dev.txt --editable .
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
