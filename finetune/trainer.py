"""transformers' `Trainer`, and the parts where it falls short of an exact and interruptible fine-tuning run."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_model
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_tiny_transformer.common.checkpoints import require_finite
from hf_tiny_transformer.common.environment import supports_bf16
from hf_tiny_transformer.common.errors import DivergedError, stop_later
from hf_tiny_transformer.common.files import SUMS, damage, write_sums
from hf_tiny_transformer.common.processes import is_main, say, wait_for_everyone, world_size

from .kinds import Checkpoint, EncodedSplit, Kind, ModelInput, generate, row_length
from .settings import FinetuneSettings

WINDOW = 16  # batches whose texts are sorted among themselves: more saves hardly any padding, and mixes less
SECONDS_BETWEEN_LINES = 60.0
DIVERGED = "lower --learning_rate, and check that numbers in --label are of a moderate size"


@dataclass(frozen=True)
class Training:
    """Everything that all seeds of a setting share. The reported splits are not part of it: no choice can read them."""

    kind: Kind
    checkpoint: Checkpoint
    settings: FinetuneSettings
    train: EncodedSplit
    validation: EncodedSplit

    def using(self, **changes: Any) -> Training:
        """Return the same with other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changes))

    def build(self, seed: int) -> PreTrainedModel:
        """Return the model before training."""
        return self.checkpoint.build(seed, from_scratch=self.settings.from_scratch)


