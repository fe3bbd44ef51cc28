"""The recipe: everything that decides what a run computes, as typed data. Phases are a list in it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from hf_tiny_transformer import (
    TinyTransformerBertConfig,
    TinyTransformerDecoderConfig,
    TinyTransformerEncoderConfig,
    TinyTransformerSeq2SeqConfig,
)
from hf_tiny_transformer.runs import UserError

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "sample"
DEFAULT_RECIPE_WITH_INIT = "adapt"
CONFIG_CLASSES = {
    "encoder": TinyTransformerEncoderConfig,
    "bert": TinyTransformerBertConfig,
    "decoder": TinyTransformerDecoderConfig,
    "seq2seq": TinyTransformerSeq2SeqConfig,
}
OBJECTIVES = {
    "encoder": ("mlm",),
    "bert": ("mlm", "mlm_nsp"),
    "decoder": ("next_token",),
    "seq2seq": ("span_corruption",),
}


@dataclass
class Stage:
    """A stretch of the run with one shape of batch.

    Args:
        share: of all steps, in (0, 1]; the shares of a recipe add up to 1.
        block_size: tokens in a row (T).
        batch_size: rows in a step, over all processes and micro-batches (B).
        mask_rate: of a row's tokens, in (0, 1); the count per row is fixed. None where nothing is hidden (next_token).
        matrix_learning_rate: Muon's at its peak while this stage lasts; None takes the recipe's.
    """

    share: float
    block_size: int
    batch_size: int
    mask_rate: float | None = None
    matrix_learning_rate: float | None = None


@dataclass
class Recipe:
    """What is trained, on which kind of input, and how.

    Args:
        family: which model is trained.
        model: its config fields (vocab_size and token ids are filled in); --model.hidden_size 256 sets one.
        stages: the phases of the run: a list of {share, block_size, batch_size, mask_rate, matrix_learning_rate}.
        vocab_size: of the WordPiece tokenizer trained on the corpus.
        lowercase: whether the tokenizer folds case (and strips accents).
        embedding_init: start the token embeddings from the corpus' co-occurrence counts, or at random.
        position_init: start learned positions (bert's are) as sinusoids, or at random; others have nothing to start.
        objective: mlm (encoder, bert), mlm_nsp (bert: segment pairs, half of them random), next_token (decoder), or
            span_corruption (seq2seq).
        masking: what mlm hides together: tokens, words, or spans of words (geometric lengths, mean 3.8 words).
        optimizer: muon on the layers' matrices with AdamW on all else, or adamw on everything.
        learning_rate: AdamW's, at its peak.
        matrix_learning_rate: Muon's, at its peak; unused with adamw.
        weight_decay: decoupled, on the layers' matrices only (not on norms, biases, embeddings).
        warmup: share of the run in which the learning rate rises linearly from 0.
        decay: share of the run, its last, in which it falls linearly to 0.
        gradient_clip: maximum norm of the whole gradient.
        micro_batch_size: rows that go through the model at once on one device.
        validation_share: of the documents, held out for the validation loss.
        validation_blocks: how many blocks of them are read at most.
        examples: tried at the end of the run: sentences with [MASK] to fill in, or beginnings to go on from (decoder).
    """

    family: Literal["encoder", "bert", "decoder", "seq2seq"]
    model: dict[str, Any]
    stages: list[Stage]
    vocab_size: int
    lowercase: bool = True
    embedding_init: Literal["cooccurrence", "random"] = "cooccurrence"
    position_init: Literal["sinusoidal", "random"] = "sinusoidal"
    objective: Literal["mlm", "mlm_nsp", "next_token", "span_corruption"] = "mlm"
    masking: Literal["token", "whole_word", "span"] = "token"
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.01
    warmup: float = 0.02
    decay: float = 0.5
    gradient_clip: float = 1.0
    micro_batch_size: int = 32
    validation_share: float = 0.01
    validation_blocks: int = 256
    examples: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raises:
        UserError: a value is out of its range, or fields contradict each other; the message names the field.
        """
        for name in ("vocab_size", "micro_batch_size", "validation_blocks"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("learning_rate", "matrix_learning_rate", "gradient_clip"):
            _require(getattr(self, name) > 0, name, "must be positive")
        _require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        for name in ("warmup", "decay"):
            _require(0 <= getattr(self, name) <= 1, name, "is a share of the run: between 0 and 1")
        _require(self.warmup + self.decay <= 1, "warmup", "and decay add up to more than the whole run")
        _require(0 < self.validation_share < 0.5, "validation_share", "must lie between 0 and 0.5")
        allowed = OBJECTIVES[self.family]
        _require(self.objective in allowed, "objective", f"of family {self.family} is one of: {', '.join(allowed)}")
        masks = self.objective.startswith("mlm")
        _require(masks or self.masking == "token", "masking", f"says how mlm hides tokens; {self.objective} does not")
        _require(len(self.stages) > 0, "stages", "needs at least one stage")
        for i, stage in enumerate(self.stages):
            self._validate_stage(f"stages[{i}]", stage)
        _require(abs(sum(s.share for s in self.stages) - 1) < 1e-6, "stages", "have shares that do not add up to 1")
        for text in self.examples:
            if self.family == "decoder":
                _require("[MASK]" not in text, "examples", f"holds {text!r}: a decoder goes on, it fills no [MASK]")
            else:
                _require("[MASK]" in text, "examples", f"holds {text!r}, which has no [MASK]")
        self._validate_model()

    def _validate_stage(self, name: str, stage: Stage) -> None:
        _require(0 < stage.share <= 1, f"{name}.share", "must lie in (0, 1]")
        _require(stage.block_size >= 8, f"{name}.block_size", "must be at least 8 tokens")
        _require(stage.batch_size >= 1, f"{name}.batch_size", "must be at least 1")
        rate = stage.matrix_learning_rate
        _require(rate is None or rate > 0, f"{name}.matrix_learning_rate", "must be positive")
        self._validate_mask_rate(f"{name}.mask_rate", stage)
        limit = self.model.get("max_position_embeddings", CONFIG_CLASSES[self.family].max_position_embeddings)
        _require(stage.block_size <= limit, f"{name}.block_size", f"exceeds max_position_embeddings ({limit})")

    def _validate_mask_rate(self, name: str, stage: Stage) -> None:
        if self.objective == "next_token":
            _require(stage.mask_rate is None, name, "must be left out: next_token hides nothing")
            return
        _require(stage.mask_rate is not None, name, f"is missing: {self.objective} hides tokens")
        _require(0 < stage.mask_rate < 1, name, "must lie between 0 and 1")
        _require(round(stage.mask_rate * stage.block_size) >= 1, name, "masks no token of a row")

    def _validate_model(self) -> None:
        config_class = CONFIG_CLASSES[self.family]
        known = {f.name for f in fields(config_class)} - {f.name for f in fields(PreTrainedConfig)}
        for name in self.model:
            _require(name in known, f"model.{name}", f"is no field of family {self.family}; known: {sorted(known)}")
        try:
            config_class(**self.model)
        except Exception as error:  # strict dataclasses wrap each validator's error in a type of their own
            raise UserError(f"recipe field model: {error.__cause__ or error}") from None


def find_recipe(name_or_file: str) -> Path:
    """The path of a published recipe, or of the user's own YAML file.

    Raises:
        UserError: neither exists.
    """
    published = RECIPES / f"{name_or_file}.yaml"
    if published.is_file():
        return published
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise UserError(f"--recipe {name_or_file}: neither a published recipe ({names}) nor a file")


def _require(condition: bool, name: str, what: str) -> None:
    if not condition:
        raise UserError(f"recipe field {name} {what}")
