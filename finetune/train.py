"""One seed: fine-tune on transformers' `Trainer`, keep the best epoch, score the reported splits once."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from . import lora, processes
from .checkpoint import Checkpoint, build_model
from .epochs import EpochRecorder
from .examples import Splits
from .kinds.base import EncodedSplit, Kind, ModelInput, row_length
from .optimizer import adamw, parameter_groups
from .order import LengthGroupedOrder
from .progress import attach
from .resume import Unfinished
from .settings import FinetuneSettings


@dataclass(frozen=True)
class EncodedSplits:
    """Model inputs of every split, made once and shared by all seeds."""

    train: EncodedSplit
    validation: EncodedSplit
    reported: dict[str, EncodedSplit]


@dataclass(frozen=True)
class TrainedSeed:
    """`model` holds the weights of `best_epoch` (1-based); `validation` is their main score."""

    seed: int
    model: PreTrainedModel
    best_epoch: int
    validation: float
    seconds: float
    epochs: list[dict]


@dataclass(frozen=True)
class SeedResult:
    """Scores of one seed: `validation` of its best epoch, `reported` (split -> metric -> score) of the same weights."""

    seed: int
    best_epoch: int
    validation: float
    reported: dict[str, dict[str, float]]
    seconds: float
    epochs: list[dict]


@dataclass(frozen=True)
class ScoredSeed:
    """`outputs` are the model's on each reported split, in the order of its rows."""

    result: SeedResult
    model: PreTrainedModel
    outputs: dict[str, np.ndarray]


def encode_splits(kind: Kind, splits: Splits, checkpoint: Checkpoint) -> EncodedSplits:
    """Token ids without padding, cut to `checkpoint.max_length`."""
    return EncodedSplits(
        kind.encode_split(splits.train, checkpoint),
        kind.encode_split(splits.validation, checkpoint),
        {name: kind.encode_split(examples, checkpoint) for name, examples in splits.reported.items()},
    )


def train_seed(
    kind: Kind,
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    data: EncodedSplits,
    seed: int,
    *,
    title: str,
    unfinished: Unfinished | None = None,
) -> TrainedSeed:
    """Trains on `data.train` and chooses the epoch on `data.validation`; reads nothing else.

    On CPU, two calls with equal arguments give equal bits, also where one was killed between two epochs and goes on
    from what it kept in `unfinished`. `title` begins the progress lines.
    """
    model = build_model(checkpoint, seed, from_scratch=settings.from_scratch)
    if settings.lora is not None:
        model = lora.with_adapters(model, settings.lora)
    recorder = EpochRecorder(title, kind.main, settings.epochs, settings.patience, unfinished)
    if not recorder.ended:
        _train(kind, checkpoint, settings, data, seed, model, recorder)
    model.load_state_dict(recorder.best_state)
    if settings.lora is not None:
        model = lora.merged(model)
    return TrainedSeed(
        seed, model, recorder.best_epoch, recorder.best_score, round(recorder.seconds, 2), recorder.epochs
    )


def _train(
    kind: Kind,
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    data: EncodedSplits,
    seed: int,
    model: torch.nn.Module,
    recorder: EpochRecorder,
) -> None:
    """The epochs that are left."""
    finished = len(recorder.epochs)
    rest = dataclasses.replace(settings, epochs=settings.epochs - finished)
    with tempfile.TemporaryDirectory() as scratch:  # Trainer wants a directory; nothing is saved there
        trainer = _Trainer(
            kind,
            data.validation,
            checkpoint,
            finished_epochs=finished,
            model=model,
            args=_training_arguments(rest, seed, scratch),
            train_dataset=MaskedTexts(data.train.rows, checkpoint.tokenizer, settings.token_masking),
            optimizer_cls_and_kwargs=_optimizer(model, settings),
        )
        trainer.remove_callback(PrinterCallback)
        attach(recorder, trainer)
        trainer.train()


def score_reported(
    kind: Kind, checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits, trained: TrainedSeed
) -> ScoredSeed:
    """The one place where the reported splits are scored."""
    started = time.perf_counter()
    outputs = _reported_outputs(kind, checkpoint, settings, trained.model, data)
    reported = {name: kind.scores(outputs[name], split) for name, split in data.reported.items()}
    facts = {name.name: getattr(trained, name.name) for name in dataclasses.fields(trained) if name.name != "model"}
    facts["seconds"] = round(trained.seconds + time.perf_counter() - started, 2)
    return ScoredSeed(SeedResult(reported=reported, **facts), trained.model, outputs)


def restore_scored(
    kind: Kind,
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    data: EncodedSplits,
    result: SeedResult,
    weights: dict[str, torch.Tensor],
) -> ScoredSeed:
    """What `score_reported` once returned, of its `result` and the model's state dict."""
    model = build_model(checkpoint, result.seed, from_scratch=settings.from_scratch)
    model.load_state_dict(weights)
    return ScoredSeed(result, model, _reported_outputs(kind, checkpoint, settings, model, data))


def _reported_outputs(
    kind: Kind, checkpoint: Checkpoint, settings: FinetuneSettings, model: PreTrainedModel, data: EncodedSplits
) -> dict[str, np.ndarray]:
    return {name: model_outputs(kind, checkpoint, settings, model, split) for name, split in data.reported.items()}


