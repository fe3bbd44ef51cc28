"""The kinds of task: a subclass of `base.Kind` in a file of its own. Everything else is the same for all of them."""

from __future__ import annotations

from transformers import PreTrainedConfig

from hf_tiny_transformer.common.errors import UserError

from .base import Checkpoint, EncodedSplit, Kind
from .multiple_choice import MultipleChoice
from .sequence import SequenceKind
from .spans import Spans
from .tagging import Tagging
from .text_to_text import TextToText

__all__ = ["KINDS", "Checkpoint", "EncodedSplit", "Kind", "from_config"]
KINDS: tuple[type[Kind], ...] = (SequenceKind, Tagging, Spans, MultipleChoice, TextToText)


def from_config(config: PreTrainedConfig, source: str) -> Kind:
    """Return the kind of task that a fine-tuned model was trained for.

    Args:
        config: The model's config.
        source: The model, for error messages.

    Raises:
        UserError: The model has no head that answers anything.
    """
    saved_as = (config.architectures or ["no class"])[0]
    for kind in KINDS:
        if saved_as.endswith(kind.ending):
            return kind.from_config(config)
    known = " or ".join(f"...{kind.ending}" for kind in KINDS)
    raise UserError(
        f"--model {source}: architectures in config.json names {saved_as}, but predict takes {known}; "
        "fine-tune the model first (python -m finetune --task ...)"
    )
