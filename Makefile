# install check test test-all compat demo bench docs; `make demo` on a fresh clone needs no other step.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# A process for each core; the tests of a file stay together, and share what they start.
PARALLEL := -n logical --dist loadfile

.PHONY: install compat check test test-all demo bench docs

install: $(VENV)/.installed

$(VENV)/.runtime: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt 'setuptools>=77'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.installed: $(VENV)/.runtime requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# What this project uses of Ray, and a training, on the oldest release admitted, or on RAY=….
compat: RAY ?= 2.59.0
compat:
	$(PYTHON) -m venv build/compat-$(RAY)
	build/compat-$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt 'ray[data,train,default,serve]==$(RAY)'
	build/compat-$(RAY)/bin/python -m pytest tests/integration/test_ray_compat.py tests/e2e/test_smoke.py

check: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

# Minutes: all units, the comparisons with the authors' code, and one run as a person makes it.
test: install
	$(RUN) -m pytest $(PARALLEL) -m "not slow"

test-all: install
	$(RUN) -m pytest $(PARALLEL) --durations=20

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
