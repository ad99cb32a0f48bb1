# Every command sets up what it needs in .venv, once, and again only after pyproject.toml or
# constraints.txt changes. It takes make and Python 3.11, 3.12 or 3.13 with its venv module.

# Makes a new .venv. To change that of an old one: make clean, then make PYTHON=python3.12 ...
PYTHON ?= python3

VENV := .venv
RUN := $(VENV)/bin/python
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
CUDA := $(VENV)/.installed-cuda

# Constrains what is installed and, by old and by new pips, what builds it.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
INSTALL := $(RUN) -m pip install -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help install quickstart check test lint docs benchmark gpu-program clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile
	@echo 'The first one that needs .venv makes it with python3. PYTHON=python3.12 names another.'

install: $(DEV) ## set up .venv with everything, notebooks and tests included

quickstart: $(CORE) ## see plasticity lost, and kept: a table here, a figure in outputs/quickstart
	$(RUN) -m experiments.train experiment=quickstart

check: lint ## style, types and the tests that find most faults: before each commit
	$(RUN) -m pytest -n auto -m 'not slow'

test: $(DEV) ## run all tests
	$(RUN) -m pytest -n auto

lint: $(DEV) ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(DOCS) ## build the documentation site in docs/_build/html
	$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html

benchmark: $(CORE) ## measure the speed of training on this machine
	$(RUN) -m experiments.benchmark

gpu-program: $(CUDA) ## compile every method for an NVIDIA GPU, without one: about an hour
	$(RUN) -m experiments.gpu_program
	$(RUN) -m experiments.gpu_program --methods

clean: ## remove .venv and caches, but no results
	rm -rf $(VENV) docs/_build docs/notebooks build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an install that failed or was interrupted is done again.
$(CORE): pyproject.toml constraints.txt
	@$(RUN) -m pip --version >/dev/null 2>&1 || { $(CHECK_PYTHON); rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@rm -f $(CORE) $(DEV) $(DOCS) $(CUDA)
	@echo 'Installing plasticity into $(VENV) (once, a few minutes)'
	@$(INSTALL) -e .
	@touch $@

$(DEV): $(CORE)
	@rm -f $@
	@echo 'Installing the tools for tests and notebooks into $(VENV) (once, a minute or two)'
	@$(INSTALL) -e '.[dev,notebooks]'
	@touch $@

$(DOCS): $(CORE)
	@rm -f $@
	@echo 'Installing the tools for the documentation into $(VENV) (once, a minute)'
	@$(INSTALL) -e '.[docs,envs]'
	@touch $@

$(CUDA): $(CORE)
	@rm -f $@
	@echo "Installing NVIDIA's libraries and JAX environments into $(VENV) (once, 5 GB)"
	@$(INSTALL) -e '.[cuda,envs]'
	@touch $@

# Says in one line why $(PYTHON) cannot make .venv.
define CHECK_PYTHON
fault=; \
if ! $(PYTHON) -c '' >/dev/null 2>&1; then \
  fault='does not run'; \
elif ! $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then \
  fault="is $$($(PYTHON) --version 2>&1)"; \
elif ! $(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1; then \
  fault='has no venv module (on Debian and Ubuntu: apt install python3-venv)'; \
fi; \
if [ -n "$$fault" ]; then \
  echo "$(PYTHON) $$fault. Python 3.11, 3.12 or 3.13 is needed; PYTHON=python3.12 names one." >&2; \
  exit 1; \
fi
endef
