# Everything sets itself up: a .venv of its own, with the versions pinned in constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help pretrain test tour conformance lint format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := runs/sample
MINUTES ?= 5

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
		--learning_rate 5e-4 --epochs 4 --token_masking 0.15 --dropout 0.1 \
		--report $(RUN)/report.md --output $(RUN)/finetuned

$(VENV)/.extras: $(READY)
	for extra in web; do \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$$extra]" \
			|| echo "$$extra does not install here: its tests will be skipped"; \
	done
	touch $@

test: $(READY) $(VENV)/.extras  ## the tests, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

tour: $(READY)  ## write docs/tour.md in both languages, with its numbers and pictures
	$(BIN)/python -m docs.tour

conformance: $(READY)  ## Hugging Face's own model tests, on our families and on stock ones
	$(BIN)/python -m conformance

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache
