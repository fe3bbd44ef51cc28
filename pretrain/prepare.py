"""Corpus -> tokenizer -> packed tokens, once per corpus and settings: kept in a cache that runs share.

The processes of a run share the work: each packs its portions of the corpus into files of their own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from filelock import FileLock
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_tiny_transformer.runs import atomic_directory, atomic_write_json, cache_entry

from .corpus import Corpus, open_corpus
from .crew import Crew
from .embeddings import VERSION, cooccurrence_embeddings
from .initial import InitialModel
from .packing import count_tokens, open_packed, write_packed
from .recipe import CONFIG_CLASSES, Recipe
from .tokenizer import train_tokenizer, vocabulary_facts

FORMAT = 5  # of what lies in the cache: raise it when tokenising or packing changes
TOKENIZER = "tokenizer"  # its folder there
KINDS = ("train", "validation")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A prepared corpus: `directory` holds train/ and validation/, a file of tokens for each portion, the tokenizer
    unless the initial model has one, and facts.json (`facts`)."""

    directory: Path
    tokenizer: PreTrainedTokenizerFast
    facts: dict

    @property
    def train_tokens(self) -> Path:
        """Folder of `write_packed`'s files."""
        return self.directory / "train"

    @property
    def validation_tokens(self) -> Path:
        """Folder of `write_packed`'s files."""
        return self.directory / "validation"


def prepare_data(
    sources: list[str], text_field: str, recipe: Recipe, accelerator: Accelerator, initial: InitialModel | None = None
) -> PreparedData:
    """Reads the corpus; trains the tokenizer and packs unless the same text was prepared with the same settings before.

    All processes have to call it, and share the work. What they make is the same whatever their number.

    Args:
        initial: its tokenizer is taken, none is trained.

    Raises:
        UserError: see `open_corpus`, `train_tokenizer`.
    """
    start, crew = time.perf_counter(), Crew.of(accelerator)
    corpus = open_corpus(sources, text_field=text_field, validation_share=recipe.validation_share, crew=crew)
    settings = {"format": FORMAT, "corpus": corpus.facts.fingerprint, "portions": corpus.survey.portions}
    if initial is not None:
        settings["tokenizer"] = initial.tokenizer_fingerprint()
    else:
        settings |= {"vocab_size": recipe.vocab_size, "lowercase": recipe.lowercase}
        settings |= {"max_length": _max_length(recipe), "family": recipe.family}
    directory = cache_entry("corpora", settings)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock") if crew.is_main else nullcontext():  # another run may want the same
        if not crew.main_only(directory.is_dir):
            _build(directory, corpus, recipe, initial, crew)
    tokenizer = _open_tokenizer(directory, initial)
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
    path = data.directory / f"embeddings-{VERSION}-{dimensions}.npy"
    with accelerator.main_process_first():
        if not path.is_file():
            logger.info("corpus: factorising co-occurrence counts")
            facts = vocabulary_facts(data.tokenizer)
            tokens = open_packed(data.train_tokens, len(data.tokenizer), facts.cls_id, block_size=1, what="training")
            staging = path.with_name(f".{os.getpid()}-{path.name}")
            np.save(staging, cooccurrence_embeddings(tokens, facts, dimensions))
            os.replace(staging, path)
    return np.load(path)


def _build(directory: Path, corpus: Corpus, recipe: Recipe, initial: InitialModel | None, crew: Crew) -> None:
    """Trains the tokenizer, unless the initial model has one, and packs. What is finished of it lies beside until all
    is, and is not done again."""
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shards = unfinished / "shards"
    if initial is None:
        crew.main_only(lambda: _train_tokenizer(unfinished / TOKENIZER, corpus, recipe))
    tokenizer = _open_tokenizer(unfinished, initial)
    logger.info("corpus: tokenising and packing")
    crew.together(lambda: _pack_share(corpus, tokenizer, unfinished, shards, crew))

    def finish() -> None:
        counts = {f"{kind}_tokens": count_tokens(unfinished / kind, len(tokenizer)) for kind in KINDS}
        atomic_write_json(unfinished / "facts.json", vars(corpus.facts) | counts)
        shutil.rmtree(shards, ignore_errors=True)
        for half_written in unfinished.glob("*/.*"):  # by a process that was killed
            half_written.unlink()
        os.rename(unfinished, directory)

    crew.main_only(finish)


def _train_tokenizer(directory: Path, corpus: Corpus, recipe: Recipe) -> None:
    if directory.is_dir():
        return
    logger.info("corpus: training a tokenizer of %s pieces", f"{recipe.vocab_size:,}")
    tokenizer = train_tokenizer(
        corpus.train,
        vocab_size=recipe.vocab_size,
        lowercase=recipe.lowercase,
        max_length=_max_length(recipe),
        family=recipe.family,
        progress=sys.stderr.isatty(),
    )
    with atomic_directory(directory) as staging:
        tokenizer.save_pretrained(staging)


def _open_tokenizer(directory: Path, initial: InitialModel | None) -> PreTrainedTokenizerFast:
    if initial is not None:
        return initial.tokenizer()
    return AutoTokenizer.from_pretrained(directory / TOKENIZER, trust_remote_code=False)


def _pack_share(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, directory: Path, shards: Path, crew: Crew) -> None:
    """Packs this process's portions, each into files of its own."""
    numbers = crew.share(range(len(corpus.portions)))
    total = sum(corpus.survey.portions[number] for number in numbers)
    show_progress = crew.is_main and sys.stderr.isatty()
    with tqdm(total=total, unit=" documents", disable=not show_progress, leave=False) as bar:
        for number in numbers:
            for kind, texts in (("train", corpus.train(number)), ("validation", corpus.validation(number))):
                path = directory / kind / f"{number:06d}.bin"
                if not path.is_file():
                    own_shards = shards / f"{kind}-{number:06d}"
                    write_packed(_counted(texts, bar), tokenizer, path, own_shards)
                    shutil.rmtree(own_shards, ignore_errors=True)


def _counted(documents: Iterator[str], bar: tqdm) -> Iterator[str]:
    for document in documents:
        bar.update()
        yield document


def _max_length(recipe: Recipe) -> int:
    return recipe.model.get("max_position_embeddings", CONFIG_CLASSES[recipe.family].max_position_embeddings)