def model_outputs(
    kind: Kind, checkpoint: Checkpoint, settings: FinetuneSettings, model: PreTrainedModel, split: EncodedSplit
) -> np.ndarray:
    """What the model says to each of `split.rows`, in their order."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(kind, split, checkpoint, model=model, args=_training_arguments(settings, 0, scratch))
        return trainer.outputs(split)


class _Trainer(Trainer):
    """Trains on batches of texts of like length; evaluates by the kind's scores, on rows sorted by length."""

    def __init__(
        self, kind: Kind, evaluated: EncodedSplit, checkpoint: Checkpoint, finished_epochs: int = 0, **arguments
    ):
        super().__init__(
            data_collator=kind.collator(checkpoint),
            eval_dataset=evaluated.rows,
            preprocess_logits_for_metrics=lambda logits, _labels: kind.outputs(logits),
            **arguments,
        )
        self.kind, self.evaluated, self.longest = kind, evaluated, checkpoint.max_length
        self.finished_epochs = finished_epochs
        if self.train_dataset is not None and processes.count() > 1:
            # Trainer multiplies the loss by the number of processes where forward takes **kwargs: it trusts that the
            # model has divided by the items of all of them. Stock BERT has not, and label smoothing never does.
            batch = self.data_collator(self.train_dataset.rows[:1])
            divides = not self.args.label_smoothing_factor and _divides_by_items(self.model, batch)
            self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs and divides

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedOrder:
        lengths = [row_length(row) for row in self.train_dataset.rows]
        whole_batch = self.args.train_batch_size * processes.count()  # each process takes its part of it
        return LengthGroupedOrder(lengths, whole_batch, self.args.seed, self.finished_epochs)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Over all epochs of the run, also those that were finished before it was resumed."""
        epochs = int(self.args.num_train_epochs)
        return super().create_scheduler(num_training_steps // epochs * (self.finished_epochs + epochs), optimizer)

    def outputs(self, split: EncodedSplit) -> np.ndarray:
        """(rows, ...) in the order of `split.rows`."""
        ordered = self.predict([split.rows[i] for i in split.by_length]).predictions
        outputs = np.empty_like(ordered)
        outputs[split.by_length] = ordered
        return outputs

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """(loss, output, labels); of a model that writes, what it writes. transformers' `Seq2SeqTrainer` does the same,
        but takes no optimizer by class and runs each batch a second time for its loss."""
        if not self.kind.generates:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        read = {name: values for name, values in inputs.items() if name != "labels"}
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, self.model.generate(**read, max_length=self.longest), None

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = self.kind.scores(self.outputs(self.evaluated), self.evaluated)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def _divides_by_items(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> bool:
    """Whether the loss of `model` is a sum over `num_items_in_batch`, and no mean of its own."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    device, known = next(plain.parameters()).device, inspect.signature(plain.forward).parameters
    inputs = {name: values.to(device) for name, values in batch.items() if name in known}
    training = plain.training
    plain.eval()  # no dropout: one loss and the other differ by the count alone
    of_one, of_two = (plain(**inputs, num_items_in_batch=torch.tensor(count, device=device)).loss for count in (1, 2))
    plain.train(training)
    return not torch.equal(of_one, of_two)


class MaskedTexts(torch.utils.data.Dataset):
    """Training texts in which a share of the ordinary tokens is replaced by [MASK], drawn anew at each reading: the
    model may not lean on single words, and it knows the mask from its pretraining. A tokenizer without a mask token
    leaves the texts as they are."""

    def __init__(self, rows: list[ModelInput], tokenizer: PreTrainedTokenizerBase, share: float):
        self.rows, self.mask_id = rows, tokenizer.mask_token_id
        self.share = share if self.mask_id is not None else 0.0
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ModelInput:
        row = self.rows[index]
        if self.share == 0:
            return row
        ids = row["input_ids"]
        several = isinstance(ids[0], list)
        return {**row, "input_ids": [self._masked(choice) for choice in ids] if several else self._masked(ids)}

    def _masked(self, input_ids: list[int]) -> list[int]:
        ids = torch.tensor(input_ids)
        hidden = (torch.rand(len(ids)) < self.share) & ~torch.isin(ids, self.special)
        return ids.masked_fill(hidden, self.mask_id).tolist()


def _training_arguments(settings: FinetuneSettings, seed: int, directory: str) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    per_process = settings.batch_size // processes.count()
    return TrainingArguments(
        output_dir=directory,
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=per_process,
        per_device_eval_batch_size=4 * per_process,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of all steps
        label_smoothing_factor=settings.label_smoothing,
        bf16=on_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        logging_nan_inf_filter=False,  # a diverged run shall look like one
        report_to="none",
        log_level="error",
        disable_tqdm=True,  # `progress.attach` brings the bar
    )


def _optimizer(model: torch.nn.Module, settings: FinetuneSettings) -> tuple[type[torch.optim.Optimizer], dict]:
    groups = parameter_groups(
        model,
        learning_rate=settings.learning_rate,
        layer_decay=settings.layer_decay,
        weight_decay=settings.weight_decay,
    )
    return adamw(groups, settings.learning_rate)
