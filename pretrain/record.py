"""What a run wrote down when it began, and holds itself to when it is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import yaml

from hf_tiny_transformer.cards import public_name
from hf_tiny_transformer.runs import UserError, atomic_write_json, atomic_write_text

from .prepare import PreparedData
from .recipe import Recipe
from .settings import RunSettings

RECIPE_FILE = Path("training") / "recipe.yaml"
RUN_FILE = Path("training") / "run.json"


def new_record(settings: RunSettings, data: PreparedData, max_steps: int) -> dict:
    """What a run is decided by, besides its recipe, and where it came from; it is published, and names no folder of
    this machine."""
    kept = {name: getattr(settings, name) for name in ("text_field", "seed", "minutes", "license")}
    kept |= {"corpus": [public_name(source) for source in settings.corpus]}
    kept |= {"init": settings.init and public_name(settings.init)}
    return kept | {"max_steps": max_steps, "corpus_fingerprint": data.facts["fingerprint"]}


def write_record(output: Path, recorded: dict, recipe: Recipe) -> None:
    """Writes recipe.yaml and run.json."""
    text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
    atomic_write_text(output / RECIPE_FILE, text)
    atomic_write_json(output / RUN_FILE, recorded)


def read_record(output: Path) -> dict | None:
    """The run that lies there, or None if `output` is still empty: --resume may stand in a script from the start."""
    path = output / RUN_FILE
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def require_same(recorded: dict, output: Path, settings: RunSettings, data: PreparedData, recipe: Recipe) -> None:
    """A run goes on with the text, the recipe, the seed and the length it began with.

    Raises:
        UserError: one of them differs.
    """
    if settings.seed not in (recorded["seed"], RunSettings.seed):
        raise UserError(f"--seed {settings.seed}: {output} began with {recorded['seed']}; leave it out to resume")
    if settings.max_steps not in (recorded["max_steps"], None):
        raise UserError(
            f"--max-steps {settings.max_steps}: {output} was planned for {recorded['max_steps']} steps, its learning "
            "rates too; leave it out to resume"
        )
    began_with = recorded.get("init")
    if settings.init is not None and public_name(settings.init) != (began_with and public_name(began_with)):
        raise UserError(f"--init {settings.init}: {output} began with {began_with}; leave it out to resume")
    if recorded["corpus_fingerprint"] != data.facts["fingerprint"]:
        raise UserError(f"--corpus: not the text that {output} was trained on; give the same sources to resume")
    written = yaml.safe_load((output / RECIPE_FILE).read_text(encoding="utf-8"))
    changed = [name for name, value in asdict(recipe).items() if written.get(name) != value]
    if changed:
        raise UserError(
            f"{output / RECIPE_FILE}: this run began with another {', '.join(changed)}; "
            "resume without these flags, or start a new run"
        )
