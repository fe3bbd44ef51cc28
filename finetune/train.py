"""One seed: fine-tune on transformers' `Trainer`, keep the best epoch, score the reported split once."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from .checkpoint import Checkpoint, build_model
from .examples import Example, Splits
from .optimizer import adamw, parameter_groups
from .settings import FinetuneSettings

EncodedText = dict[str, list[int] | int]  # input_ids, attention_mask, ..., labels


@dataclass(frozen=True)
class EncodedSplits:
    """Token ids of every split, made once and shared by all seeds."""

    train: list[EncodedText]
    validation: list[EncodedText]
    reported: list[EncodedText]


@dataclass(frozen=True)
class SeedResult:
    """Scores of one seed: `validation` of its best epoch (1-based), `reported` of the same weights."""

    seed: int
    best_epoch: int
    validation: float
    reported: float
    seconds: float
    epochs: list[dict]


@dataclass(frozen=True)
class TrainedSeed:
    """`probabilities` is (rows of the reported split, labels), in the split's order; `model` holds the best epoch."""

    result: SeedResult
    model: PreTrainedModel
    probabilities: np.ndarray


def encode_splits(splits: Splits, checkpoint: Checkpoint) -> EncodedSplits:
    """Token ids without padding, cut to `checkpoint.max_length`."""

    def encode(examples: Sequence[Example]) -> list[EncodedText]:
        columns = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
        encoded = checkpoint.tokenizer(*columns, truncation=True, max_length=checkpoint.max_length)
        return [
            {**{key: values[i] for key, values in encoded.items()}, "labels": example.label}
            for i, example in enumerate(examples)
        ]

    return EncodedSplits(encode(splits.train), encode(splits.validation), encode(splits.reported))


def train_seed(
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    data: EncodedSplits,
    score: Callable[[np.ndarray, np.ndarray], float],
    seed: int,
    *,
    from_scratch: bool,
    title: str,
) -> TrainedSeed:
    """Trains on `data.train`, chooses the epoch on `data.validation`, reads `data.reported` once at the end.

    On CPU, two calls with equal arguments give equal bits. `title` begins the progress lines.
    """
    started = time.perf_counter()
    model = build_model(checkpoint, seed, from_scratch=from_scratch)
    recorder = _EpochRecorder(title, settings.epochs)
    with tempfile.TemporaryDirectory() as scratch:  # Trainer wants a directory; nothing is saved there
        trainer = Trainer(
            model=model,
            args=_training_arguments(settings, seed, scratch),
            data_collator=DataCollatorWithPadding(checkpoint.tokenizer),
            train_dataset=MaskedTexts(data.train, checkpoint.tokenizer, settings.token_masking),
            eval_dataset=data.validation,
            compute_metrics=lambda prediction: {"score": score(prediction.label_ids, _labels(prediction))},
            preprocess_logits_for_metrics=_only_logits,
            optimizer_cls_and_kwargs=_optimizer(model, settings),
        )
        trainer.remove_callback(PrinterCallback)
        _attach(recorder, trainer)
        trainer.train()
        model.load_state_dict(recorder.best_state)
        logits, labels = _predict(trainer, data.reported)
    probabilities = torch.from_numpy(logits).double().softmax(dim=-1).numpy()
    result = SeedResult(
        seed=seed,
        best_epoch=recorder.best_epoch,
        validation=recorder.best_score,
        reported=score(labels, probabilities.argmax(axis=-1)),
        seconds=round(time.perf_counter() - started, 2),
        epochs=recorder.epochs,
    )
    return TrainedSeed(result, model, probabilities)


