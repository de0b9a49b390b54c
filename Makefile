# What a newcomer would type. Everything happens in .venv, made from python3 by `make setup`.
#
#   make demo           an example pack becomes an image, runs, and answers /generate
#   make demo-comfyui   the same with the real ComfyUI (COMFYUI=PATH takes a local clone)
#   make test lint      what CI runs (.ci/run)
#   make bench          every speed we claim, beside a peer, in one table (BENCH="layers registry" runs some)

PYTHON ?= python3
VENV := .venv/bin
COMFYUI ?=
TESTS ?=
BENCH ?=

.PHONY: help setup demo demo-comfyui test lint format bench docs clean service-lock
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile
	@echo "Targets: setup demo demo-comfyui test lint format bench docs clean service-lock"

.venv/ready: pyproject.toml .ci/venv
	@PYTHON=$(PYTHON) .ci/venv

.venv/dev: pyproject.toml .ci/venv
	@PYTHON=$(PYTHON) .ci/venv dev

setup: .venv/dev
	@echo "setup: ready; try $(VENV)/cpack-build --help"

demo: .venv/ready
	@$(VENV)/python examples/demo.py

demo-comfyui: .venv/ready
	@COMFYUI="$(COMFYUI)" $(VENV)/python examples/demo.py --comfyui

test: .venv/dev
	$(VENV)/python -m pytest -n 2 $(TESTS)

lint: .venv/dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	for platform in linux darwin win32; do $(VENV)/mypy --platform $$platform || exit 1; done
	$(VENV)/lint-imports

format: .venv/dev
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

bench: .venv/dev
	@$(VENV)/python examples/bench/__main__.py $(BENCH)

docs: .venv/ready
	$(VENV)/python docs/make.py

# The service's own packages, pinned with hashes for every image (cpack_build/serve/requirements.txt), as they were on
# AS_OF. The date belongs to the release: who has the release has the same pins, whatever came out since.
AS_OF ?= $(shell date -u +%Y-%m-%dT00:00:00Z)
service-lock: .venv/ready
	$(VENV)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-header --no-annotate --quiet \
		--exclude-newer $(AS_OF) --output-file cpack_build/serve/requirements.txt cpack_build/serve/requirements.in
	@sed -i -e '/^# As of /d' -e '1i # As of $(AS_OF): `make service-lock` takes nothing newer.' \
		cpack_build/serve/requirements.txt

clean:
	rm -rf .venv build dist .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
