"""The recipe: everything that decides what a run computes, as typed data. Stages are a list in it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

from hf_tiny_transformer import (
    TinyTransformerBertConfig,
    TinyTransformerDecoderConfig,
    TinyTransformerEncoderConfig,
    TinyTransformerSeq2SeqConfig,
)
from hf_tiny_transformer.common.errors import UserError, suggestion
from hf_tiny_transformer.configuration_trunk import TinyTransformerTrunkConfig

CPU_TOKENS_PER_PASS = 2048  # what fits into a CPU's caches
RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "sample"
DEFAULT_RECIPE_WITH_INIT = "adapt"
Family = Literal["encoder", "bert", "decoder", "seq2seq"]
CONFIG_CLASSES: dict[Family, type[TinyTransformerBertConfig] | type[TinyTransformerTrunkConfig]] = {
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
    """A part of the run with one shape of batch.

    Args:
        share: Share of all steps, in (0, 1]; the shares of a recipe add up to 1.
        block_size: Tokens per row (T).
        batch_size: Rows per step, over all processes and micro-batches (B).
        mask_rate: Share of masked tokens, in (0, 1), the same number in each row. None for next_token.
        matrix_learning_rate: Peak learning rate of Muon in this stage. Default: the recipe's.
    """

    share: float
    block_size: int
    batch_size: int
    mask_rate: float | None = None
    matrix_learning_rate: float | None = None


@dataclass
class Recipe:
    """A model, its input, and how it is trained.

    Args:
        family: Model family.
        model: Config fields of the model; --model.hidden_size 256 sets one. The tokenizer sets vocab_size and token
            ids.
        stages: Stages of the run, as a list of {share, block_size, batch_size, mask_rate, matrix_learning_rate};
            --stages.block_size 256 sets a field of the last one.
        vocab_size: Number of pieces of the WordPiece tokenizer, which is trained on the corpus.
        lowercase: Lowercase the text and strip accents.
        embedding_init: Initial token embeddings: factorised co-occurrence counts of the corpus, or random.
        position_init: Initial learned positions: sinusoids or random; ignored by families without learned positions.
        objective: Training objective: mlm (encoder, bert), mlm_nsp (bert; with segment pairs, half of them random),
            next_token (decoder) or span_corruption (seq2seq).
        masking: Units that mlm masks: tokens, words, or spans of words (geometric lengths, mean 3.8 words).
        optimizer: Muon for the matrices of the layers with AdamW for the rest, or AdamW for everything.
        learning_rate: Peak learning rate of AdamW.
        matrix_learning_rate: Peak learning rate of Muon; ignored with adamw.
        weight_decay: Decoupled weight decay of the matrices of the layers (not of norms, biases and embeddings).
        warmup: Share of the run, at its start, in which the learning rate rises linearly from 0.
        decay: Share of the run, at its end, in which the learning rate falls linearly to 0.
        gradient_clip: Maximum norm of the gradient.
        micro_batch_size: Rows in one forward pass on one device. Default: all rows of a step on a GPU, 2,048 tokens
            on a CPU.
        validation_share: Share of the documents that are held out for the validation loss.
        validation_blocks: Maximum number of held-out blocks that are evaluated.
        examples: Texts that show what the finished model does: sentences with [MASK], or prompts (decoder).
    """

    family: Family
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
    micro_batch_size: int | None = None
    validation_share: float = 0.01
    validation_blocks: int = 256
    examples: list[str] = field(default_factory=list)

    @property
    def max_length(self) -> int:
        """The tokens that the model takes at most."""
        return self.model.get("max_position_embeddings", CONFIG_CLASSES[self.family].max_position_embeddings)

    def rows_per_pass(self, stage: Stage, device: torch.device) -> int:
        """Return the rows of a micro-batch."""
        rows = stage.batch_size if device.type == "cuda" else max(1, CPU_TOKENS_PER_PASS // stage.block_size)
        return self.micro_batch_size or rows

    def validate(self) -> None:
        """Raise a UserError that names the field if a value is out of range or fields contradict each other."""
        for name in ("vocab_size", "micro_batch_size", "validation_blocks"):
            _require(
                getattr(self, name) is None or 1 <= getattr(self, name) < 2**31,
                name,
                "must be at least 1 and below 2**31",
            )
        for name in ("learning_rate", "matrix_learning_rate", "gradient_clip"):
            _require(getattr(self, name) > 0, name, "must be positive")
        _require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        for name in ("warmup", "decay"):
            _require(0 <= getattr(self, name) <= 1, name, "must be a share of the run, between 0 and 1")
        _require(self.warmup + self.decay <= 1, "warmup", "and decay must not add up to more than 1")
        _require(0 < self.validation_share < 0.5, "validation_share", "must be between 0 and 0.5")
        allowed, objective = OBJECTIVES[self.family], self.objective
        _require(objective in allowed, "objective", f"of family {self.family} must be one of: {', '.join(allowed)}")
        only_tokens = f"must be token with {objective}: only mlm masks words or spans"
        _require(objective.startswith("mlm") or self.masking == "token", "masking", only_tokens)
        _require(len(self.stages) > 0, "stages", "must have at least one stage")
        for i, stage in enumerate(self.stages):
            self._validate_stage(f"stages[{i}]", stage)
        _require(abs(sum(s.share for s in self.stages) - 1) < 1e-6, "stages", "must have shares that add up to 1")
        for text in self.examples:
            problem = "a decoder fills no [MASK]" if self.family == "decoder" else "it has no [MASK]"
            _require(("[MASK]" in text) != (self.family == "decoder"), "examples", f"has {text!r}: {problem}")
        self._validate_model()

    def _validate_stage(self, name: str, stage: Stage) -> None:
        _require(0 < stage.share <= 1, f"{name}.share", "must be in (0, 1]")
        _require(stage.block_size >= 8, f"{name}.block_size", "must be at least 8 tokens")
        limit = self.max_length
        _require(stage.block_size <= limit, f"{name}.block_size", f"exceeds max_position_embeddings ({limit})")
        _require(1 <= stage.batch_size < 2**31, f"{name}.batch_size", "must be at least 1 and below 2**31")
        peak, rate, masks = stage.matrix_learning_rate, stage.mask_rate, self.objective != "next_token"
        _require(peak is None or peak > 0, f"{name}.matrix_learning_rate", "must be positive")
        _require(masks or rate is None, f"{name}.mask_rate", "must be left out: next_token masks nothing")
        _require(not masks or rate is not None, f"{name}.mask_rate", f"is missing: {self.objective} masks tokens")
        if rate is not None:
            _require(0 < rate < 1, f"{name}.mask_rate", "must be between 0 and 1")
            _require(round(rate * stage.block_size) >= 1, f"{name}.mask_rate", "masks no token of a row")

    def _validate_model(self) -> None:
        config_class = CONFIG_CLASSES[self.family]
        known = sorted({f.name for f in fields(config_class)} - {f.name for f in fields(PreTrainedConfig)})
        for name, value in self.model.items():
            by_tokenizer = name == "vocab_size" or str(name).endswith("_token_id")
            _require(
                not by_tokenizer, f"model.{name}", "is set by the tokenizer; leave it out (recipe field vocab_size)"
            )
            _require(not isinstance(value, int) or value < 2**31, f"model.{name}", "must be less than 2**31")
            hint = suggestion(name, known) or f"; known fields: {', '.join(known)}"
            _require(name in known, f"model.{name}", f"is unknown in family {self.family}{hint}")
        try:
            config_class(**self.model)
        except Exception as error:  # strict dataclasses wrap each validator's error in a type of their own
            raise UserError(f"recipe field model: {error.__cause__ or error}") from None


def find_recipe(name_or_file: str) -> Path:
    """Return the path of a published recipe, or of a YAML file of the user."""
    published = RECIPES / f"{name_or_file}.yaml"
    if published.is_file():
        return published
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    raise UserError(
        f"--recipe {name_or_file}: is neither a published recipe ({', '.join(names)}) nor a file"
        f"{suggestion(name_or_file, names)}"
    )


def _require(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise UserError(f"recipe field {name} {problem}")
