# install check test test-all demo bench docs; `make demo` on a fresh clone needs no other step.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: install check test test-all demo bench docs

install: $(VENV)/.installed

$(VENV)/.runtime: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed: $(VENV)/.runtime requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

check: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

# Minutes: all units, the comparisons with the authors' code, and one run as a person makes it.
test: install
	$(RUN) -m pytest -m "not slow"

test-all: install
	$(RUN) -m pytest --durations=20

demo: $(VENV)/.runtime
	$(RUN) -m pipelines prepare fashion_mnist
	$(RUN) -m pipelines train demo

bench: install
	$(RUN) -m tests.benchmarks.rendering
	$(RUN) -m tests.benchmarks.stream --steps 120
	$(RUN) -m tests.benchmarks.sizing --quick --rounds 1 --seconds 5
	$(RUN) -m tests.benchmarks.simulation
	$(RUN) -m tests.benchmarks.images --quick
	$(RUN) -m tests.benchmarks.step --quick
	$(RUN) -m tests.benchmarks.big_batch --quick
	$(RUN) -m tests.benchmarks.embed --quick
	$(RUN) -m tests.benchmarks.startup --rounds 1

docs: install
	$(VENV)/bin/pdoc clippo_core pipelines cluster --output-directory build/docs
	@echo build/docs/index.html
