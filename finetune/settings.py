"""Every flag of `python -m finetune`, its type, its default and its allowed range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_tiny_transformer.cards import check_license, public_name
from hf_tiny_transformer.runs import UserError

from . import processes


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of one fine-tuning run; all defaults live here and were chosen for tiny models (1 to 30 M parameters).

    Args:
        model: directory with config.json, model.safetensors and tokenizer files, or a model id on the Hub
        task: sample-sentiment (needs no network); cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; glue, all nine
            of them; ner or qa, with --data; or a file of your own, .csv, .tsv or .jsonl, with --text, and --label or
            --target; multiple choice has --choices, too
        output: directory for the result; it must not hold another run
        data: for GLUE tasks: folder in GLUE's layout (SST-2/train.tsv, SST-2/dev.tsv); without it the Hub's copy.
            For ner: folder of files in CoNLL's columns, known by train, dev (or valid, testa) and test in their names,
            or hub:NAME[:CONFIG]. For qa: folder with train*.json and dev*.json as SQuAD has them
        text: for a file of your own: the column with the text
        pair: for a file of your own: the column with the second text, where two are judged together; beside --choices
            the question, or what every choice begins with
        label: for a file of your own: the column with the label, the labels (a list, or joined by |) or the number;
            with --choices the right one: its number from 0 or from 1, its letter, or its own text
        choices: for a file of your own: the columns with a choice each, or in .jsonl one column with lists of them
        target: for a file of your own: instead of --label, the column with the text that a sequence-to-sequence model
            is to write
        metric: for --target: rouge (the default) or bleu
        validation: for a file of your own: the rows that every choice is made by; without it a part of the file
        test: for a file of your own: the rows that are reported; without it a part of the file
        license: the model's, for its card, by the Hub's short name, such as apache-2.0; null states none
        report: markdown file for the final table, the settings and the times (an existing file is replaced)
        submission: for GLUE: also answer the test rows, and pack them as the GLUE server wants them
        resume: go on with the interrupted run of --output, from its last finished epoch; without one, begin
        trust_remote_code: run Python that the files of --model name (auto_map); none of it is passed on to the result
        seeds: number of runs, seeds 1 to this; scores are their mean and standard deviation
        learning_rate: peak learning rate, that of the head
        batch_size: texts per optimizer step
        epochs: passes over the training split; the best one by validation score is kept
        patience: stop after this many epochs without a better validation score; null never stops early
        search: trials of a search for learning rate, batch size and epochs on validation (Optuna); 0 is off
        lora: rank of low-rank adapters (peft), merged into the saved weights; null trains all weights
        warmup_ratio: share of the steps in which the learning rate rises, before it falls linearly to zero
        weight_decay: AdamW's, on matrices only (not on norms and biases)
        dropout: sets every dropout field of the model's config; null keeps the checkpoint's own
        token_masking: share of the training texts' tokens that [MASK] replaces, drawn anew in every epoch
        label_smoothing: share of the target spread evenly over all labels
        layer_decay: factor on the learning rate per layer, from the head down to the embeddings; 1.0 is off
        max_length: tokens per text, longer ones are cut; null takes 128 (of question and
            text together: 384), or fewer where the model has fewer positions
        from_scratch: the same architecture with fresh weights: the control
        compare: also measure a constant, TF-IDF with a linear model, and the same architecture from scratch

    Raises:
        UserError: a value is out of range, or two settings exclude each other.
    """

    model: str
    task: str
    output: str
    data: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    choices: list[str] | None = None
    target: str | None = None
    metric: str | None = None
    validation: str | None = None
    test: str | None = None
    license: str | None = None
    submission: bool = False
    resume: bool = False
    trust_remote_code: bool = False
    report: str | None = None
    seeds: int = 5
    learning_rate: float = 3e-4
    batch_size: int = 32
    epochs: int = 5
    patience: int | None = None
    search: int = 0
    lora: int | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    dropout: float | None = None
    token_masking: float = 0.0
    label_smoothing: float = 0.0
    layer_decay: float = 1.0
    max_length: int | None = None
    from_scratch: bool = False
    compare: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _RANGES and value is not None:
                allowed, wording = _RANGES[field.name]
                if not allowed(value):
                    raise UserError(f"--{field.name} {value}: must be {wording}")
            words = value if isinstance(value, list) else [value]
            if any(isinstance(word, str) and not word.strip() for word in words):
                raise UserError(f"--{field.name} is empty; give it a value")
        check_license(self.license)
        if self.compare and self.from_scratch:
            raise UserError("--compare trains the from-scratch control itself; leave out --from_scratch")
        if self.lora is not None and self.from_scratch:
            raise UserError("--lora adapts pretrained weights; leave it out, or leave out --from_scratch")
        if self.batch_size % processes.count():
            raise UserError(
                f"--batch_size {self.batch_size}: can't be divided among {processes.count()} processes; "
                "choose a multiple of their number"
            )


def public_settings(settings: FinetuneSettings) -> dict:
    """The settings as results.json, which is published, holds them: files and folders by their names only."""
    return {name: public_name(value) if isinstance(value, str) else value for name, value in asdict(settings).items()}


# Written so that nan fails every test.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seeds": (lambda value: value >= 1, "at least 1"),
    "learning_rate": (lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
    "batch_size": (lambda value: value >= 1, "at least 1"),
    "epochs": (lambda value: value >= 1, "at least 1"),
    "patience": (lambda value: value >= 1, "at least 1"),
    "search": (lambda value: value >= 0, "at least 0"),
    "lora": (lambda value: value >= 1, "at least 1"),
    "warmup_ratio": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "at least 0"),
    "dropout": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "token_masking": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "layer_decay": (lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
    "max_length": (lambda value: value >= 4, "at least 4: two special tokens and some text"),
}
