# Everything a contributor runs. It needs make and Python 3.11 or newer; the rest comes from
# requirements.lock into .venv. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
# More arguments for the program behind a target: make test ARGS="-k fencing"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Without bytecode files every process compiles all it imports, and Ray starts many processes.
unexport PYTHONDONTWRITEBYTECODE
# Ray's default differs between versions and ways to start it, so it is always said.
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED := 0

.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

.PHONY: demo
demo: $(INSTALLED) ## see sessions work, sleep and wake
	$(BIN)/python examples/demo.py $(ARGS)

.PHONY: test
test: $(INSTALLED) ## run all tests
	$(BIN)/pytest tests $(ARGS)

.PHONY: check
check: $(INSTALLED) ## format, lint, types, architecture, spelling, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/api.py tests/typing/misuse.py
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/buf lint
	$(BIN)/python tools/protos.py --check
	$(BIN)/python tools/house.py

.PHONY: bench
bench: $(INSTALLED) ## measure, print a table, write build/bench.json
	$(BIN)/python -m loadtests.bench $(ARGS)

# The profile: short, or long for an hour.
CHAOS ?= short

.PHONY: chaos
chaos: $(INSTALLED) ## break everything, print a table, write build/chaos.json
	$(BIN)/python tests/chaos/run.py --profile $(CHAOS) $(ARGS)

.PHONY: protos
protos: $(INSTALLED) ## generate src/torpor/v1 from proto/
	$(BIN)/python tools/protos.py

.PHONY: lock
lock: ## solve the dependencies anew into requirements.lock (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --group demo --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --no-emit-find-links --output-file requirements.lock $(ARGS)

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: venv
venv: $(INSTALLED) ## make .venv

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'torpor needs Python 3.11 or newer and "$(PYTHON)" is not: $(MAKE) $(MAKECMDGOALS) PYTHON=python3.12' >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
