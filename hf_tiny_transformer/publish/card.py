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
    """One section of a card. Cells are plain text, or one `word` of code."""

    text: str = ""  # Markdown before the table
    header: Row = ()  # empty for a section without a table
    rows: Sequence[Row] = ()
    after: str = ""  # Markdown after the table


@dataclass(frozen=True)
class Figure:
    """One number of the card's metadata (model-index), and the file in the model directory that has it."""

    split: str
    metric: str
    value: float  # rounded to six decimals in the card
    file: str
    pointer: str  # keys and indices that lead to it in the file, such as "/scores/test/accuracy/mean"


@dataclass(frozen=True)
class Card:
    """Everything a model card states. Text from users and from foreign files must be escaped in Markdown fields."""

    name: str
    summary: str  # Markdown; what the model is
    code: str  # Python that loads and uses the model, of the lines in `card_code`; one of them is `THIS_DIRECTORY`
    data: Section
    model: Section  # architecture, tokenizer and size
    training: Section  # recipe, time and energy
    evaluation: Section  # scores
    intended_use: str  # Markdown
    limits: str  # Markdown
    figures: Sequence[Figure]
    task_type: str  # of the figures, as the Hub names it
    dataset: dict[str, str]  # `name`, `type` and perhaps `config` of the data behind the figures
    metadata: dict[str, Any] = field(default_factory=dict)  # of ModelCardData: `license`, `pipeline_tag`, `tags`, ...

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
    rows = {title: section.rows for title, section in card.sections.items()}
    facts = {"rows": rows, "figures": [asdict(figure) for figure in card.figures]}
    text = ModelCard.from_template(
        _metadata(card),
        template_path=str(TEMPLATE),
        card=card,
        printed=printed,
        escape=escape,
        table=lambda section: markdown_table(section.header, section.rows),
    )
    atomic_write_json(directory / FACTS_FILE, facts)
    atomic_write_text(directory / CARD_FILE, f"{text}\n")
    return printed


def read_facts(directory: Path) -> tuple[list[Row], list[Figure]]:
    """Return the rows and figures that a card was written with; all files must be in the directory."""
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
    columns = list(zip(header, *rows, strict=True))
    rule = ["---:" if title and cells and all(map(_NUMBER.fullmatch, cells)) else "---" for title, *cells in columns]
    return "\n".join([table_line(header), f"| {' | '.join(rule)} |", *map(table_line, rows)]) if header else ""


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
    about: dict[str, Any] = {"task_type": card.task_type}
    about |= {f"dataset_{name}": value for name, value in card.dataset.items()}
    results = [
        EvalResult(**about, dataset_split=figure.split, metric_type=figure.metric, metric_value=round(figure.value, 6))
        for figure in card.figures
    ]
    fields = {"library_name": "transformers", **card.metadata}
    return ModelCardData(model_name=card.name, eval_results=results, **fields)
