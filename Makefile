# The same commands by hand and in CI; `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
# one thread a worker; the rewritten tests are kept as bytecode, also where the environment keeps none
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help repro test smoke test-all faults mutants nightly lint types docs check audit licences sbom demo clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

repro: .venv/base .dvc/plots/page.html ## Install what is needed, run the pipeline and show its results
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@$(BIN)/python -m stages.results

test: .venv/dev ## Run the quick tests (offline, no GPU)
	$(PYTEST) --dist worksteal

smoke: .venv/dev ## Run what starts interpreters and servers, and one test of each slow kind
	$(PYTEST) --dist loadfile -m 'smoke or integration and not slow' -rs

test-all: .venv/dev ## Run the slow and real tests too; those that cannot run here skip loudly
	$(PYTEST) --dist loadfile -m '' -rs --hypothesis-profile nightly

faults: .venv/dev ## Break the pipeline in every way, the long form; prints a table
	$(BIN)/python -m tests.faults

mutants: .venv/dev ## Change the maths in small ways and see tests fail; SAMPLE=0 to 9: a tenth of them
	$(BIN)/python -m tests.mutants $(if $(SAMPLE),--sample $(SAMPLE))

nightly: ## Run what takes long: all tests, all faults, a tenth of the mutants
	$(MAKE) test-all
	$(MAKE) faults
	$(MAKE) mutants SAMPLE=$(shell date +%d | tail -c 2)

lint: .venv/dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev ## Check types
	$(BIN)/mypy

docs: .venv/docs ## Build the documentation into site/; a broken link or unknown name fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: ## Run what CI runs
	bash .ci/run

audit: .venv/dev ## Look for known vulnerabilities of the pins (asks PyPI)
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

licences: .venv/dev .venv/docs ## Write docs/licences.md
	$(BIN)/pip-licenses --from=mixed --with-system --order=name --format=markdown --ignore-packages kdmcse --output-file docs/licences.md

sbom: .venv/dev ## Write dist/sbom.json (CycloneDX)
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --of JSON -o dist/sbom.json $(BIN)/python

demo: .venv/base ## Rebuild the embedded teacher and student (data/demo)
	$(BIN)/python -m stages.demo

clean: ## Remove the virtual environment and caches; data stays
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis mutants site

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[repro]'
	@touch $@

.dvc/plots/page.html: .dvc/plots/frame.html pipeline/results/plots.py | .venv/base
	@$(BIN)/python -m stages.plots 2> /dev/null

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[dev,repro,app,cluster,heic,milvus]'
	@# milvus-lite asks for faiss-cpu, whose files replace those of faiss-gpu
	@if $(BIN)/python -m pip show --quiet faiss-gpu 2> /dev/null; then \
	  $(INSTALL) --force-reinstall --no-deps faiss-gpu; fi
	@touch $@ .venv/base

.venv/docs: pyproject.toml constraints.txt | .venv/base
	$(INSTALL) --editable '.[docs]'
	@touch $@
