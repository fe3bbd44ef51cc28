"""Every flag of `python -m finetune`: its type, default and range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_tiny_transformer.common.arguments import CommandParser, build, flag_of, program
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.processes import world_size
from hf_tiny_transformer.publish.facts import check_license, public_name

Metric = Literal["accuracy", "macro_f1", "balanced_accuracy", "matthews_correlation", "rouge", "bleu"]


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of one fine-tuning run; the defaults were chosen for tiny models (1 to 30 M parameters).

    Args:
        model: Directory with config.json, model.safetensors and tokenizer files, or a model id on the Hub.
        task: sample-sentiment (needs no network); cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; glue (all);
            ner or qa, with --data; or a table of your own (.csv, .tsv, .jsonl, .parquet) with --text, and --label or
            --target; for multiple choice also --choices.
        output: Directory for the result; it must be empty or new.
        data: For GLUE tasks the folder in GLUE's layout (SST-2/train.tsv, SST-2/dev.tsv); default: the Hub's copy.
            For ner a folder of files in CoNLL's columns with train, dev (or valid, testa) and test in their names, or
            hub:NAME[:CONFIG]. For qa a folder with train*.json and dev*.json in SQuAD's format.
        text: Own table: the column of the text.
        pair: Own table: the column of the second text of a pair; with --choices, of what each choice begins with.
        label: Own table: the column of the label, the labels (a list, or joined by |) or the number; with --choices the
            right one, as a number from 0 or from 1, a letter, or its own text.
        choices: Own table: the columns with one choice each, or one column with lists of choices.
        target: Own table: instead of --label, the column of the text that a sequence-to-sequence model is to write.
        label_type: Own table: what --label holds, instead of what is found: classification, regression or multi-label.
        metric: Own table: the score that chooses epoch and seed. Classes: accuracy (default), macro_f1,
            balanced_accuracy or matthews_correlation; --target: rouge (default) or bleu.
        class_weights: balanced: in the loss, a class counts the more the rarer it is. Default: null (all rows alike).
        validation: Own table: file with the rows used for model selection; default: a part of --task.
        test: Own table: file with the rows that are reported; default: a part of --task.
        license: License of the result, for its card, by the Hub's short name such as apache-2.0; default: none stated.
        submission: GLUE: also answer the test rows, and pack them for the GLUE server.
        resume: Continue the interrupted run of --output after its last finished epoch; without one, start it.
        trust_remote_code: Run Python that the files of --model name (auto_map); it is not passed on to the result.
        report: Markdown file for the final table and the choices made; an existing file is replaced.
        seeds: Number of runs, seeds 1 to this; scores are their mean and standard deviation. Default: 5.
        learning_rate: Peak learning rate, that of the head. Default: 3e-4.
        batch_size: Texts per optimizer step. Default: 32.
        epochs: Passes over the training split; the best one by validation score is kept. Default: 5.
        patience: Epochs without a better validation score after which training stops. Default: null (never).
        search: Trials of a search for learning rate, batch size and epochs on validation (Optuna); 0: no search.
            Default: 0.
        lora: Rank of low-rank adapters (peft), merged into the saved weights. Default: null (train all weights).
        warmup_ratio: Share of the steps in which the learning rate rises, before it falls linearly. Default: 0.1.
        weight_decay: AdamW's weight decay, on matrices only (not on norms and biases). Default: 0.01.
        dropout: Value of every dropout field of the model's config. Default: null (the checkpoint's own).
        token_masking: Share of the training tokens that [MASK] replaces, drawn again in every epoch. Default: 0.
        max_length: Tokens per text; longer texts are truncated. Default: 128, for questions 384, or the model's limit.
        from_scratch: Train the same architecture from fresh weights, as a control.
        compare: Also measure simpler methods (a constant, TF-IDF with a linear model) and training from scratch.
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
    label_type: Literal["classification", "regression", "multi-label"] | None = None
    metric: Metric | None = None
    class_weights: Literal["balanced"] | None = None
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
    max_length: int | None = None
    from_scratch: bool = False
    compare: bool = False

    def __post_init__(self) -> None:
        check_values(self)
        check_license(self.license)
        if self.batch_size % world_size():
            problem = f"--batch-size {self.batch_size}: cannot be divided among {world_size()} processes"
            raise UserError(f"{problem}; choose a multiple of their number")

    def public(self) -> dict[str, Any]:
        """Return the settings as results.json, which is published, has them: paths by their last part."""
        return {name: public_name(value) if isinstance(value, str) else value for name, value in asdict(self).items()}


def check_values(settings: Any) -> None:
    """Check that no text of a settings dataclass is empty, and that numbers are in their ranges."""
    for name, value in vars(settings).items():
        allowed, wording = _RANGES.get(name, (None, ""))
        if allowed is not None and value is not None and not allowed(value):
            raise UserError(f"{flag_of(name)} {value}: must be {wording}")
        words = value if isinstance(value, list) else [value]
        if any(isinstance(word, str) and not word.strip() for word in words):
            raise UserError(f"{flag_of(name)} is empty; give it a value")


def parse_settings(argv: list[str]) -> FinetuneSettings:
    """Return the settings that the flags describe."""
    parser = CommandParser(program("finetune"), "Fine-tune a model on a task and report its scores.")
    parser.add_settings(FinetuneSettings)
    return build(FinetuneSettings, parser.parse(argv))


_COUNT = (lambda value: value >= 1, "at least 1")
_SHARE = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {  # nan fails each of them
    **dict.fromkeys(("seeds", "batch_size", "epochs", "patience", "lora"), _COUNT),
    **dict.fromkeys(("warmup_ratio", "dropout", "token_masking"), _SHARE),
    "learning_rate": (lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
    "search": (lambda value: value >= 0, "at least 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "at least 0"),
    "max_length": (lambda value: value >= 4, "at least 4: two special tokens and some text"),
}
