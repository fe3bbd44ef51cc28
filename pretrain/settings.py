"""Everything about a run except its recipe: where text comes from and results go, how long it takes, what is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.publish.facts import check_license

DEFAULT_MINUTES = 5.0


@dataclass
class RunSettings:
    """Everything about a run except its recipe.

    Args:
        output: Directory of the run; must be new or empty, except with --resume.
        corpus: Text to train on: sample, files, folders, globs, hub:NAME[:CONFIG] or hub-stream:NAME[:CONFIG] (without
            a download).
        init: Directory of a model, ours or a stock bert, whose weights, config and tokenizer the run starts from.
        text_field: Column or field with the text, in .csv, .tsv, .jsonl, .parquet and Hub data.
        seed: Seed of the initial weights, the order of the blocks and the masks.
        minutes: Minutes of training, converted once into a number of steps. Default: 5.
        max_steps: Number of steps, instead of minutes.
        save_steps: Steps between checkpoints. Default: a quarter of the run. Step 0 is always saved.
        save_minutes: Minutes between checkpoints, instead of save_steps.
        keep_last: Number of checkpoints to keep, besides those of step 0 and of the best validation loss. Default: all.
        save_best: Also save at each new lowest validation loss, and publish that model instead of the last one.
        skip_bad_steps: Number of steps with a loss or gradient that is not finite, or exploded, to skip before the run
            ends.
        attention: Attention implementation; flash_attention_2 needs a GPU and the package flash-attn.
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
    attention: Literal["sdpa", "flash_attention_2", "flex_attention", "eager"] = "sdpa"
    log_with: Literal["tensorboard", "trackio", "wandb"] | None = None
    license: str | None = None
    resume: bool = False
    trust_remote_code: bool = False

    def validate(self) -> None:
        """Check the values.

        Raises:
            UserError: A number is out of range, two settings exclude each other, a tracker is not installed, or the
                license is not one of the Hub's.
        """
        check_license(self.license)
        for one, other in (("minutes", "max_steps"), ("save_minutes", "save_steps")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(f"{_flag(one)} and {_flag(other)} exclude each other; give one of them")
        for name in ("minutes", "max_steps", "save_steps", "save_minutes", "keep_last"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{_flag(name)} {value}: must be positive")
        for name in ("seed", "skip_bad_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{_flag(name)} {getattr(self, name)}: must not be negative")
        if self.log_with is not None and find_spec(self.log_with) is None:
            raise UserError(f"--log-with {self.log_with}: is not installed; run: pip install {self.log_with}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
