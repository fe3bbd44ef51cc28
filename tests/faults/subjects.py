"""What the campaign breaks: pretrain, finetune, and a script as most people write it on stock `Trainer`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import BertForMaskedLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_tiny_transformer.cli import run
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.publish import card

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "finetune")]
import pretraining  # noqa: E402
import toys  # noqa: E402

STEPS = 24


class Subject:
    """A program that trains in `work / "out"`; `work / "out.unfinished"` and `work / "cache"` are also its own."""

    name = ""
    reports_errors = True  # in one line, without a traceback
    result = "out/model.safetensors"

    def prepare(self, folder: Path) -> None:
        """Write the input."""

    def run(self, work: Path, *, resume: bool) -> int:
        """Train, in this process, and return the exit status."""
        raise NotImplementedError


class Pretrain(Subject):
    """`python -m pretrain`."""

    name = "pretrain"

    def prepare(self, folder: Path) -> None:
        draw = np.random.default_rng(0)
        words = [f"{a}{b}" for a in ("ba", "do", "ke", "li", "mu") for b in ("n", "r", "st", "x", "y")]
        lines = [f"Text {i} {' '.join(draw.choice(words, 12))}." for i in range(300)]
        (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run(self, work: Path, *, resume: bool, flags: tuple[str, ...] = ()) -> int:
        steps = (f"--max-steps={STEPS}", "--save-steps=8", "--embedding_init=random", "--resume" * resume)
        flags = (*filter(None, steps), *flags)
        return pretraining.run(pretraining.command(work / "corpus.txt", work / "out", *flags))


class Finetune(Subject):
    """`python -m finetune`."""

    name = "finetune"

    def prepare(self, folder: Path) -> None:
        torch.manual_seed(0)
        toys.save(BertForMaskedLM(toys.bert_config()), toys.wordpiece(), folder / "stock")
        toys.write_glue(folder / "glue", rows=120)

    def run(self, work: Path, *, resume: bool, flags: tuple[str, ...] = ()) -> int:
        places = ["--model", work / "stock", "--task", "sst2", "--data", work / "glue", "--output", work / "out"]
        words = [*places, *toys.DRAWS, "--epochs=3", "--seeds=2", *(["--resume"] if resume else []), *flags]
        return run_command(lambda: run("finetune", list(map(str, words))))


class Stock(Subject):
    """`Trainer` with `resume_from_checkpoint`, a checkpoint every 8 steps, and `save_model` at the end."""

    name = "stock Trainer"
    reports_errors = False
    result = "out/final/model.safetensors"

    def prepare(self, folder: Path) -> None:
        ids = np.random.default_rng(0).integers(5, 64, (96, 16)).tolist()
        self.rows = [{"input_ids": row, "labels": row} for row in ids]

    def run(self, work: Path, *, resume: bool) -> int:
        torch.manual_seed(0)
        model, output = BertForMaskedLM(toys.bert_config()), work / "out"
        options = {"logging_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 1}
        arguments = TrainingArguments(str(output), max_steps=STEPS, save_steps=8, save_strategy="steps", **options)
        trainer = Trainer(model, arguments, train_dataset=self.rows)
        last = get_last_checkpoint(str(output)) if resume and output.is_dir() else None
        trainer.train(resume_from_checkpoint=last)
        trainer.save_model(str(output / "final"))
        return 0


SUBJECTS: tuple[Subject, ...] = (Pretrain(), Finetune(), Stock())


def without_the_cards_code() -> None:
    """Skip the process that runs a card's code: it takes seconds, and touches no file of the run."""
    card._run_code = lambda code, directory: ""


def clear(work: Path) -> None:
    """Remove what a run left, but not its input."""
    for name in ("out", "out.unfinished", "cache"):
        shutil.rmtree(work / name, ignore_errors=True)