class FineTuner(Trainer):
    """Trains `model` on batches of texts of similar length; evaluates by the kind's scores, on rows sorted by length.

    Trainer's checkpoints are in `directory`; `title` begins each line of progress.
    """

    model: nn.Module

    def __init__(self, training: Training, model: nn.Module, directory: Path, seed: int = 0, title: str = "") -> None:
        kind, checkpoint, settings = training.kind, training.checkpoint, training.settings
        self.kind, self.longest, self.evaluated = kind, checkpoint.max_length, training.validation
        self.directory, self.rows = directory, training.train.rows
        super().__init__(
            model=model,
            args=_arguments(kind, settings, seed, directory),
            data_collator=kind.collator(checkpoint),
            train_dataset=MaskedTexts(training.train.rows, checkpoint.tokenizer, settings.token_masking),
            eval_dataset=[self.evaluated.rows[i] for i in self.evaluated.by_length],
            compute_loss_func=balanced_loss(training) if settings.class_weights else None,
            compute_metrics=lambda found: kind.scores(self._in_order(found.predictions), self.evaluated),
            preprocess_logits_for_metrics=lambda logits, _labels: kind.outputs(logits),
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress(title, kind.main, settings.epochs))
        if settings.patience is not None:
            self.add_callback(EarlyStoppingCallback(settings.patience))
        if world_size() > 1 and self.model_accepts_loss_kwargs:
            # Trainer multiplies the loss by the number of processes if `forward` takes **kwargs: it assumes that the
            # model divided by the items of all of them. Stock BERT does not.
            self.model_accepts_loss_kwargs = _divides_by_items(model, self.data_collator(training.train.rows[:1]))

    def train_or_resume(self) -> None:
        """Train, or continue after the last intact epoch in the directory; the model then has the best weights."""
        found = newest_checkpoint(self.directory)
        wait_for_everyone()
        if is_main():
            remove_checkpoints(self.directory, *found)  # half-written by a killed run, or damaged
        if not found:
            self.train()
            return
        last = found[-1]
        state = TrainerState.load_from_json(str(last / "trainer_state.json"))
        if state.stateful_callbacks[TrainerControl.__name__]["args"]["should_training_stop"]:
            # Trainer would forget that patience had ended the training, and train another epoch.
            self.args.num_train_epochs = round(state.epoch)
        self.train(resume_from_checkpoint=str(last))

    def predictions(self) -> np.ndarray:
        """Return the model's outputs for the validation split, in the order of its rows."""
        self.compute_metrics = None
        return self._in_order(self.predict(self.eval_dataset).predictions)  # type: ignore[arg-type]  # the list of `__init__`

    def _in_order(self, outputs: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
        ordered = np.empty_like(outputs)
        ordered[self.evaluated.by_length] = outputs
        return ordered

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedOrder:
        whole_batch = self.args.train_batch_size * world_size()  # each process takes its part of it
        return LengthGroupedOrder(list(map(row_length, self.rows)), whole_batch, self.args.seed)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """Return (loss, output, labels); to generate, transformers' Seq2SeqTrainer would run a batch twice."""
        if not self.kind.generates:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, generate(self.model, inputs, self.longest), labels

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint, under the names by which Trainer loads them.

        `save_pretrained` would restore the names of old checkpoints (LayerNorm.gamma), which Trainer then ignores when
        it resumes; it would also write code and tokenizer once per epoch, and Trainer a pickle of its arguments.
        """
        if self.args.should_save:
            directory = Path(output_dir or self.directory)
            directory.mkdir(parents=True, exist_ok=True)
            require_finite(self.model.state_dict(), f"step {self.state.global_step}", DIVERGED)
            save_model(self.model, str(directory / "model.safetensors"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Make a checkpoint count when all processes have written it, and only then delete older ones."""
        super()._save_checkpoint(model, trial)
        wait_for_everyone()
        if is_main():
            directory, last = self.directory, checkpoint_of(self.args, self.state.global_step)
            write_sums(last)
            remove_checkpoints(directory, last, checkpoint_of(self.args, self.state.best_global_step))

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """Finish the evaluation and the checkpoint of an epoch before a signal ends the run."""
        with stop_later():
            super()._maybe_log_save_evaluate(*arguments, **options)


def balanced_loss(training: Training) -> Callable[..., torch.Tensor]:
    """Return the cross-entropy in which all classes of the training split weigh the same in sum.

    The weights are rows / (classes * rows of the class), as `class_weight="balanced"` of scikit-learn; their mean over
    the rows is 1. The sum is divided by the rows of the whole batch, over all processes.
    """
    counts = np.bincount([example.label for example in training.train.examples])
    weights = torch.tensor(counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), dtype=torch.float)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = training.kind.outputs(outputs["logits"])
        missing = logits.shape[-1] - len(weights)  # classes after the last one that occurs in training
        of_all = torch.nn.functional.pad(weights, (0, missing)).to(logits.device)
        total = torch.nn.functional.cross_entropy(logits, labels, weight=of_all, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


class LengthGroupedOrder(torch.utils.data.Sampler[int]):
    """The order of training: batches of texts of similar length, themselves in random order.

    An epoch is a permutation of the rows, sorted within windows and divided into batches, which are shuffled. It
    depends on seed and epoch alone. transformers' `group_by_length` leaves the batches of a window sorted from long to
    short, and draws from the global generator, which may differ between processes: rows are then missed or repeated.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0; Trainer calls this through accelerate."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        whole = len(self.lengths) // self.batch_size
        for _ in range(self.epoch + 1):
            rows = torch.randperm(len(self.lengths), generator=generator)
            order = torch.randperm(whole, generator=generator).tolist()
        windows = rows.split(WINDOW * self.batch_size)
        rows = torch.cat([window[self.lengths[window].argsort(stable=True)] for window in windows])
        batches = rows.split(self.batch_size)
        order += range(whole, len(batches))  # a short batch has to stay the last one
        return iter(torch.cat([batches[i] for i in order]).tolist())


class MaskedTexts(torch.utils.data.Dataset):
    """Training rows in which a share of the ordinary tokens is replaced by [MASK], drawn again at each reading."""

    def __init__(self, rows: list[ModelInput], tokenizer: PreTrainedTokenizerBase, share: float) -> None:
        self.rows, self.mask_id = rows, tokenizer.mask_token_id
        self.share = share if self.mask_id is not None else 0.0
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ModelInput:
        row, ids = self.rows[index], self.rows[index]["input_ids"]
        if self.share == 0:
            return row
        return row | {"input_ids": [*map(self._masked, ids)] if isinstance(ids[0], list) else self._masked(ids)}

    def _masked(self, input_ids: list[int]) -> list[int]:
        ids = torch.tensor(input_ids)
        hidden = (torch.rand(len(ids)) < self.share) & ~torch.isin(ids, self.special)
        return ids.masked_fill(hidden, self.mask_id).tolist()


class Progress(TrainerCallback):
    """A line per epoch, and a bar in a terminal or else a line a minute; Trainer's callbacks print raw dictionaries."""

    def __init__(self, title: str, main: str, total: int) -> None:
        self.title, self.main, self.total = title, main, total

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock, and print where a resumed training continues."""
        if state.best_global_step:  # the directory may have been moved since Trainer stored its path
            state.best_model_checkpoint = str(checkpoint_of(args, state.best_global_step))
        self.began = self.last_line = self.epoch_began = time.monotonic()
        self.first_step, self.texts = state.global_step, args.train_batch_size * world_size()  # texts per step
        texts = {"unit": " texts", "unit_scale": self.texts, "leave": False}
        hidden = not (is_main() and sys.stderr.isatty())
        self.bar = tqdm(desc=self.title, total=state.max_steps, initial=state.global_step, disable=hidden, **texts)
        if state.global_step and state.epoch < args.num_train_epochs:
            self.write(f"{self.title}  continues after epoch {round(state.epoch)}/{self.total}")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Show how far the training is."""
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line, rate = now, (state.global_step - self.first_step) / (now - self.began)
            minutes, seconds = divmod(round((state.max_steps - state.global_step) / rate), 60)
            done = f"epoch {state.epoch:.2f}/{self.total}  {rate * self.texts:,.0f} texts/s"
            say(f"{self.title}  {done}  {minutes}:{seconds:02d} left")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the line of an epoch, and put its seconds into the log, which a checkpoint keeps."""
        seconds, self.epoch_began = time.monotonic() - self.epoch_began, time.monotonic()
        state.log_history[-1]["seconds"] = round(seconds, 2)
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), float("nan"))
        if not math.isfinite(loss):
            raise DivergedError(f"{self.title}, epoch {round(state.epoch)}: the training loss is {loss}; {DIVERGED}")
        scores = f"train loss {loss:.4f}  validation {100 * kwargs['metrics'][f'eval_{self.main}']:.2f}"
        self.write(f"{self.title}  epoch {round(state.epoch)}/{self.total}  {scores}  {seconds:.1f} s")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.bar.close()

    def write(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        say(line) if self.bar.disable else self.bar.write(line, file=sys.stderr)


def epoch_records(kind: Kind, state: TrainerState) -> list[dict[str, Any]]:
    """Return loss, scores and seconds of every epoch from Trainer's log, also of those before it was resumed."""
    losses = [entry for entry in state.log_history if "loss" in entry]
    evaluations = [entry for entry in state.log_history if f"eval_{kind.main}" in entry]
    records = []
    for number, (loss, found) in enumerate(zip(losses, evaluations, strict=True), start=1):
        scores = {name: found[f"eval_{name}"] for name in kind.metrics}
        record: dict[str, Any] = {"epoch": number, "train_loss": loss["loss"], "validation": scores[kind.main]}
        record |= {"seconds": found["seconds"]} | ({"validation_scores": scores} if len(scores) > 1 else {})
        records.append(record)
    return records


def checkpoint_of(arguments: TrainingArguments, step: int | None) -> Path:
    """Return where Trainer writes the checkpoint of a step."""
    return Path(str(arguments.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{step}")


def newest_checkpoint(directory: Path) -> list[Path]:
    """Return a seed's best and newest checkpoint, both intact, in this order; none of them if there is no such pair."""
    found = sorted(directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    problems = {path.name: damage(path) for path in found if (path / SUMS).is_file()}  # others are half-written
    for path in reversed([path for path in found if path.name in problems]):
        if problems[path.name] is not None:
            say(f"{path}: {problems[path.name]}; not used")
            continue
        best = TrainerState.load_from_json(str(path / "trainer_state.json")).best_global_step
        if problems.get(name := f"{PREFIX_CHECKPOINT_DIR}-{best}", name) is None:
            return [directory / name, path]
    return []


def remove_checkpoints(directory: Path, *kept: Path) -> None:
    """Remove a seed's checkpoints, except some."""
    for checkpoint in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def with_adapters(model: PreTrainedModel, rank: int) -> PeftModel:
    """Add low-rank adapters (Hu et al. 2021, equation 3; alpha 2 * rank) to every linear layer of the trunk.

    Everything else in the trunk is frozen. The head, and a pooler, which many checkpoints lack, are trained whole.
    Trainer gets `get_base_model()` of the result, because the checkpoints of a PeftModel would lack the head.
    """
    trunk = f"{model.base_model_prefix}." if model.base_model is not model else ""  # T5's model is its own trunk
    modules, output = dict(model.named_modules()), model.get_output_embeddings()
    outside = {name for name in modules if not f"{name}.".startswith(trunk) or f"{name}.".startswith(f"{trunk}pooler.")}
    outside |= {name for name, module in modules.items() if module is output}
    targets = [name for name, module in modules.items() if isinstance(module, nn.Linear) and name not in outside]
    head = [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[0] in outside]
    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for parameter in head:  # peft's modules_to_save matches the ends of names, and finds other modules too
        parameter.requires_grad_(True)
    return adapted


def _arguments(kind: Kind, settings: FinetuneSettings, seed: int, directory: Path) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    per_process = settings.batch_size // world_size()
    return TrainingArguments(
        output_dir=str(directory),
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=per_process,
        per_device_eval_batch_size=4 * per_process,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of all steps
        bf16=supports_bf16(),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=kind.main,
        restore_callback_states_from_checkpoint=True,
        logging_nan_inf_filter=False,  # report NaN losses instead of filtering them
        report_to="none",
        log_level="error",
        disable_tqdm=True,
    )


@torch.no_grad()
def _divides_by_items(model: nn.Module, batch: dict[str, torch.Tensor]) -> bool:
    """Return whether the model's loss is a sum divided by `num_items_in_batch`, rather than a mean of its own."""
    device, known = next(model.parameters()).device, inspect.signature(model.forward).parameters
    inputs = {name: values.to(device) for name, values in batch.items() if name in known}
    training = model.training
    model.eval()  # without dropout the two losses differ by the count alone
    of_one, of_two = (model(**inputs, num_items_in_batch=torch.tensor(count, device=device)).loss for count in (1, 2))
    model.train(training)
    return not torch.equal(of_one, of_two)


def redo(directory: Path) -> str:
    """Return the advice for a damaged file in a seed's directory."""
    return f"delete {directory}, and --resume will redo that part"
