"""Corpus to packed tokens, once for each text and each setting that matters: kept in a cache that all runs share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_tiny_transformer.common.files import (
    atomic_directory,
    atomic_write_json,
    cache_entry,
    is_intact,
    only_process,
    write_sums,
)

from ..initial import InitialModel
from ..recipe import Recipe
from .documents import Corpus, documents_of, open_corpus
from .packed import join_shards, write_shards
from .team import Team
from .tokenizer import train_tokenizer

FORMAT = 6  # of a prepared corpus in the cache: raise it when tokenising or packing changes
TOKENIZER = "tokenizer"
SHOWN_SIZE = 100  # MB of packed tokens from which on the speed of their verification is reported

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """A prepared corpus.

    `directory` has train.bin, validation.bin, facts.json (`facts`) and, unless --init brings one, the tokenizer.
    """

    directory: Path
    tokenizer: PreTrainedTokenizerFast
    facts: dict[str, Any]

    def tokens(self, split: str) -> Path:
        """Return the packed tokens of `train` or `validation`."""
        return self.directory / f"{split}.bin"


def prepare_data(
    names: list[str], text_field: str, recipe: Recipe, initial: InitialModel | None = None, exclude: Path | None = None
) -> PreparedData:
    """Read the corpus, train the tokenizer and pack, unless the same text was prepared with the same settings before.

    All processes call this and share the work; the bytes do not depend on their number. The tokenizer of `initial` is
    used instead of a new one, and files in the folder `exclude` are not read.
    """
    start, team = time.perf_counter(), Team()
    share = recipe.validation_share
    corpus = open_corpus(names, text_field=text_field, validation_share=share, exclude=exclude, team=team)
    facts = corpus.facts
    counts = {"documents": facts["documents"], "exact duplicates dropped": facts["duplicates"], **corpus.tally}
    logger.info("corpus: %s", "; ".join(f"{count:,} {name}" for name, count in counts.items() if count))
    settings: dict[str, Any] = {"format": FORMAT, "corpus": facts["fingerprint"]}
    if initial is not None:
        settings["tokenizer"] = initial.tokenizer_fingerprint()
    else:
        settings |= _tokenizer_settings(recipe)
    directory = cache_entry("corpora", settings)
    with only_process(directory) if team.is_main else nullcontext():  # another run may prepare the same
        if not team.main_only(lambda: _is_intact(directory)):
            _prepare(directory, corpus, recipe, initial, team)
    facts = json.loads((directory / "facts.json").read_text(encoding="utf-8"))
    seconds = time.perf_counter() - start
    logger.info("corpus: %s training tokens, prepared in %.1f s", f"{facts['train_tokens']:,}", seconds)
    return PreparedData(directory, _open_tokenizer(directory, initial), facts | {"prepare_seconds": round(seconds, 1)})


def _is_intact(directory: Path) -> bool:
    start, size = time.perf_counter(), sum(file.stat().st_size for file in directory.glob("*.bin")) / 1e6
    intact = is_intact(directory)
    if size > SHOWN_SIZE:
        rate = size / (time.perf_counter() - start)
        logger.info("corpus: verified the checksums of %s MB of packed tokens, %s MB/s", f"{size:,.0f}", f"{rate:,.0f}")
    return intact


def _prepare(directory: Path, corpus: Corpus, recipe: Recipe, initial: InitialModel | None, team: Team) -> None:
    """Train the tokenizer and pack. Finished parts stay in a folder of their own, so that a killed run continues.

    The shards of a portion depend on how the text is cut into files, and so does the name of their folder.
    """
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shards = unfinished / f"shards-{hashlib.sha256(repr(corpus.counts).encode()).hexdigest()[:16]}"
    if initial is None:
        team.main_only(lambda: _train_tokenizer(unfinished / TOKENIZER, corpus, recipe))
    tokenizer = _open_tokenizer(unfinished, initial)
    logger.info("corpus: tokenising and packing")
    folders = [shards / f"{number:08d}" for number in range(len(corpus.portions))]

    def pack_share() -> None:
        for number in team.share(range(len(folders))):
            title = f"packing {number + 1}/{len(folders)}"
            documents = team.progress(documents_of(corpus.portions[number]), title, corpus.counts[number])
            write_shards(documents, corpus.fates(number), tokenizer, folders[number])

    def finish() -> None:
        counts = join_shards(folders, unfinished, len(tokenizer))
        facts = corpus.facts | {f"{split}_tokens": count for split, count in counts.items()}
        atomic_write_json(unfinished / "facts.json", facts)
        for leftover in (*unfinished.glob("shards-*"), *unfinished.glob(".*")):  # also of processes that were killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_sums(unfinished)
        os.rename(unfinished, directory)

    team.together(pack_share)
    team.main_only(finish)


def _train_tokenizer(directory: Path, corpus: Corpus, recipe: Recipe) -> None:
    if is_intact(directory):
        return
    logger.info("corpus: training a tokenizer of %s pieces", f"{recipe.vocab_size:,}")
    tokenizer = train_tokenizer(corpus.train, **_tokenizer_settings(recipe), progress=sys.stderr.isatty())
    with atomic_directory(directory) as staging:
        tokenizer.save_pretrained(staging)


def _tokenizer_settings(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("vocab_size", "lowercase", "max_length", "family")}


def _open_tokenizer(directory: Path, initial: InitialModel | None) -> PreTrainedTokenizerFast:
    if initial is not None:
        return initial.tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(directory / TOKENIZER, trust_remote_code=False)
    return cast(PreTrainedTokenizerFast, tokenizer)  # `train_tokenizer` makes no other
