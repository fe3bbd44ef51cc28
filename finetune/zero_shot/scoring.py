"""How likely a language model finds a sentence: log-likelihood (decoders), pseudo-log-likelihood (encoders).

Either is a sum of log-probabilities of single tokens, each read at one position of one row of input ids. A scorer says
which rows and positions; rows that several sentences ask for are run once, and `score_rows` runs them in batches of
equal length, so that there is no padding, with the head on the positions that are read.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ids = tuple[int, ...]
# input ids -> position -> the tokens whose log-probability is read there, and the sentence to whose score it is added
Rows = dict[Ids, dict[int, list[tuple[int, int]]]]

TOKENS_PER_BATCH = 2048  # measured on CPU: more is no faster and takes more memory
LOGITS_PER_BATCH = 2**22  # 16 MiB


@dataclass(frozen=True)
class Sentence:
    """Token ids; `scored` are the positions of the text itself, not of what the tokenizer puts around it; `words` gives
    the word that a position belongs to, None outside the text."""

    ids: Ids
    scored: tuple[int, ...]
    words: tuple[int | None, ...]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, causal: bool) -> list[Sentence]:
    """Tokenizes; with `causal`, a sentence that would begin with a bare word gets the tokenizer's bos token in front
    (else its eos token, which ends documents), so that the first word is scored too."""
    encoded = tokenizer(list(texts), return_special_tokens_mask=True, add_special_tokens=True)
    sentences = []
    for index, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        words = encoded.word_ids(index) if tokenizer.is_fast else range(len(ids))
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if causal and start is not None and not special[0]:
            ids, special, words = [start, *ids], [1, *special], [None, *words]
        scored = tuple(position for position, mark in enumerate(special) if not mark)
        sentences.append(Sentence(tuple(ids), scored, tuple(words)))
    return sentences


def likelihood_rows(sentences: Sequence[Sentence]) -> Rows:
    """Every token is read where the one before it stands; a first one without anything before it is not scored."""
    rows: Rows = defaultdict(dict)
    for number, sentence in enumerate(sentences):
        reads = rows[sentence.ids]
        for position in sentence.scored:
            if position > 0:
                reads.setdefault(position - 1, []).append((sentence.ids[position], number))
    return rows


def masked_rows(sentences: Sequence[Sentence], mask_id: int, *, word_l2r: bool) -> Rows:
    """Every token is read in a copy of the sentence in which it is masked (Salazar et al. 2020, equation 1).

    With `word_l2r`, the later tokens of its word are masked too (Kauf and Ivanova 2023, PLL-word-l2r): otherwise a rare
    word of several pieces looks likely, since each piece is given away by the others.
    """
    rows: Rows = defaultdict(dict)
    for number, sentence in enumerate(sentences):
        ids, words = sentence.ids, sentence.words
        for position in sentence.scored:
            end = position + 1
            while word_l2r and end < len(ids) and words[end] is not None and words[end] == words[position]:
                end += 1
            masked = ids[:position] + (mask_id,) * (end - position) + ids[end:]
            rows[masked].setdefault(position, []).append((ids[position], number))
    return rows


@torch.inference_mode()
def score_rows(
    model: PreTrainedModel, rows: Rows, sentences: int, advance: Callable[[float], object] = lambda share: None
) -> np.ndarray:
    """Runs all rows; returns a score for each of the `sentences`, natural logarithms, (sentences,) float64.

    Args:
        advance: is called after each batch with its share of the rows.
    """
    scores = np.zeros(sentences)
    selects = "target_positions" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    for batch in _batches(rows, model.config.vocab_size, all_positions=not selects):
        length = len(batch[0])
        reads = [
            (row * length + at, token, owner) for row, ids in enumerate(batch) for at, token, owner in _reads(rows, ids)
        ]
        flat, tokens, owners = (list(column) for column in zip(*reads, strict=True))
        positions, where = torch.tensor(flat).unique(return_inverse=True)
        input_ids = torch.tensor(batch, device=model.device)
        positions = positions.to(model.device)
        if selects:
            logits = model(input_ids=input_ids, target_positions=positions, **options).logits
        else:
            logits = model(input_ids=input_ids, **options).logits.flatten(0, 1)[positions]
        logits = logits.float()
        where, tokens = where.to(model.device), torch.tensor(tokens, device=model.device)
        log_probabilities = logits[where, tokens] - logits.logsumexp(dim=-1)[where]
        np.add.at(scores, owners, log_probabilities.double().cpu().numpy())
        advance(len(batch) / len(rows))
    return scores


def _reads(rows: Rows, ids: Ids) -> Iterator[tuple[int, int, int]]:
    for position, wanted in rows[ids].items():
        for token, owner in wanted:
            yield position, token, owner


def _batches(rows: Rows, vocab_size: int, *, all_positions: bool) -> Iterator[list[Ids]]:
    """Rows of equal length, as many as the limits on tokens and on logits allow."""
    by_length = defaultdict(list)
    for ids, reads in rows.items():
        if reads:
            by_length[len(ids)].append(ids)
    for length, group in sorted(by_length.items()):
        most_reads = length if all_positions else max(len(rows[ids]) for ids in group)
        size = max(1, min(TOKENS_PER_BATCH // length, LOGITS_PER_BATCH // (vocab_size * most_reads)))
        for start in range(0, len(group), size):
            yield group[start : start + size]
