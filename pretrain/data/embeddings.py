"""Initial embeddings: of tokens by factorising the corpus' co-occurrence counts, of learned positions by sinusoids.

Masked-language-model training first learns, slowly, which tokens occur together. Counting finds this in seconds: the
factorised matrix of positive pointwise mutual information is what word2vec approximates (Levy and Goldberg 2014; the
settings follow Levy, Goldberg and Dagan 2015, "Improving distributional similarity", section 3). Sinusoids make
neighbouring positions similar from the first step (benchmarks/LOG.md, "BERT's plateau").
"""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn
from transformers import PreTrainedModel

from hf_tiny_transformer.common.files import atomic_directory, cache_entry, is_intact, only_process
from hf_tiny_transformer.layers import sinusoidal_positions

from .packed import PackedTokens, open_packed
from .prepare import PreparedData
from .team import Team
from .tokenizer import VocabularyFacts, vocabulary_facts

VERSION = 2  # of the cached vectors: raise it when they change
VECTORS_FILE = "vectors.npy"
WINDOW = 10  # tokens to each side; a pair at distance d counts WINDOW + 1 - d times
CONTEXTS = 4096  # columns, for the most frequent tokens: bounds memory to vocabulary * CONTEXTS floats
CONTEXT_SMOOTHING = 0.75  # exponent on context frequencies, against a bias towards rare ones
MOST_TOKENS = 20_000_000  # counted, from the start: bounds time on large corpora
POSITIONS_PER_TOKENS = 2.0  # root mean square of the positions' entries, per that of the tokens'
NORM_PER_SQRT_DIMENSION = 0.1  # so that logits of the tied output layer start with a spread of about 1

logger = logging.getLogger(__name__)


def initial_embeddings(data: PreparedData, dimensions: int) -> np.ndarray:
    """Return `cooccurrence_embeddings` of a prepared corpus, cached; all processes call this."""
    directory = cache_entry("embeddings", [VERSION, dimensions, data.directory.name])

    def write() -> None:
        logger.info("corpus: factorising co-occurrence counts")
        facts = vocabulary_facts(data.tokenizer)
        tokens = open_packed(data.tokens("train"), len(data.tokenizer), facts.cls_id, block_size=1, what="training")
        with atomic_directory(directory) as staging:
            np.save(staging / VECTORS_FILE, cooccurrence_embeddings(tokens, facts, dimensions))

    def write_once() -> None:
        with only_process(directory):
            if not is_intact(directory):
                write()

    Team().main_only(write_once)
    return np.load(directory / VECTORS_FILE)


def cooccurrence_embeddings(data: PackedTokens, facts: VocabularyFacts, dimensions: int) -> np.ndarray:
    """Return vectors (V, dimensions) float32 of norm 0.1 * sqrt(dimensions), zero for special and for absent tokens."""
    counts = _count(np.asarray(data.tokens[:MOST_TOKENS]), data.cls_id, facts)
    associations = _positive_pmi(counts)
    dimensions_found = min(dimensions, min(associations.shape) - 1)
    left, strengths, _ = randomized_svd(associations, dimensions_found, n_iter=3, random_state=0)
    vectors = np.zeros((len(facts.is_special), dimensions), dtype=np.float32)
    vectors[:, :dimensions_found] = left * np.sqrt(strengths)
    vectors[~counts.any(axis=1)] = 0  # exactly
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
    return vectors * np.float32(NORM_PER_SQRT_DIMENSION * np.sqrt(dimensions))


@torch.no_grad()
def start_positions(model: PreTrainedModel) -> None:
    """Set learned positions to the sinusoids of Vaswani et al. (2017, 3.5), scaled to the token embeddings.

    A model without learned positions is unchanged.
    """
    size = POSITIONS_PER_TOKENS * model.get_input_embeddings().get_parameter("weight").square().mean().sqrt()
    for module in model.modules():
        positions = getattr(module, "embed_positions", None)
        if isinstance(positions, nn.Embedding):
            count, width = positions.weight.shape
            even = width + width % 2  # sines and cosines come in pairs
            sinusoids = sinusoidal_positions(torch.arange(count), even, positions.weight.dtype)[:, :width]
            positions.weight.copy_(sinusoids * size * 2**0.5)  # a sine's own root mean square is 1 / sqrt(2)


def _count(tokens: np.ndarray, cls_id: int, facts: VocabularyFacts) -> np.ndarray:
    """Return how often each token occurs near each frequent one in the same document, (V, C) float32."""
    vocabulary = len(facts.is_special)
    frequency = np.bincount(tokens, minlength=vocabulary)
    frequency[facts.is_special] = 0
    contexts = np.argsort(-frequency, kind="stable")[:CONTEXTS]
    width = len(contexts) + 1  # the last column is for all other tokens
    column = np.full(vocabulary, len(contexts))
    column[contexts] = np.arange(len(contexts))
    column[facts.is_special] = len(contexts)
    # a window of special tokens between two documents: no pair crosses it, and nothing needs a mask
    spaced = np.insert(tokens.astype(np.int64), np.repeat(np.flatnonzero(tokens == cls_id), WINDOW), cls_id)
    rows, columns = spaced * width, column[spaced]
    counts = np.zeros(vocabulary * width, dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        weight = np.float32(WINDOW + 1 - distance)  # whole numbers: the sum is exact in any order
        np.add.at(counts, rows[:-distance] + columns[distance:], weight)
        np.add.at(counts, rows[distance:] + columns[:-distance], weight)
    counts = counts.reshape(vocabulary, width)[:, :-1]
    counts[facts.is_special] = 0
    return counts


def _positive_pmi(counts: np.ndarray) -> scipy.sparse.csr_matrix:
    """Return max(0, log(p(token, context) / (p(token) p(context)))), with the context's probability smoothed."""
    sparse = scipy.sparse.coo_matrix(counts)
    row_sums = counts.sum(axis=1)
    context = counts.sum(axis=0).astype(np.float64) ** CONTEXT_SMOOTHING
    context /= max(context.sum(), 1.0)  # there may be no pair at all
    values = np.log(sparse.data / (row_sums[sparse.row] * context[sparse.col]))
    kept = values > 0
    entries = (values[kept].astype(np.float32), (sparse.row[kept], sparse.col[kept]))
    return scipy.sparse.csr_matrix(entries, shape=counts.shape)
