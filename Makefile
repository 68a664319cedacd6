# Two commands do everything on a fresh Debian machine with Python 3.11:
#   make quickstart   venv, install, train a small model on real text (about two minutes)
#   make test         venv, install, Debian's Slurm when root, every test
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
export PYTHONDONTWRITEBYTECODE := 1

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || tests/install-debian-packages python3-venv
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	tests/with-retries $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	tests/with-retries $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,peft,wandb,tensorboard,trackio,trainer,apprise,prometheus,notebook,dev]'
	@touch $@

install: $(INSTALLED) ## Make the virtual environment and install everything into it

quickstart: $(INSTALLED) ## Train a small model on this machine, offline
	$(RUN) -m launcher configs/quickstart.yaml

check: $(INSTALLED) ## Lint, types, layers: seconds
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(INSTALLED) ## Format and mend what ruff can mend
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

slurm: ## Debian's packages for the tests' own Slurm cluster (needs root)
	@tests/install-debian-packages --slurm

test: $(INSTALLED) ## Every test, on a real Slurm where it can be installed
	@tests/install-debian-packages --tests || true
	$(RUN) -m pytest -n 4 --dist loadscope --no-loadscope-reorder

cluster: $(INSTALLED) slurm ## A private 4-node Slurm on this machine to play with
	$(RUN) -m tests.cluster shell

bench: $(INSTALLED) ## Print the measurements of benchmarks/ (minutes)
	tests/with-retries $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(RUN) -m benchmarks

faults: $(INSTALLED) ## The fault matrix and a storm of 20 faults on a private Slurm (root; half an hour)
	@tests/install-debian-packages --slurm
	$(RUN) -m tests.faults matrix
	$(RUN) -m tests.faults storm

docs: $(INSTALLED) ## Write what is generated from the types: docs/configuration.md and the schema
	$(RUN) -m launcher schema --markdown > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(RUN) -m launcher schema > launcher/config.schema.json.new
	mv launcher/config.schema.json.new launcher/config.schema.json

notebooks: $(INSTALLED) ## Run the notebooks and store their outputs (minutes)
	$(RUN) -m tests.notebooks

picture: $(INSTALLED) slurm ## Draw docs/preempted.svg from a real run on a private Slurm
	$(RUN) -m tests.picture docs/preempted.svg

constraints: ## Write the installed versions to constraints.txt
	{ echo "# Versions that CI and the Makefile install. Refresh: make constraints"; \
	  $(RUN) -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## Remove caches; run folders stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: help install quickstart check format slurm test cluster bench faults docs notebooks picture constraints clean
