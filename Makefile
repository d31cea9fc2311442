# Everything that this repository can do, from a fresh clone. The first target that needs it makes .venv.

PYTHON ?= python3
BIN := .venv/bin
# LIBERO's meshes and textures; without them its tests are skipped and nothing of it is installed.
ASSETS := $(abspath $(or $(WOVR_LIBERO_ASSETS),$(wildcard ../shared/libero-assets)))

.PHONY: help demo study test lint format docs pretrained clean
.DEFAULT_GOAL := help

help: ## Show this.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/installed ## Train a policy in imagination on two CPU cores; the report is in runs/demo/report.
	$(BIN)/wovr demo

study: .venv/installed ## Compare variants over seeds, a cell at a time; it goes on where it stopped. Hours.
	$(BIN)/wovr study configs/study.yaml

# Pages come last and alone: beside busy workers on two cores a browser may stop answering for good.
test: .venv/installed .venv/chromium $(if $(ASSETS),.venv/libero) ## Run the tests, every stage at toy size included.
	$(if $(ASSETS),WOVR_LIBERO_ASSETS='$(ASSETS)') OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not page'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 1 -m page

lint: .venv/installed ## Check style, types and who imports whom.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed ## Mend what can be mended without a person.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed ## Write the references of configuration and command line anew from the code.
	$(BIN)/python docs/generate.py

pretrained: .venv/installed ## Make data/pretrained anew, in about three hours on two cores with AMX.
	$(BIN)/wovr pretrain configs/pretrain.yaml --out build/pretrain
	cp build/pretrain/*.safetensors build/pretrain/card.json data/pretrained

clean: ## Remove .venv and caches; runs/ stays.
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "expected Python 3.11 or newer, found $$($(PYTHON) -V 2>&1); choose another: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "expected Python with venv, found none; install it: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Tests of pages drive the system's Chromium; without one they are skipped.
.venv/chromium: .venv/installed
	@command -v chromium google-chrome >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no Chromium found; tests of pages need one: apt install chromium" >&2
	@touch $@

# hf-libero without its dependencies, for a reason that pyproject.toml gives; and a GL library if there is none.
.venv/libero: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,libero-runtime]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps hf-libero
	@$(BIN)/python -c 'from wovr.envs.libero.install import working_gl; working_gl()' 2>/dev/null \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq libosmesa6; } \
		|| echo "no GL library works; LIBERO's tests need one: apt install libosmesa6" >&2
	@touch $@
