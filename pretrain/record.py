"""training/run.json and training/recipe.yaml: what a run was started with, and must be resumed with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from hf_tiny_transformer.common.errors import UserError, one_line
from hf_tiny_transformer.common.files import atomic_write_json, atomic_write_text, read_json
from hf_tiny_transformer.publish.facts import public_name

from .recipe import Recipe
from .settings import RunSettings

RECIPE_FILE = Path("training") / "recipe.yaml"
RUN_FILE = Path("training") / "run.json"


@dataclass
class RunRecord:
    """What decides a run besides its recipe, and its origin. It is published, so paths are shortened to names."""

    text_field: str
    seed: int
    minutes: float | None
    max_steps: int
    corpus_fingerprint: str
    corpus: list[str] = field(default_factory=list)
    init: str | None = None
    license: str | None = None

    @classmethod
    def of(cls, settings: RunSettings, max_steps: int, corpus_fingerprint: str) -> RunRecord:
        """Return the record of a new run."""
        return cls(
            text_field=settings.text_field,
            seed=settings.seed,
            minutes=settings.minutes,
            max_steps=max_steps,
            corpus_fingerprint=corpus_fingerprint,
            corpus=[public_name(source) for source in settings.corpus],
            init=settings.init and public_name(settings.init),
            license=settings.license,
        )

    def write(self, output: Path, recipe: Recipe) -> None:
        """Write recipe.yaml and run.json."""
        text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
        atomic_write_text(output / RECIPE_FILE, text)
        atomic_write_json(output / RUN_FILE, asdict(self))


def read_record(output: Path) -> RunRecord | None:
    """Return the record of the run in a directory, or None without a run: --resume may also start one.

    Raises:
        UserError: The file is damaged.
    """
    path = output / RUN_FILE
    if not path.is_file():
        return None
    content = read_json(path, "start a new run")
    try:
        return RunRecord(**{f.name: content[f.name] for f in fields(RunRecord) if f.name in content})
    except TypeError as error:
        raise UserError(f"{path}: {one_line(error)}; start a new run") from None


def require_same(record: RunRecord, output: Path, settings: RunSettings, fingerprint: str, recipe: Recipe) -> None:
    """Check that a run is resumed with the text, the recipe, the seed and the length that it was started with.

    Raises:
        UserError: One of them differs.
    """
    if settings.seed not in (record.seed, RunSettings.seed):
        raise UserError(f"--seed {settings.seed}: {output} was started with {record.seed}; omit it to resume")
    if settings.max_steps not in (record.max_steps, None):
        raise UserError(
            f"--max-steps {settings.max_steps}: {output} was started with {record.max_steps} steps, on which its "
            "learning rates depend; omit it to resume"
        )
    if settings.init is not None and public_name(settings.init) != (record.init and public_name(record.init)):
        raise UserError(f"--init {settings.init}: {output} was started with {record.init}; omit it to resume")
    if record.corpus_fingerprint != fingerprint:
        raise UserError(
            f"--corpus: is not the text that {output} was started with; give the same sources to resume "
            f"({', '.join(record.corpus)})"
        )
    written = yaml.safe_load((output / RECIPE_FILE).read_text(encoding="utf-8"))
    changed = [name for name, value in asdict(recipe).items() if written.get(name) != value]
    if changed:
        raise UserError(
            f"{output / RECIPE_FILE}: this run was started with another {', '.join(changed)}; "
            "resume without these flags, or start a new run"
        )
