# Everything runs in .venv, which `setup` makes on first use and afterwards only checks.
#   make demo | make test | make help
#   make setup PYTHON=python3.12          another interpreter (its own torch and detectron2 are kept)
#   make setup TORCH_SPEC="torch==2.8.0 torchvision==0.23.0" TORCH_INDEX=<index address>
export PYTHON TORCH_SPEC TORCH_INDEX
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup check demo test lint format clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup:  ## make .venv with everything in it (a no-op when it is up to date)
	@sh tools/setup.sh

check: setup  ## say what is right and wrong with the environment
	@$(RUN) -m fss_d2.check_env

demo: setup  ## label real pictures, then train on embedded data and evaluate (minutes, CPU is enough)
	@$(RUN) demo/glyphs_demo.py

lint: setup  ## ruff: lint and format check
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

test: lint  ## lint, then the test suite
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --durations=15

format: setup  ## rewrite the sources in the project's format
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

clean:  ## remove .venv, caches and build files
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
