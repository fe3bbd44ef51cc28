"""The table of all families and their classes, and its registration with transformers' Auto classes."""

import sys

from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import AutoConfig

from .configuration_base import AUTO_MAPS, TinyTransformerConfig
from .configuration_bert import TinyTransformerBertConfig
from .configuration_decoder import TinyTransformerDecoderConfig
from .configuration_encoder import TinyTransformerEncoderConfig
from .configuration_image import TinyTransformerEncoderImageConfig
from .configuration_seq2seq import TinyTransformerSeq2SeqConfig

# Config class -> Auto class -> model class.
FAMILIES: dict[type[TinyTransformerConfig], dict[str, str]] = {
    TinyTransformerBertConfig: {
        "AutoModel": "TinyTransformerBertModel",
        "AutoModelForPreTraining": "TinyTransformerBertForPreTraining",
        "AutoModelForMaskedLM": "TinyTransformerBertForMaskedLM",
        "AutoModelForNextSentencePrediction": "TinyTransformerBertForNextSentencePrediction",
        "AutoModelForSequenceClassification": "TinyTransformerBertForSequenceClassification",
        "AutoModelForTokenClassification": "TinyTransformerBertForTokenClassification",
        "AutoModelForQuestionAnswering": "TinyTransformerBertForQuestionAnswering",
        "AutoModelForMultipleChoice": "TinyTransformerBertForMultipleChoice",
    },
    TinyTransformerEncoderConfig: {
        "AutoModel": "TinyTransformerEncoderModel",
        "AutoModelForPreTraining": "TinyTransformerEncoderForMaskedLM",
        "AutoModelForMaskedLM": "TinyTransformerEncoderForMaskedLM",
        "AutoModelForSequenceClassification": "TinyTransformerEncoderForSequenceClassification",
        "AutoModelForTokenClassification": "TinyTransformerEncoderForTokenClassification",
        "AutoModelForQuestionAnswering": "TinyTransformerEncoderForQuestionAnswering",
        "AutoModelForMultipleChoice": "TinyTransformerEncoderForMultipleChoice",
    },
    TinyTransformerEncoderImageConfig: {
        "AutoModel": "TinyTransformerEncoderImageModel",
        "AutoModelForImageClassification": "TinyTransformerEncoderForImageClassification",
    },
    TinyTransformerDecoderConfig: {
        "AutoModel": "TinyTransformerDecoderModel",
        "AutoModelForPreTraining": "TinyTransformerDecoderForCausalLM",
        "AutoModelForCausalLM": "TinyTransformerDecoderForCausalLM",
        "AutoModelForSequenceClassification": "TinyTransformerDecoderForSequenceClassification",
    },
    TinyTransformerSeq2SeqConfig: {
        "AutoModel": "TinyTransformerSeq2SeqModel",
        "AutoModelForPreTraining": "TinyTransformerSeq2SeqForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "TinyTransformerSeq2SeqForConditionalGeneration",
    },
}

# Class -> the module that defines it: modeling_x.py for the models of configuration_x.py.
MODULES = {config_class.__name__: config_class.__module__ for config_class in FAMILIES} | {
    name: config_class.__module__.replace(".configuration_", ".modeling_")
    for config_class, names in FAMILIES.items()
    for name in names.values()
}


def register() -> None:
    """Add the families to the tables in which transformers looks up its own models.

    These tables hold names, and a model file is imported when one of its classes is first used. `AutoModel.register`
    takes classes, whose import takes over a second (`transformers.modeling_utils`). `Trainer` reads the same names to
    recognise a causal language model, whose labels it shifts for label smoothing.
    """
    for config_class, names in FAMILIES.items():
        AutoConfig.register(config_class.model_type, config_class)
        for auto_class, name in names.items():
            mapping = getattr(modeling_auto, auto_class)._model_mapping
            mapping._reverse_config_mapping[config_class.__name__] = config_class.model_type
            mapping._model_mapping[config_class.model_type] = name
            mapping._modules[config_class.model_type] = sys.modules[__package__]
        opened = {"AutoConfig": config_class.__name__, **names}
        AUTO_MAPS[config_class] = {auto: f"{MODULES[name].rpartition('.')[2]}.{name}" for auto, name in opened.items()}
