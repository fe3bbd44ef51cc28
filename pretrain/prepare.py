"""Corpus -> tokenizer -> packed tokens, once per corpus and settings: kept in a cache that runs share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_tiny_transformer.runs import atomic_directory, atomic_write_json

from .corpus import Corpus, open_corpus
from .embeddings import cooccurrence_embeddings
from .packing import open_packed, write_packed
from .recipe import CONFIG_CLASSES, Recipe
from .tokenizer import train_tokenizer, vocabulary_facts

FORMAT = 3  # of what lies in the cache: raise it when tokenising or packing changes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A prepared corpus: `directory` holds the tokenizer, train.bin, validation.bin and facts.json (`facts`)."""

    directory: Path
    tokenizer: PreTrainedTokenizerFast
    facts: dict

    @property
    def train_tokens(self) -> Path:
        """File of `write_packed`."""
        return self.directory / "train.bin"

    @property
    def validation_tokens(self) -> Path:
        """File of `write_packed`."""
        return self.directory / "validation.bin"


def cache_root() -> Path:
    """`$HF_TINY_TRANSFORMER_CACHE`, else `hf_tiny_transformer` under `$XDG_CACHE_HOME` or ~/.cache."""
    if "HF_TINY_TRANSFORMER_CACHE" in os.environ:
        return Path(os.environ["HF_TINY_TRANSFORMER_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_tiny_transformer"


def prepare_data(sources: list[str], text_field: str, recipe: Recipe, accelerator: Accelerator) -> PreparedData:
    """Reads the corpus; trains the tokenizer and packs unless the same text was prepared with the same settings before.

    Every process surveys the corpus (so that each knows where to look), one prepares it, all wait for that one.

    Raises:
        UserError: see `Corpus.survey`, `train_tokenizer`.
    """
    start = time.perf_counter()
    corpus = open_corpus(sources, text_field=text_field, validation_share=recipe.validation_share)
    facts = corpus.survey()
    settings = {
        "format": FORMAT,
        "corpus": facts.fingerprint,
        "vocab_size": recipe.vocab_size,
        "lowercase": recipe.lowercase,
        "max_length": _max_length(recipe),
        "family": recipe.family,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    directory = cache_root() / key
    with accelerator.main_process_first():
        if not directory.is_dir():
            _build(directory, corpus, recipe)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    stored = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    logger.info(
        "corpus: %s documents, %s training tokens, prepared in %.1f s",
        f"{facts.documents:,}",
        f"{stored['train_tokens']:,}",
        time.perf_counter() - start,
    )
    return PreparedData(directory, tokenizer, stored | {"prepare_seconds": round(time.perf_counter() - start, 1)})


def initial_embeddings(data: PreparedData, dimensions: int, accelerator: Accelerator) -> np.ndarray:
    """`cooccurrence_embeddings` of the training tokens, (vocabulary, dimensions), kept beside them."""
    path = data.directory / f"embeddings-{dimensions}.npy"
    with accelerator.main_process_first():
        if not path.is_file():
            logger.info("corpus: factorising co-occurrence counts")
            facts = vocabulary_facts(data.tokenizer)
            tokens = open_packed(data.train_tokens, len(data.tokenizer), facts.cls_id, block_size=1, what="training")
            staging = path.with_name(f".{os.getpid()}-{path.name}")
            np.save(staging, cooccurrence_embeddings(tokens, facts, dimensions))
            os.replace(staging, path)
    return np.load(path)


def _build(directory: Path, corpus: Corpus, recipe: Recipe) -> None:
    show_progress = sys.stderr.isatty()
    with atomic_directory(directory) as staging:
        logger.info("corpus: training a tokenizer of %s pieces", f"{recipe.vocab_size:,}")
        tokenizer = train_tokenizer(
            corpus.train,
            vocab_size=recipe.vocab_size,
            lowercase=recipe.lowercase,
            max_length=_max_length(recipe),
            family=recipe.family,
            progress=show_progress,
        )
        tokenizer.save_pretrained(staging)
        logger.info("corpus: tokenising and packing")
        documents = tqdm(
            corpus.train(), total=corpus.facts.documents, unit="documents", disable=not show_progress, leave=False
        )
        counts = {
            "train_tokens": write_packed(documents, tokenizer, staging / "train.bin"),
            "validation_tokens": write_packed(corpus.validation(), tokenizer, staging / "validation.bin"),
        }
        atomic_write_json(staging / "facts.json", vars(corpus.facts) | counts)


def _max_length(recipe: Recipe) -> int:
    return recipe.model.get("max_position_embeddings", CONFIG_CLASSES[recipe.family].max_position_embeddings)
