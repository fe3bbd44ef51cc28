"""Documents without duplicates, split into those to learn from and those held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .crew import ALONE, Crew
from .readers import Portion, divide, open_sources
from .survey import TRAIN, VALIDATION, Survey, SurveyFacts, documents_of, survey_portions


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read as often as needed, in the same order each time, without holding them in memory.

    Exact duplicates are dropped. Which documents are held out for validation depends on their text alone, so that
    adding a file moves no document from one side to the other. A portion is what one process prepares in one go.
    """

    portions: list[Portion]
    survey: Survey

    @property
    def facts(self) -> SurveyFacts:
        """Counts, and the fingerprint that identifies the text and its split."""
        return self.survey.facts

    def train(self, portion: int | None = None) -> Iterator[str]:
        """The documents to learn from: all, or those of one portion."""
        return self._with_fate(TRAIN, portion)

    def validation(self, portion: int | None = None) -> Iterator[str]:
        """The held-out documents: all, or those of one portion."""
        return self._with_fate(VALIDATION, portion)

    def _with_fate(self, wanted: int, portion: int | None) -> Iterator[str]:
        fates = np.memmap(self.survey.fates, dtype=np.uint8, mode="r")
        ends = np.cumsum(self.survey.portions)
        for number in range(len(self.portions)) if portion is None else [portion]:
            own = fates[ends[number] - self.survey.portions[number] : ends[number]]
            texts = documents_of(self.portions[number])
            yield from (text for text, fate in zip(texts, own, strict=True) if fate == wanted)


def open_corpus(names: list[str], *, text_field: str, validation_share: float, crew: Crew = ALONE) -> Corpus:
    """Reads everything once, unless these very sources were read before: bad input shows here.

    Raises:
        UserError: a source does not exist or can't be read, or there is nothing to split.
    """
    if crew.world > 1:  # a data set of the Hub is downloaded once
        crew.main_only(lambda: bool(open_sources(names, text_field=text_field)))
    portions = divide(crew.together(lambda: open_sources(names, text_field=text_field)))
    return Corpus(portions, survey_portions(portions, validation_share, crew))
