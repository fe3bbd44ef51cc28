"""The pytest file: upstream's common tests on the family that `$CONFORMANCE_FAMILY` names.

Not among them: tests of generation and export, which the source distribution leaves out, and of pipelines, which need
checkpoints from the Hub.
"""

from __future__ import annotations

import importlib
import inspect
import os
import unittest
from typing import Any

import torch
import transformers
import transformers_tests.test_fsdp_mixin as fsdp
import transformers_tests.test_tensor_parallel_mixin as tensor_parallel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask, torch_device
from transformers_tests.test_training_mixin import TrainingTesterMixin

import hf_tiny_transformer  # noqa: F401 - registers our families

from .families import FAMILIES, FAMILY_VARIABLE, SHAPE

FAMILY = FAMILIES[os.environ[FAMILY_VARIABLE]]

# Auto class -> the table of class names by which upstream's tests find out what a class is for
ROLES = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForPreTraining": modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForNextSentencePrediction": modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}

# upstream runs these on a few model types only, to save time; None means all
tensor_parallel.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
fsdp.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None


def _classes_by_role(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Auto class -> the class it opens the config with."""
    mappings = {role: getattr(transformers, role)._model_mapping for role in ROLES if role not in FAMILY.left_out}
    return {role: mapping[config_class] for role, mapping in mappings.items() if config_class in mapping}


_MODULE, _, _NAME = FAMILY.config_class.rpartition(".")
CONFIG_CLASS: type[PreTrainedConfig] = getattr(importlib.import_module(_MODULE), _NAME)
CLASSES = _classes_by_role(CONFIG_CLASS)
for _role, _class in CLASSES.items():
    # a class that is not in the table of its role is tested less, without a word
    ROLES[_role][CONFIG_CLASS.model_type] = _class.__name__


class FamilyTester:
    """Makes the tiny config and the inputs. Upstream's tests read its attributes, by these names."""

    batch_size = 7  # a test fills smaller batches up with random rows
    seq_length = encoder_seq_length = decoder_seq_length = key_length = 7
    num_choices = 3
    is_training = True
    vocab_size = SHAPE["vocab_size"]
    hidden_size = SHAPE["hidden_size"]
    num_hidden_layers = SHAPE["num_hidden_layers"]
    num_attention_heads = SHAPE["num_attention_heads"]
    pad_token_id = SHAPE["pad_token_id"]
    base_model_class = CLASSES["AutoModel"]
    causal_lm_class = CLASSES.get("AutoModelForCausalLM")

    def get_config(self) -> PreTrainedConfig:
        """Two layers of width 32."""
        known = {*CONFIG_CLASS.__dataclass_fields__, *CONFIG_CLASS.attribute_map}
        return CONFIG_CLASS(**{name: value for name, value in SHAPE.items() if name in known} | FAMILY.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        """Inputs of every class; `_prepare_for_class` adds what one of them needs."""
        config = self.get_config()
        inputs = self._tokens()
        if hasattr(config, "type_vocab_size"):
            inputs["token_type_ids"] = ids_tensor([self.batch_size, self.seq_length], config.type_vocab_size)
        if config.is_encoder_decoder:
            inputs |= {f"decoder_{name}": value for name, value in self._tokens().items()}
        return config, inputs

    def _tokens(self) -> dict[str, torch.Tensor]:
        """(B, T) ids, the last of them the end token and none before it, and a mask with holes."""
        special = 3
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - special) + special
        ids[:, -1] = SHAPE["eos_token_id"]
        return {"input_ids": ids, "attention_mask": random_attention_mask([self.batch_size, self.seq_length])}


def _mixins() -> list[type]:
    """As upstream composes them: language models are also trained to overfit and split over processes."""
    mixins = [ModelTesterMixin]
    if any(model_class.can_generate() for model_class in CLASSES.values()):
        mixins.append(GenerationTesterMixin)
    if FamilyTester.causal_lm_class is not None:
        mixins += [TrainingTesterMixin, tensor_parallel.TensorParallelTesterMixin, fsdp.FSDPTesterMixin]
    return mixins


class FamilyTest(*_mixins(), unittest.TestCase):
    """Upstream's tests; only what they are given is ours."""

    all_model_classes = tuple(dict.fromkeys(CLASSES.values()))

    def setUp(self) -> None:
        """Called before each test."""
        self.model_tester = FamilyTester()
        self.is_encoder_decoder = self.model_tester.get_config().is_encoder_decoder

    def test_config(self) -> None:
        """The common tests of a configuration, with a field of its own that is not at its default."""
        ConfigTester(self, config_class=CONFIG_CLASS, vocab_size=60_000).run_common_tests()

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type[PreTrainedModel], return_labels: bool = False
    ) -> dict[str, Any]:
        """Upstream's, with the second label of BERT's pretraining, as upstream's test of BERT has it."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and "next_sentence_label" in inspect.signature(model_class.forward).parameters:
            shape = self.model_tester.batch_size, self.model_tester.seq_length
            inputs["labels"] = torch.zeros(shape, dtype=torch.long, device=torch_device)
            inputs["next_sentence_label"] = torch.zeros(shape[0], dtype=torch.long, device=torch_device)
        return inputs


for _test, _reason in FAMILY.deselected.items():
    setattr(FamilyTest, _test, unittest.skip(_reason)(getattr(FamilyTest, _test)))
