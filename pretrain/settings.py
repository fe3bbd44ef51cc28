"""What surrounds a recipe: where the text comes from, where the run goes, how long it may take, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from hf_tiny_transformer.cards import check_license
from hf_tiny_transformer.runs import UserError

DEFAULT_MINUTES = 5.0


@dataclass
class RunSettings:
    """What surrounds a recipe.

    Args:
        output: directory of the run.
        corpus: sample, files, folders, globs, hub:NAME[:CONFIG], hub-stream:NAME[:CONFIG] (without a
            download).
        init: a model directory, ours or a stock bert: the run begins with its weights, config and tokenizer.
        text_field: the column or field that holds the text, in .jsonl, .csv, .parquet and Hub data.
        seed: decides the weights at the start, the order of the blocks and the masks.
        minutes: turned into a number of steps once, from a measured rate; 5 when nothing is said.
        max_steps: the number of steps, instead of minutes.
        save_steps: a checkpoint at every so many steps; four in a run when nothing is said. Step 0 is saved too.
        save_minutes: a checkpoint every so many minutes, instead of save_steps.
        keep_last: how many checkpoints stay, besides those of step 0 and of the best validation loss; all by default.
        save_best: save at every new lowest validation loss too, and publish that model at the end instead of the last.
        skip_bad_steps: how many steps with a loss that is not finite, or exploded, are passed over before the run ends.
        attention: how attention is computed; flash_attention_2 needs a GPU and the package flash-attn, and spares the
            (T, T) mask of packed documents.
        log_with: a tracker that gets the figures of metrics.jsonl too; its package must be installed.
        license: the model's, by the Hub's short name, such as apache-2.0; none is stated when nothing is said.
        trust_remote_code: run Python that the files of --init name (auto_map); none of it is passed on.
        resume: go on from the last checkpoint of the run in output, or begin if there is none.
    """

    output: str
    corpus: list[str]
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
        """Raises:
        UserError: a number out of range, two settings that exclude each other, a tracker that is not installed, or
            no licence of the Hub's.
        """
        check_license(self.license)
        for one, other in (("minutes", "max_steps"), ("save_minutes", "save_steps")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(f"{_flag(one)} and {_flag(other)}: give one of them")
        for name in ("minutes", "max_steps", "save_steps", "save_minutes", "keep_last"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{_flag(name)} {value}: must be positive")
        for name in ("seed", "skip_bad_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{_flag(name)} {getattr(self, name)}: must not be negative")
        if self.log_with is not None and find_spec(self.log_with) is None:
            raise UserError(f"--log-with {self.log_with}: not installed; pip install {self.log_with}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
