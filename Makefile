# Every target sets up what it needs, in its own virtual environment; Python 3.11 or newer and make
# are all that has to be there. 'make' alone lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= dev,text,hf,diffusion,consolidate,icons,export,photos
ARGS ?=

# The first Python on the path that is new enough and can make a virtual environment.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

# The environment is as good as the files it was made from: another hash, another set-up.
HASH := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.weightloom-$(HASH)
DOCS_STAMP := $(VENV)/.weightloom-docs-$(HASH)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.weightloom-*
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),docs]'
	@touch $@

.PHONY: setup
setup: $(STAMP) ## Make the virtual environment (in .venv, or VENV=...)

.PHONY: demo
demo: $(STAMP) ## Generate a network that reads handwritten digits, and measure it
	$(BIN)/weightloom generate "Recognise handwritten digits" --task digits --arch 'cnn(depth=3,width=16)' \
		--samples 4 --seed 0 --out runs/demo/digits.safetensors --plot runs/demo/digits.png

# Two processes side by side: these folders, and all that is not in them.
HALF := $(addprefix tests/,architectures cli conditioning consolidation contracts end_to_end engines evaluation export)

.PHONY: test
test: $(STAMP) ## Run the tests, doctests and snippets (ARGS='-k name' for some)
	@if [ -n "$(ARGS)" ]; then $(BIN)/python -m pytest $(ARGS); exit $$?; fi; \
	mkdir -p build; failed=0; \
	$(BIN)/python -m pytest -p no:cacheprovider $(addprefix --ignore=,$(HALF)) >build/half.txt 2>&1 & other=$$!; \
	$(BIN)/python -m pytest -p no:cacheprovider $(HALF) || failed=1; \
	wait $$other || failed=1; cat build/half.txt; exit $$failed

.PHONY: faults
faults: $(STAMP) ## Run the fault tests at full size: 500 kills, a million changed files
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),faults]'
	WEIGHTLOOM_FAULTS=full $(BIN)/python -m pytest tests/faults --junit-xml=build/faults.xml $(ARGS)

.PHONY: ray
ray: $(STAMP) ## Install Ray and run the tests of the engines on a cluster of this machine
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),ray]'
	$(BIN)/python -m pytest tests/engines tests/cli/test_audit.py tests/cli/test_bench.py \
		tests/cli/test_networks.py $(ARGS)

.PHONY: fuzz
fuzz: $(STAMP) ## Run the readers under a fuzzer that is led by coverage (Linux; about half an hour)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),fuzz]'
	$(BIN)/python tests/faults/fuzz.py $(ARGS)

.PHONY: pip-audit
pip-audit: ## Look the pinned versions up in the list of advisories (needs network access)
	@test -x build/pip-audit/bin/pip-audit || { $(PYTHON) -m venv build/pip-audit \
		&& build/pip-audit/bin/pip install --quiet pip-audit==2.10.1; } || true
	@$(PYTHON) .ci/advisories.py build/pip-audit/bin/pip-audit $(ARGS)

.PHONY: lint
lint: $(STAMP) ## Check style, types and floors
	@failed=0; for check in 'ruff check .' 'ruff format --check .' mypy lint-imports; do \
		echo "$$check"; $(BIN)/$$check || failed=1; done; exit $$failed

.PHONY: format
format: $(STAMP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(DOCS_STAMP) ## Build the site into site/
	$(BIN)/mkdocs build --strict

ZOO ?= runs/zoo-tiny
.PHONY: zoo
zoo: $(STAMP) ## Build the zoo that layerwise-tiny carries an index of in runs/zoo-tiny (about half an hour on 2 cores)
	$(BIN)/weightloom data fetch mnist fashion-mnist cifar10 quickdraw digits
	$(BIN)/weightloom zoo build recipes/zoo-tiny.yaml --out $(ZOO) --workers 2

.PHONY: generator
generator: zoo ## Train layerwise-tiny again from its recipes in runs/layerwise-tiny (about an hour on 2 cores)
	$(BIN)/weightloom train recipes/layerwise-tiny.yaml --zoo $(ZOO) --out runs/layerwise-tiny

.PHONY: references
references: zoo ## Measure what the networks of zoo-tiny reach again, which other tables are held against
	$(BIN)/python benchmarks/zoo_references.py --zoo $(ZOO)

FULL := unseen seen datasets sizes large instructions

.PHONY: figures-ghn
figures-ghn: $(STAMP) ## Make the tables of graph hypernetworks again (about four hours on 2 cores)
	$(BIN)/weightloom data fetch cifar10
	@set -e; for table in unseen ablations properties finetune; do \
		echo "$$table"; $(BIN)/python benchmarks/ghn.py $$table; done
	$(BIN)/python benchmarks/ghn_report.py

.PHONY: figures-full
figures-full: $(STAMP) ## Make the tables of layer-wise generation at full strength again (about two hours on 2 cores)
	$(BIN)/weightloom data fetch mnist fashion-mnist cifar10 quickdraw digits glyphs
	@set -e; for name in fashion-mnist cifar10; do \
		$(BIN)/weightloom train layerwise-without-$$name --out runs/layerwise-without-$$name; done
	@set -e; for table in $(FULL); do echo "$$table"; $(BIN)/python benchmarks/full.py $$table; done
	$(BIN)/python benchmarks/full.py reward --limit 3
	$(BIN)/python benchmarks/full.py audit --limit 2 --samples 2
	$(BIN)/python benchmarks/selection.py measure --tasks 2 --seeds 3 --first 60 --budget 30s --steps 400
	$(BIN)/python benchmarks/full_report.py

LEADERS := --generator layerwise-tiny --generator runs/igpg-tiny --generator runs/diffusion-tiny --generator runs/diffusion-recurrent-tiny \
	--generator runs/static-tiny --generator ghn-cifar10-tiny --tasks 2 --samples 2 --epoch-steps 20

.PHONY: leaderboard
leaderboard: zoo ## Make the leaderboard again (about an hour on 2 cores; goes on where it stopped)
	$(BIN)/weightloom data fetch mnist fashion-mnist cifar10 quickdraw digits glyphs shapes
	$(BIN)/weightloom train igpg-tiny --zoo $(ZOO) --out runs/igpg-tiny
	$(BIN)/weightloom train diffusion-tiny --out runs/diffusion-tiny
	$(BIN)/weightloom train diffusion-recurrent-tiny --out runs/diffusion-recurrent-tiny
	$(BIN)/weightloom train static-tiny --out runs/static-tiny
	$(BIN)/weightloom bench $(LEADERS) --out runs/leaderboard $(ARGS)
	cp runs/leaderboard/leaderboard.md runs/leaderboard/leaderboard.png docs/results/
	cp runs/leaderboard/leaderboard.json benchmarks/results/

.PHONY: constraints
constraints: ## Write constraints.txt again, from the newest versions that fit
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet 'torch==2.13.0' -e '.[$(EXTRAS),ray,docs,fuzz,faults]'
	{ head -n 2 constraints.txt; build/constraints/bin/pip freeze --all --exclude-editable | sed 's/+cpu$$//' \
		| grep -Eiv '^(pip|weightloom|nvidia|triton|cuda)'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

.PHONY: clean
clean: ## Remove what the tools left; the environment and runs/ stay
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
