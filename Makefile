# Everything needs only Python 3.11 or newer and make: the first target that needs the virtual environment makes it.

PYTHON ?= $(firstword $(foreach each,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(each) -c 'import sys; sys.version_info >= (3, 11) and print("$(each)")' 2>/dev/null)))

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet
FOR  ?= 3600
SEED ?= 1000
DEV  := $(VENV)/.installed-dev
DEMO := $(VENV)/.installed-demo
BENCH := $(VENV)/.installed-bench

# `pyright` would fetch a node of its own where there is none, and ask whether there is a newer version of itself.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test prove soak bench mutants docs check lint types coverage diagrams diagrams-drift wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## see it reconnect, in the terminal
	@$(BIN)/python -m reconnect_fsm demo $(ARGS)

test: $(DEV) ## run the tests; ARGS="..." goes to pytest, such as ARGS=--shuffle=1 (random order)
	@$(BIN)/python tests/support/node_peers.py
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: lint types diagrams-drift coverage ## everything that has to pass: lint, types, diagrams, tests with coverage

lint: $(DEV) ## ruff, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(DEV) ## mypy and pyright
	$(BIN)/mypy reconnect_fsm tests/typed_api.py
	@if command -v node >/dev/null; then set -x; $(BIN)/pyright --pythonpath $(BIN)/python; \
	elif [ -n "$$CI" ]; then echo "pyright needs node, which is not installed" >&2; exit 1; \
	else echo "SKIPPED: pyright needs node, which is not installed"; fi

prove: $(DEV) ## the long proofs, side by side; what they counted becomes docs/proof.md
	rm -rf build/figures
	$(BIN)/python -m pytest -m proof -n auto --dist worksteal $(ARGS)
	$(BIN)/python tests/figures.py

soak: $(DEV) ## simulate for FOR=3600 seconds, and count; SEED=... begins elsewhere
	$(BIN)/python -m reconnect_fsm.testing.simulation --until-stopped --for $(FOR) --seed $(SEED)

bench: $(BENCH) ## ours, the official client and others, side by side; rewrites docs/benchmarks.md
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(DEV) ## build the documentation into build/docs, warnings being errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

mutants: $(DEV) ## mutation testing of the pure half; rewrites docs/mutants.md
	$(BIN)/python tests/mutants.py $(ARGS)

coverage: $(DEV) ## the tests, with every branch of the pure half covered, and 95 % of all
	$(MAKE) --no-print-directory test ARGS='--cov --cov-report= $(ARGS)'
	$(BIN)/coverage report --fail-under=100 --include="$$($(BIN)/python tests/pure_half.py)"
	$(BIN)/coverage report --fail-under=95

diagrams: $(DEV) ## draw diagrams/ anew from the machines
	$(BIN)/python -m reconnect_fsm diagrams diagrams
	cp diagrams/client_fsm.svg diagrams/heartbeat_fsm.svg diagrams/room_fsm.svg reconnect_fsm/diagrams/pictures/

# The bytes of an SVG depend on the version of Graphviz; what it is drawn from does not.
diagrams-drift: $(DEV) ## fail if diagrams/ is not what the machines say
	@drawn=$$(mktemp -d) && trap 'rm -rf "$$drawn"' EXIT && \
	$(BIN)/python -m reconnect_fsm diagrams "$$drawn" >/dev/null && \
	diff -r --exclude='*.svg' diagrams "$$drawn" || { echo "diagrams/ is out of date: run make diagrams" >&2; exit 1; }

wheel: $(DEV) ## build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove everything that is made here
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
		.ruff_cache *.egg-info tests/node/node_modules
	find reconnect_fsm tests -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer found; name one with: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name another with: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install its venv package (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "making a virtual environment in $(VENV) with $(PYTHON): some seconds …"
	@$(PYTHON) -m venv $(VENV)

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the library and all that its tests, checks and docs use into $(VENV), with pip: one to three minutes …"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(DEMO) $(BENCH) $@

# The demo needs no tools; what the line above installs is more than enough for it.
$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the library and what it depends on into $(VENV), with pip: some ten seconds …"
	@$(PIP) install -c constraints.txt -e '.[loro]'
	@touch $@

$(BENCH): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the library and those that it is measured against into $(VENV), with pip: under a minute …"
	@$(PIP) install -c constraints.txt -e '.[bench]'
	@touch $(DEMO) $@
