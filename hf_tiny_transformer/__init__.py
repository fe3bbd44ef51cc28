"""Transformers of your own, on Hugging Face's stack. Importing this registers the families with the Auto classes.

Nothing is imported yet by that, torch and transformers included: the classes come when they are asked for, and the Auto
classes learn of them in time (`registration.py`).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import register_when_loaded

if TYPE_CHECKING:
    from .configuration_bert import TinyTransformerBertConfig
    from .configuration_decoder import TinyTransformerDecoderConfig
    from .configuration_encoder import TinyTransformerEncoderConfig
    from .configuration_image import TinyTransformerEncoderImageConfig
    from .configuration_seq2seq import TinyTransformerSeq2SeqConfig
    from .families import FAMILIES
    from .modeling_bert import (
        TinyTransformerBertForMaskedLM,
        TinyTransformerBertForMultipleChoice,
        TinyTransformerBertForNextSentencePrediction,
        TinyTransformerBertForPreTraining,
        TinyTransformerBertForQuestionAnswering,
        TinyTransformerBertForSequenceClassification,
        TinyTransformerBertForTokenClassification,
        TinyTransformerBertModel,
    )
    from .modeling_decoder import (
        TinyTransformerDecoderForCausalLM,
        TinyTransformerDecoderForSequenceClassification,
        TinyTransformerDecoderModel,
    )
    from .modeling_encoder import (
        TinyTransformerEncoderForMaskedLM,
        TinyTransformerEncoderForMultipleChoice,
        TinyTransformerEncoderForQuestionAnswering,
        TinyTransformerEncoderForSequenceClassification,
        TinyTransformerEncoderForTokenClassification,
        TinyTransformerEncoderModel,
    )
    from .modeling_image import TinyTransformerEncoderForImageClassification, TinyTransformerEncoderImageModel
    from .modeling_seq2seq import TinyTransformerSeq2SeqForConditionalGeneration, TinyTransformerSeq2SeqModel

__version__ = "0.1.0"
__all__ = [
    "FAMILIES",
    "TinyTransformerBertConfig",
    "TinyTransformerBertForMaskedLM",
    "TinyTransformerBertForMultipleChoice",
    "TinyTransformerBertForNextSentencePrediction",
    "TinyTransformerBertForPreTraining",
    "TinyTransformerBertForQuestionAnswering",
    "TinyTransformerBertForSequenceClassification",
    "TinyTransformerBertForTokenClassification",
    "TinyTransformerBertModel",
    "TinyTransformerDecoderConfig",
    "TinyTransformerDecoderForCausalLM",
    "TinyTransformerDecoderForSequenceClassification",
    "TinyTransformerDecoderModel",
    "TinyTransformerEncoderConfig",
    "TinyTransformerEncoderForImageClassification",
    "TinyTransformerEncoderForMaskedLM",
    "TinyTransformerEncoderForMultipleChoice",
    "TinyTransformerEncoderForQuestionAnswering",
    "TinyTransformerEncoderForSequenceClassification",
    "TinyTransformerEncoderForTokenClassification",
    "TinyTransformerEncoderImageConfig",
    "TinyTransformerEncoderImageModel",
    "TinyTransformerEncoderModel",
    "TinyTransformerSeq2SeqConfig",
    "TinyTransformerSeq2SeqForConditionalGeneration",
    "TinyTransformerSeq2SeqModel",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Any of our classes, at the price of importing all of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(".families", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_loaded()
