"""Documents without duplicates, split into those to learn from and those held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .readers import Source, open_sources
from .survey import TRAIN, VALIDATION, Survey, SurveyFacts, documents_of, survey_sources


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read as often as needed, in the same order each time, without holding them in memory.

    Exact duplicates are dropped. Which documents are held out for validation depends on their text alone, so that
    adding a file moves no document from one side to the other.
    """

    sources: list[Source]
    survey: Survey

    @property
    def facts(self) -> SurveyFacts:
        """Counts, and the fingerprint that identifies the text and its split."""
        return self.survey.facts

    def train(self) -> Iterator[str]:
        """The documents to learn from."""
        return self._with_fate(TRAIN)

    def validation(self) -> Iterator[str]:
        """The held-out documents."""
        return self._with_fate(VALIDATION)

    def _with_fate(self, wanted: int) -> Iterator[str]:
        fates = np.memmap(self.survey.fates, dtype=np.uint8, mode="r")
        return (text for text, fate in zip(documents_of(self.sources), fates, strict=True) if fate == wanted)


def open_corpus(names: list[str], *, text_field: str, validation_share: float) -> Corpus:
    """Reads everything once, unless these very sources were read before: bad input shows here.

    Raises:
        UserError: a source does not exist or can't be read, or there is nothing to split.
    """
    sources = open_sources(names, text_field=text_field)
    return Corpus(sources, survey_sources(sources, validation_share))
