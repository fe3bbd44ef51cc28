"""Tokens per second of building batches, per objective and row length, on one core; the model is not part of it.

python -m benchmarks.batch_builder
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hf_tiny_transformer.common.errors import run_command
from pretrain.batches import BatchSource, make_objective
from pretrain.data.packed import open_packed
from pretrain.data.tokenizer import VocabularyFacts
from pretrain.recipe import Stage
from pretrain.schedule import StagePlan

VOCABULARY, SPECIAL, SPANS = 8192, 5, 64
DOCUMENT, TOKENS = 200, 20_000_000  # tokens in a document on average, and in the file
BATCH_TOKENS, SECONDS = 65_536, 2.0
SIDES = [("mlm", "token"), ("mlm", "whole_word"), ("mlm", "span"), ("mlm_nsp", "token")]
SIDES += [("next_token", ""), ("span_corruption", "")]


def main() -> None:
    random = np.random.default_rng(0)
    ids = np.arange(VOCABULARY)
    is_special = (ids < SPECIAL) | (ids >= VOCABULARY - SPANS)
    ordinary, spans = ids[~is_special], ids[VOCABULARY - SPANS :]
    facts = VocabularyFacts(2, 3, 4, 0, is_special, random.random(VOCABULARY) < 0.75, ordinary, spans)  # 3/4 are words
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "train.bin")
        tokens = random.choice(ordinary.astype(np.uint16), TOKENS)
        starts = 2 * np.unique(random.integers(TOKENS // 2, size=TOKENS // DOCUMENT))
        tokens[starts], tokens[starts - 1] = facts.cls_id, facts.sep_id
        path.write_bytes(tokens.tobytes())
        data = open_packed(path, VOCABULARY, facts.cls_id, block_size=512, what="training")
        for objective, masking in SIDES:
            source = BatchSource(make_objective(objective, data, facts, masking=masking), seed=1)
            mask_rate = None if objective == "next_token" else 0.2
            rates = [_rate(source, Stage(1.0, T, BATCH_TOKENS // T, mask_rate)) / 1e6 for T in (128, 512)]
            print(f"{objective:15} {masking:10} T 128: {rates[0]:6.2f}, T 512: {rates[1]:6.2f} million tokens/s")


def _rate(source: BatchSource, stage: Stage) -> float:
    """Return the tokens per second of the fastest batch, since other work can only slow a batch down."""
    plan, step, best, end = StagePlan(0, stage, 0, 10**6), 0, float("inf"), time.perf_counter() + SECONDS
    while step < 3 or time.perf_counter() < end:
        start = time.process_time()
        list(source.micro_batches(plan, step, rank=0, world=1, size=stage.batch_size))
        best, step = min(best, time.process_time() - start), step + 1
    return BATCH_TOKENS / best


if __name__ == "__main__":
    sys.exit(run_command(main))
