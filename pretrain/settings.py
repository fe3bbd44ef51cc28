"""Everything about a run except its recipe, and the files that record what a run must be resumed with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import yaml

from hf_tiny_transformer.common.arguments import flag_of
from hf_tiny_transformer.common.errors import UserError, one_line
from hf_tiny_transformer.common.files import atomic_write_json, atomic_write_text, read_json, sha256
from hf_tiny_transformer.publish.facts import check_license, public_name

from .recipe import Recipe

DEFAULT_MINUTES = 5.0
RECIPE_FILE = Path("training") / "recipe.yaml"
RUN_FILE = Path("training") / "run.json"


@dataclass
class RunSettings:
    """Everything about a run except its recipe.

    Args:
        output: Directory of the run; must be new or empty, except with --resume.
        corpus: Text to train on: sample, files, folders, globs, hub:NAME[:CONFIG] or hub-stream:NAME[:CONFIG] (without
            a download).
        init: Directory of a model, ours or a stock bert, modernbert or modernbert-decoder, whose weights, config and
            tokenizer the run starts from.
        text_field: Column or field with the text, in .csv, .tsv, .jsonl, .parquet and Hub data.
        seed: Seed of the initial weights, the order of the blocks and the masks.
        minutes: Minutes of training, converted once into a number of steps. Default: 5.
        max_steps: Number of steps, instead of --minutes.
        save_steps: Steps between checkpoints. Default: a quarter of the run. Step 0 is always saved.
        save_minutes: Minutes between checkpoints, instead of --save-steps.
        keep_last: Number of checkpoints to keep, besides those of step 0 and of the best validation loss. Default: all.
        save_best: Also save at each new lowest validation loss, and publish that model instead of the last one.
        skip_bad_steps: Number of steps with a loss or gradient that is not finite, or exploded, to skip before the run
            ends.
        attention: Attention implementation. Default: on a GPU with bf16 varlen, torch's flash kernel on packed
            documents; else sdpa.
        compile: Compile the model (torch.compile). Default: on a GPU, except Seq2Seq and sharded models.
        precision: Precision of matrix products; weights are fp32. Default: bf16 on a GPU that computes in it, else
            fp32.
        deterministic: On a GPU, use deterministic kernels only: slower, and a resumed run is bit-identical.
        log_with: Tracker that also receives the lines of metrics.jsonl; its package must be installed.
        license: License of the model, as the Hub spells it, such as apache-2.0. Default: none is stated.
        resume: Continue from the last checkpoint of the run in output, or start if there is none.
        trust_remote_code: Run Python code that the files of --init name; it is never copied into checkpoints.
    """

    output: str
    corpus: list[str] = field(default_factory=lambda: ["sample"])
    init: str | None = None
    text_field: str = "text"
    seed: int = 1
    minutes: float | None = None
    max_steps: int | None = None
    save_steps: int | None = None
    save_minutes: float | None = None
    keep_last: int | None = None
    save_best: bool = False
    skip_bad_steps: int = 0
    attention: Literal["sdpa", "varlen", "flex_attention", "eager"] | None = None
    compile: bool | None = None
    precision: Literal["fp32", "bf16"] | None = None
    deterministic: bool = False
    log_with: Literal["tensorboard", "trackio", "wandb"] | None = None
    license: str | None = None
    resume: bool = False
    trust_remote_code: bool = False

    def validate(self) -> None:
        """Raise a UserError if a value is out of range, a tracker is not installed, or settings exclude each other."""
        check_license(self.license)
        for one, other in (("minutes", "max_steps"), ("save_minutes", "save_steps")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(f"{flag_of(one)} and {flag_of(other)} exclude each other; give one of them")
        for name in ("minutes", "max_steps", "save_steps", "save_minutes", "keep_last"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**31:
                raise UserError(f"{flag_of(name)} {value}: must be positive and less than 2**31")
        for name in ("seed", "skip_bad_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{flag_of(name)} {getattr(self, name)}: must not be negative")
        if self.seed >= 2**32:
            raise UserError(f"--seed {self.seed}: must be less than 2**32")
        if self.log_with is not None and find_spec(self.log_with) is None:
            raise UserError(f"--log-with {self.log_with}: is not installed; run: pip install {self.log_with}")


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
    deterministic: bool = False
    recipe_sha256: str = ""  # of RECIPE_FILE
    precision: str = "fp32"

    @classmethod
    def of(cls, settings: RunSettings, max_steps: int, corpus_fingerprint: str) -> RunRecord:
        """Return the record of a new run."""
        return cls(
            **{name: getattr(settings, name) for name in ("text_field", "seed", "minutes", "license", "deterministic")},
            max_steps=max_steps,
            corpus_fingerprint=corpus_fingerprint,
            corpus=[public_name(source) for source in settings.corpus],
            init=settings.init and public_name(settings.init),
        )

    def write(self, output: Path, recipe: Recipe) -> None:
        """Write recipe.yaml and run.json."""
        text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
        atomic_write_text(output / RECIPE_FILE, text)
        self.recipe_sha256 = sha256(output / RECIPE_FILE)
        atomic_write_json(output / RUN_FILE, asdict(self), checksum=True)


def read_record(output: Path) -> RunRecord | None:
    """Return the record of the run in a directory, or None without a run: --resume may also start one."""
    path = output / RUN_FILE
    if not path.is_file():
        return None
    content = read_json(path, "start a new run", checksum=True)
    try:
        return RunRecord(**{f.name: content[f.name] for f in fields(RunRecord) if f.name in content})
    except TypeError as error:
        raise UserError(f"{path}: {one_line(error)}; start a new run") from None


def require_same(record: RunRecord, output: Path, settings: RunSettings, fingerprint: str, recipe: Recipe) -> None:
    """Raise a UserError unless a run is resumed with the text, recipe, seed and length that it was started with."""
    for name in ("seed", "max_steps", "init"):
        given, recorded = getattr(settings, name), getattr(record, name)
        if given != getattr(RunSettings, name) and public_name(str(given)) != public_name(str(recorded)):
            raise UserError(f"{flag_of(name)} {given}: {output} was started with {recorded}; omit it to resume")
    if record.corpus_fingerprint != fingerprint:
        raise UserError(
            f"--corpus: is not the text that {output} was started with; give the same sources to resume "
            f"({', '.join(record.corpus)})"
        )
    if sha256(output / RECIPE_FILE) != record.recipe_sha256:
        raise UserError(f"{output / RECIPE_FILE}: damaged or edited; restore it, or start a new run")
    written = yaml.safe_load((output / RECIPE_FILE).read_text(encoding="utf-8"))
    changed = [name for name, value in asdict(recipe).items() if written.get(name) != value]
    if changed:
        raise UserError(
            f"{output / RECIPE_FILE}: this run was started with another {', '.join(changed)}; "
            "resume without these flags, or start a new run"
        )
