"""Corpus -> tokenizer -> packed tokens, once per corpus and settings: kept in a cache that runs share."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from filelock import FileLock
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_tiny_transformer.runs import atomic_directory, atomic_write_json, cache_entry

from .corpus import Corpus, open_corpus
from .embeddings import cooccurrence_embeddings
from .initial import InitialModel
from .packing import open_packed, write_packed
from .recipe import CONFIG_CLASSES, Recipe
from .tokenizer import train_tokenizer, vocabulary_facts

FORMAT = 4  # of what lies in the cache: raise it when tokenising or packing changes

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


def prepare_data(
    sources: list[str], text_field: str, recipe: Recipe, accelerator: Accelerator, initial: InitialModel | None = None
) -> PreparedData:
    """Reads the corpus; trains the tokenizer and packs unless the same text was prepared with the same settings before.

    One process does it, all wait for that one.

    Args:
        initial: its tokenizer is taken, none is trained.

    Raises:
        UserError: see `open_corpus`, `train_tokenizer`.
    """
    start = time.perf_counter()
    with accelerator.main_process_first():
        corpus = open_corpus(sources, text_field=text_field, validation_share=recipe.validation_share)
        settings = {"format": FORMAT, "corpus": corpus.facts.fingerprint}
        if initial is not None:
            settings["tokenizer"] = initial.tokenizer_fingerprint()
        else:
            settings |= {"vocab_size": recipe.vocab_size, "lowercase": recipe.lowercase}
            settings |= {"max_length": _max_length(recipe), "family": recipe.family}
        directory = cache_entry("corpora", settings)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):  # another run may want the same
            if not directory.is_dir():
                _build(directory, corpus, recipe, initial)
    tokenizer = AutoTokenizer.from_pretrained(directory) if initial is None else initial.tokenizer()
    stored = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    logger.info(
        "corpus: %s documents, %s training tokens, prepared in %.1f s",
        f"{corpus.facts.documents:,}",
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


def _build(directory: Path, corpus: Corpus, recipe: Recipe, initial: InitialModel | None) -> None:
    """Trains the tokenizer, unless the initial model has one, and packs. What is finished of it lies beside until all
    is, and is not done again."""
    show_progress = sys.stderr.isatty()
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    if initial is None and not (unfinished / "tokenizer").is_dir():
        logger.info("corpus: training a tokenizer of %s pieces", f"{recipe.vocab_size:,}")
        tokenizer = train_tokenizer(
            corpus.train,
            vocab_size=recipe.vocab_size,
            lowercase=recipe.lowercase,
            max_length=_max_length(recipe),
            family=recipe.family,
            progress=show_progress,
        )
        with atomic_directory(unfinished / "tokenizer") as staging:
            tokenizer.save_pretrained(staging)
    tokenizer = AutoTokenizer.from_pretrained(unfinished / "tokenizer") if initial is None else initial.tokenizer()
    logger.info("corpus: tokenising and packing")
    with atomic_directory(directory) as staging:
        tokenizer.save_pretrained(staging)
        documents = tqdm(
            corpus.train(), total=corpus.facts.documents, unit="documents", disable=not show_progress, leave=False
        )
        counts = {
            f"{name}_tokens": write_packed(texts, tokenizer, staging / f"{name}.bin", unfinished / name)
            for name, texts in (("train", documents), ("validation", corpus.validation()))
        }
        atomic_write_json(staging / "facts.json", vars(corpus.facts) | counts)
    shutil.rmtree(unfinished)


def _max_length(recipe: Recipe) -> int:
    return recipe.model.get("max_position_embeddings", CONFIG_CLASSES[recipe.family].max_position_embeddings)
