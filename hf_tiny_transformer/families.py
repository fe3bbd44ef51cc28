"""The table of the families, all of whose classes are imported here, and their registration with the Auto classes.

It happens once, when this module is imported; when that is: `registration.py`."""

from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ViTImageProcessorPil,
)
from transformers.utils import is_vision_available

from .configuration_bert import TinyTransformerBertConfig
from .configuration_decoder import TinyTransformerDecoderConfig
from .configuration_encoder import TinyTransformerEncoderConfig
from .configuration_image import TinyTransformerEncoderImageConfig
from .configuration_seq2seq import TinyTransformerSeq2SeqConfig
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
from .registration import register_configs

# family -> which class each Auto class should open it with
FAMILIES = {
    TinyTransformerBertConfig: {
        AutoModel: TinyTransformerBertModel,
        AutoModelForPreTraining: TinyTransformerBertForPreTraining,
        AutoModelForMaskedLM: TinyTransformerBertForMaskedLM,
        AutoModelForNextSentencePrediction: TinyTransformerBertForNextSentencePrediction,
        AutoModelForSequenceClassification: TinyTransformerBertForSequenceClassification,
        AutoModelForTokenClassification: TinyTransformerBertForTokenClassification,
        AutoModelForQuestionAnswering: TinyTransformerBertForQuestionAnswering,
        AutoModelForMultipleChoice: TinyTransformerBertForMultipleChoice,
    },
    TinyTransformerEncoderConfig: {
        AutoModel: TinyTransformerEncoderModel,
        AutoModelForPreTraining: TinyTransformerEncoderForMaskedLM,
        AutoModelForMaskedLM: TinyTransformerEncoderForMaskedLM,
        AutoModelForSequenceClassification: TinyTransformerEncoderForSequenceClassification,
        AutoModelForTokenClassification: TinyTransformerEncoderForTokenClassification,
        AutoModelForQuestionAnswering: TinyTransformerEncoderForQuestionAnswering,
        AutoModelForMultipleChoice: TinyTransformerEncoderForMultipleChoice,
    },
    TinyTransformerEncoderImageConfig: {
        AutoModel: TinyTransformerEncoderImageModel,
        AutoModelForImageClassification: TinyTransformerEncoderForImageClassification,
    },
    TinyTransformerDecoderConfig: {
        AutoModel: TinyTransformerDecoderModel,
        AutoModelForPreTraining: TinyTransformerDecoderForCausalLM,
        AutoModelForCausalLM: TinyTransformerDecoderForCausalLM,
        AutoModelForSequenceClassification: TinyTransformerDecoderForSequenceClassification,
    },
    TinyTransformerSeq2SeqConfig: {
        AutoModel: TinyTransformerSeq2SeqModel,
        AutoModelForPreTraining: TinyTransformerSeq2SeqForConditionalGeneration,
        AutoModelForSeq2SeqLM: TinyTransformerSeq2SeqForConditionalGeneration,
    },
}

register_configs()
for _config_class, _model_classes in FAMILIES.items():
    for _auto_class, _model_class in _model_classes.items():
        if _config_class not in _auto_class._model_mapping:  # or someone has put a class of their own there by now
            _auto_class.register(_config_class, _model_class)

if is_vision_available():  # Pillow is there: resize, scale to [0, 1], normalise, as stock ViT does
    AutoImageProcessor.register(
        TinyTransformerEncoderImageConfig, image_processor_classes={"pil": ViTImageProcessorPil}
    )
