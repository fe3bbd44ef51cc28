"""The one writer of model cards. It knows no file, label or key of the programs that train the models."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..common import foreign_code
from ..common.errors import RunError, UserError
from ..common.files import atomic_write_json, atomic_write_text, read_json
from .card_code import refused_code

CARD_FILE = "README.md"
FACTS_FILE = "training/card.json"  # the card's rows and figures, for `verify`
THIS_DIRECTORY = 'model_id = "."  # this directory'  # a line of the code in every card; push puts the Hub's name there
TEMPLATE = Path(__file__).parent / "template.md"
Row = tuple[str, ...]
_MARKUP = re.compile(r"([\\`\[\]<>|])")
_CODE = re.compile(r"`[\w.-]+`")  # a cell that is shown as code
_NUMBER = re.compile(r"[-+]?\d[\d,.]*( ± [\d.]+)?|-?")


@dataclass(frozen=True)
class Section:
    """One section of a card.

    Args:
        text: Markdown before the table.
        header: The table's header; empty for a section without a table. Cells are plain text, or one `word` of code.
        rows: The table's rows.
        after: Markdown after the table.
    """

    text: str = ""
    header: Row = ()
    rows: Sequence[Row] = ()
    after: str = ""


@dataclass(frozen=True)
class Figure:
    """One number of the card's metadata (model-index), and where it comes from.

    Args:
        split: The split it was measured on.
        metric: Its name.
        value: The number, rounded to six decimals in the card.
        file: The file in the model directory that has it.
        pointer: A JSON pointer into that file, such as "/scores/test/accuracy/mean".
    """

    split: str
    metric: str
    value: float
    file: str
    pointer: str


@dataclass(frozen=True)
class Card:
    """Everything a model card states. Text from users and from foreign files must be escaped in Markdown fields.

    Args:
        name: The model's name.
        summary: Markdown; what the model is.
        code: Python that loads and uses the model, of the lines in `card_code`; one of them is `THIS_DIRECTORY`.
        data: The section Data.
        model: Architecture, tokenizer and size.
        training: Recipe, time and energy.
        evaluation: Scores.
        intended_use: Markdown of that section.
        limits: Markdown of the section Limitations.
        figures: The numbers of the metadata.
        task_type: The task of the numbers, as the Hub names it.
        dataset: `name`, `type` and perhaps `config` of the data behind the numbers.
        metadata: More fields of huggingface_hub's ModelCardData, such as `license`, `pipeline_tag` or `tags`.
    """

    name: str
    summary: str
    code: str
    data: Section
    model: Section
    training: Section
    evaluation: Section
    intended_use: str
    limits: str
    figures: Sequence[Figure]
    task_type: str
    dataset: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, Section]:
        """The sections with tables, by title."""
        parts = (self.data, self.model, self.training, self.evaluation)
        return dict(zip(("Data", "Model", "Training", "Evaluation"), parts, strict=True))


def write_card(directory: Path, card: Card) -> str:
    """Run the card's code, write the card and the facts that `verify` compares with it, and return what was printed.

    Raises:
        RunError: The code fails, or the directory has foreign code, which it would run; nothing is written.
    """
    printed = _run_code(card.code, directory)
    facts = {
        "rows": {title: [list(row) for row in section.rows] for title, section in card.sections.items()},
        "figures": [asdict(figure) for figure in card.figures],
    }
    text = ModelCard.from_template(
        _metadata(card),
        template_path=str(TEMPLATE),
        card=card,
        printed=printed,
        sections=card.sections,
        license=card.metadata.get("license"),
        escape=escape,
        table=lambda section: markdown_table(section.header, section.rows),
    )
    atomic_write_json(directory / FACTS_FILE, facts)
    atomic_write_text(directory / CARD_FILE, f"{text}\n")
    return printed


def read_facts(directory: Path) -> tuple[list[Row], list[Figure]]:
    """Return the rows and figures that a card was written with.

    Raises:
        UserError: `FACTS_FILE` is missing, invalid, or names a file outside the directory.
    """
    advice = "write the card again"
    content = read_json(directory / FACTS_FILE, advice)
    try:
        rows = [tuple(map(str, row)) for rows in content["rows"].values() for row in rows]
        figures = [Figure(**{**figure, "value": float(figure["value"])}) for figure in content["figures"]]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{FACTS_FILE}: {type(error).__name__}: {error}; {advice}") from None
    for figure in figures:
        if not re.fullmatch(r"(\w[\w.-]*/)*\w[\w.-]*\.json", str(figure.file)):
            raise UserError(f"{FACTS_FILE}: {figure.file!r} is not a .json file of this directory; {advice}")
    return rows, figures


def escape(text: object, form: str = "text") -> str:
    """Return text from a user or a foreign file so that it is shown as it is, never read as Markdown or HTML.

    `form` is where it will be: "text" (also in a table), "code" between backticks, or a "block" between fences.
    """
    if form == "block":
        return str(text).replace("```", "'''").replace("\r", "\n")
    line = "".join(c for c in re.sub(r"[^\S ]+", " ", str(text)).strip() if c.isprintable())
    return line.replace("`", "'") if form == "code" else _MARKUP.sub(r"\\\1", line)


def markdown_table(header: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table, its columns of numbers aligned to the right; nothing without a header."""
    if not header:
        return ""
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    numeric = [
        bool(title and column) and all(map(_NUMBER.fullmatch, column))
        for title, column in zip(header, columns, strict=True)
    ]
    rule = "| " + " | ".join("---:" if is_number else "---" for is_number in numeric) + " |"
    return "\n".join([table_line(header), rule, *map(table_line, rows)])


def table_line(row: Row) -> str:
    """Return a row of a Markdown table; its cells are escaped, except one `word` of code."""
    return "| " + " | ".join(cell if _CODE.fullmatch(cell) else escape(cell) for cell in row) + " |"


def _run_code(code: str, directory: Path) -> str:
    """Run a card's code in this process, in `directory`, and return what it prints."""
    if problem := foreign_code.find(directory):
        raise RunError(f"no model card was written, because the code in it would run foreign code: {problem}")
    if problem := refused_code(code):
        raise RunError(f"no model card was written, because `verify` would not run its code: {problem}")
    printed = io.StringIO()
    try:
        with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
            exec(compile(code, "the card's code", "exec"), {"__name__": "__main__"})
    except Exception as error:  # of any type: a card must not show code that fails
        reason = f"{type(error).__name__}: {error}"
        raise RunError(f"no model card was written, because the code in it fails ({reason})") from error
    return printed.getvalue().strip()


def _metadata(card: Card) -> ModelCardData:
    results = [
        EvalResult(
            task_type=card.task_type,
            dataset_type=card.dataset["type"],
            dataset_name=card.dataset["name"],
            dataset_config=card.dataset.get("config"),
            dataset_split=figure.split,
            metric_type=figure.metric,
            metric_value=round(figure.value, 6),
        )
        for figure in card.figures
    ]
    fields = {"library_name": "transformers", **card.metadata}
    return ModelCardData(model_name=card.name, eval_results=results, **fields)
