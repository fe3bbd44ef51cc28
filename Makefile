# Everything sets itself up: a .venv of its own, with the versions pinned in constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help pretrain test wheel tour docs conformance faults lint types phrases format lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := runs/sample
MINUTES ?= 5
# What no person of this project wrote, or what quotes the phrases.
NOT_CHECKED := ':!docs/tour*' ':!docs/contributing/style.md' ':!docs/contributing/banned-phrases.txt'

export TOKENIZERS_PARALLELISM := true

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'error: $(PYTHON) is older than 3.11, which transformers needs; name another: make PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

pretrain: $(READY)  ## the main job: raw text in, a fine-tuned model and its figures out (runs/sample)
	$(BIN)/python -m pretrain --recipe sample --corpus sample --minutes $(MINUTES) --output $(RUN)/pretrained
	$(BIN)/python -m finetune --model $(RUN)/pretrained --task sample-sentiment --seeds 3 --compare \
		--learning-rate 5e-4 --epochs 4 --token-masking 0.15 --dropout 0.1 \
		--report $(RUN)/report.md --output $(RUN)/finetuned
	$(BIN)/python -m hf_tiny_transformer attend --model $(RUN)/pretrained --live --output $(RUN)/live.html

$(VENV)/.extras: $(READY)
	for extra in web; do \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$$extra]" \
			|| echo "$$extra does not install here: its tests will be skipped"; \
	done
	touch $@

test: $(READY) $(VENV)/.extras  ## the tests, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

wheel: $(READY)  ## build the wheel, install it in a new environment, and run every command there
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel
	$(BIN)/python tests/wheel.py build/wheel/*.whl

tour: $(READY)  ## write docs/tour.md in both languages, with its numbers and pictures
	$(BIN)/python -m docs.tour

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## the documentation, with the references, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

conformance: $(READY)  ## Hugging Face's own model tests, on our families and on stock ones
	$(BIN)/python -m tests.conformance

faults: $(READY)  ## break runs on purpose, resume them, and count what held in docs/reliability.md (30 minutes)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.faults

lint: $(READY) types phrases  ## ruff (rules, docstrings, format), types, spelling, banned phrases
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(READY)  ## check the types with mypy
	$(BIN)/mypy

phrases:  ## reject the phrases of docs/contributing/banned-phrases.txt; docs/contributing/style.md has replacements
	@git grep --line-number --untracked -I --ignore-case --perl-regexp -f docs/contributing/banned-phrases.txt -- \
		'*.py' '*.md' '*.j2' '*.yaml' '*.html' '*.toml' '*.cff' Makefile $(NOT_CHECKED); test $$? -eq 1

format: $(READY)  ## apply ruff's automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## constraints.lock: the versions of constraints.txt with the hashes of their files
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --no-deps --no-emit-package torch --generate-hashes --no-annotate --no-header \
		--python-version 3.11.5 --output-file constraints.lock constraints.txt

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
