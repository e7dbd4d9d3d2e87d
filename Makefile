# What one types here; `make help` lists it.
#
# Needs only make and Python 3.11 or newer.  Packages are installed when pyproject.toml or
# constraints.txt are newer than the last installation, else nothing asks for a network.  Pip's own
# settings work as always (PIP_INDEX_URL, PIP_FIND_LINKS, ...).

PYTHON ?= python3
VENV := .venv
JOBS ?= 2
PIP_FLAGS ?=
FIGURES ?=
STUDIES ?=
ARGS ?=

RUN := $(VENV)/bin/python
CREATED := $(VENV)/pyvenv.cfg
DEVELOPMENT := $(VENV)/.installed-dev
DEMONSTRATION := $(VENV)/.installed-demo

.DEFAULT_GOAL := venv
.DELETE_ON_ERROR:
.PHONY: help venv demo test nightly chaos soak bench reproduce lint docs clean distclean

help:
	@echo 'make            create $(VENV) and install what development needs'
	@echo 'make demo       train the MNIST network with four workers, and show the result'
	@echo 'make test       run all tests           ARGS="tests/unit -k layout" runs some'
	@echo 'make nightly    20000 random fault schedules, and a larger search of small clusters'
	@echo 'make chaos      train under faults, and demand limits'
	@echo 'make soak       train under faults for 15 minutes, and look whether memory is flat'
	@echo 'make bench      measure                 FIGURES="mlp cnn" measures some'
	@echo 'make reproduce  run the studies         STUDIES="softsync" runs some'
	@echo 'make lint       check style and types'
	@echo 'make docs       check links and names in the pages'
	@echo 'make clean      delete what tools left; distclean: $(VENV) too.  Runs are never deleted'
	@echo
	@echo 'PYTHON=python3.12 names the interpreter for a new $(VENV); PIP_FLAGS="..." goes to pip'

venv: $(DEVELOPMENT)
	@echo 'ready: $(VENV) (make help says what there is)'

demo: $(DEMONSTRATION)
	@$(VENV)/bin/tardygrad train mnist-async $(ARGS)

# Real processes compete for the cores, so the slow tests do not run beside others.  Status 5 means
# that there was none of the kind.
test: $(DEVELOPMENT)
	@$(RUN) -m pytest -n $(JOBS) -m 'not slow' $(ARGS) || test $$? -eq 5
	@$(RUN) -m pytest -m slow $(ARGS) || test $$? -eq 5

nightly: $(DEVELOPMENT)
	@$(RUN) -m tardygrad.testing.fuzz --count 20000 --jobs $(JOBS) $(ARGS)
	@$(RUN) -m tardygrad.testing.explore --workers 1 --batches 2 --fragment-batches 1 --faults 2
	@$(RUN) -m tardygrad.testing.explore --batches 2 --fragment-batches 1 --in-flight 1

# A minute of faults, one every 2 s; an undisturbed run beside it.
chaos: $(DEMONSTRATION)
	@$(VENV)/bin/tardygrad chaos mnist-async --every 2s --for 60s --set replicas=1 \
	    --set checkpoint.every_s=1 --kinds kill,stop,slow,server,backup,scheduler,disk \
	    --limit goodput=0.9 --limit accuracy=0.3 --limit others=0.1 --limit replacement=4 \
	    --limit shard=0.5 --limit scheduler=3 $(ARGS)

# Long, so it is no part of continuous integration.
soak: $(DEMONSTRATION)
	@$(VENV)/bin/tardygrad chaos mnist-async --every 20s --for 15m --alone --set replicas=1 \
	    --set checkpoint.every_s=5 --limit memory=1 $(ARGS)

bench: $(DEVELOPMENT)
	@$(RUN) -m benchmarks $(FIGURES)

reproduce: $(DEVELOPMENT)
	@$(RUN) -m studies $(STUDIES)

lint: $(DEVELOPMENT)
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy

docs: $(DEVELOPMENT)
	@$(RUN) docs/check.py

clean:
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	@find $(wildcard src tests benchmarks studies examples docs) -type d -name __pycache__ -prune \
	    -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

# One recipe installs for both; whoever has the tools for development has those for the demo.
define install
	@echo "installing tardygrad with $(EXTRAS) into $(VENV); the first time takes some minutes"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	    -c constraints.txt -e '.[$(EXTRAS)]' || { \
	  echo >&2 'make: the installation failed, see above.  Without a network, PIP_FIND_LINKS or'; \
	  echo >&2 '      PIP_INDEX_URL may name a place that has the packages; if $(VENV) itself is'; \
	  echo >&2 '      broken, make distclean and try again.'; \
	  exit 1; }
endef

$(DEVELOPMENT): EXTRAS = dev
$(DEVELOPMENT): pyproject.toml constraints.txt | $(CREATED)
	$(install)
	@touch $(DEMONSTRATION) $@

$(DEMONSTRATION): EXTRAS = mnist,report
$(DEMONSTRATION): pyproject.toml constraints.txt | $(CREATED)
	$(install)
	@touch $@

$(CREATED):
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo >&2 'make: there is no $(PYTHON) here: name Python 3.11 or newer by make PYTHON=PATH'; \
	  exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo >&2 "make: tardygrad needs Python 3.11 or newer, and $(PYTHON) is" \
	    "$$('$(PYTHON)' --version 2>&1): name another by make PYTHON=PATH"; \
	  exit 1; }
	@'$(PYTHON)' -m venv '$(VENV)' || { \
	  echo >&2 'make: $(PYTHON) cannot create $(VENV), see above (Debian and Ubuntu have venv in a'; \
	  echo >&2 '      package of its own: apt install python3-venv).'; \
	  exit 1; }