class MaskedTexts(torch.utils.data.Dataset):
    """Training texts in which a share of the ordinary tokens is replaced by [MASK], drawn anew at each reading: the
    model may not lean on single words, and it knows the mask from its pretraining. A tokenizer without a mask token
    leaves the texts as they are."""

    def __init__(self, rows: list[EncodedText], tokenizer: PreTrainedTokenizerBase, share: float):
        self.rows, self.mask_id = rows, tokenizer.mask_token_id
        self.share = share if self.mask_id is not None else 0.0
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedText:
        row = self.rows[index]
        if self.share == 0:
            return row
        ids = torch.tensor(row["input_ids"])
        hidden = (torch.rand(len(ids)) < self.share) & ~torch.isin(ids, self.special)
        return {**row, "input_ids": ids.masked_fill(hidden, self.mask_id).tolist()}


def _training_arguments(settings: FinetuneSettings, seed: int, directory: str) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=directory,
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of all steps
        label_smoothing_factor=settings.label_smoothing,
        train_sampling_strategy="group_by_length",
        bf16=on_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        logging_nan_inf_filter=False,  # a diverged run shall look like one
        report_to="none",
        log_level="error",
        disable_tqdm=True,  # `_attach` brings the bar
    )


def _optimizer(model: PreTrainedModel, settings: FinetuneSettings) -> tuple[type[torch.optim.Optimizer], dict]:
    groups = parameter_groups(
        model,
        learning_rate=settings.learning_rate,
        layer_decay=settings.layer_decay,
        weight_decay=settings.weight_decay,
    )
    return adamw(groups, settings.learning_rate)


def _predict(trainer: Trainer, rows: list[EncodedText]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, labels) and labels (N,) in the order of `rows`."""
    # Trainer uses the training strategy for evaluation too, and returns grouped rows in the grouped order.
    trainer.args.train_sampling_strategy = "sequential"
    prediction = trainer.predict(rows)
    if not np.array_equal(prediction.label_ids, [row["labels"] for row in rows]):
        raise RuntimeError("Trainer.predict returned the rows in another order than it was given")
    return prediction.predictions, prediction.label_ids


def _only_logits(outputs: torch.Tensor | tuple, _labels: torch.Tensor) -> torch.Tensor:
    """Some models return more than logits (BART, T5); keeping it all would fill the memory."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.float()


def _labels(prediction: EvalPrediction) -> np.ndarray:
    return prediction.predictions.argmax(axis=-1)


def _attach(recorder: _EpochRecorder, trainer: Trainer) -> None:
    """A bar and lines above it in a terminal, plain lines anywhere else."""
    if sys.stderr.isatty():
        bar = _Bar()
        recorder.write = lambda line: bar.training_bar.write(line, file=sys.stderr)
        trainer.add_callback(recorder)
        trainer.add_callback(bar)
    else:
        trainer.add_callback(recorder)


class _Bar(ProgressCallback):
    def on_log(self, *args, **kwargs) -> None:
        """The stock callback prints the raw dictionaries here; `_EpochRecorder` has a line for them."""

    def on_prediction_step(self, *args, **kwargs) -> None:
        """No second bar: evaluation takes seconds."""


@dataclass(eq=False)
class _EpochRecorder(TrainerCallback):
    """Writes one line per epoch and keeps the weights of the best one in memory (the earliest among equals)."""

    title: str
    total: int
    write: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    epochs: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -float("inf")
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    _train_loss: float = float("nan")
    _started: float = field(default_factory=time.perf_counter)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in (logs or {}):
            self._train_loss = logs["loss"]

    def on_evaluate(self, args, state, control, metrics, model, **kwargs) -> None:
        epoch, score = len(self.epochs) + 1, metrics["eval_score"]
        seconds = time.perf_counter() - self._started
        self._started = time.perf_counter()
        self.epochs.append(
            {"epoch": epoch, "train_loss": self._train_loss, "validation": score, "seconds": round(seconds, 2)}
        )
        if score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best_state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.write(
            f"{self.title}  epoch {epoch}/{self.total}  train loss {self._train_loss:.4f}  "
            f"validation {100 * score:.2f}  {seconds:.1f} s"
        )
