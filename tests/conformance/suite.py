"""The pytest file: transformers' common tests on the family named by `$CONFORMANCE_FAMILY`.

Tests of generation and export are not included: the source distribution lacks them. Tests of pipelines need
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
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask, torch_device
from transformers_tests.test_training_mixin import TrainingTesterMixin

from .families import FAMILIES, FAMILY_VARIABLE, SHAPE

FAMILY = FAMILIES[os.environ[FAMILY_VARIABLE]]
AUTO_CLASSES = [
    "AutoModel",
    "AutoModelForPreTraining",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForNextSentencePrediction",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
]

# transformers runs these tests on a few model types only; None means all.
tensor_parallel.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
fsdp.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None

_MODULE, _, _NAME = FAMILY.config_class.rpartition(".")
CONFIG_CLASS: type[PreTrainedConfig] = getattr(importlib.import_module(_MODULE), _NAME)
# The tests find the task of a class by its name in transformers' tables, where families.py of our package enters it.
CLASSES: dict[str, type[PreTrainedModel]] = {
    name: getattr(transformers, name)._model_mapping[CONFIG_CLASS]
    for name in AUTO_CLASSES
    if name not in FAMILY.left_out and CONFIG_CLASS in getattr(transformers, name)._model_mapping
}


class FamilyTester:
    """Builds the tiny config and the inputs. transformers' tests read its attributes by these names."""

    batch_size = 7  # one test fills smaller batches with random rows
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
        """Build the config: two layers of width 32."""
        known = {*CONFIG_CLASS.__dataclass_fields__, *CONFIG_CLASS.attribute_map}
        return CONFIG_CLASS(**{name: value for name, value in SHAPE.items() if name in known} | FAMILY.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        """Build the config and inputs of every class; `_prepare_for_class` adds what one of them needs."""
        config = self.get_config()
        inputs = self._tokens()
        if hasattr(config, "type_vocab_size"):
            inputs["token_type_ids"] = ids_tensor([self.batch_size, self.seq_length], config.type_vocab_size)
        if config.is_encoder_decoder:
            inputs |= {f"decoder_{name}": value for name, value in self._tokens().items()}
        return config, inputs

    def _tokens(self) -> dict[str, torch.Tensor]:
        """Draw (B, T) ids with the end token in the last position only, and a mask with holes."""
        special = 3
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - special) + special
        ids[:, -1] = SHAPE["eos_token_id"]
        return {"input_ids": ids, "attention_mask": random_attention_mask([self.batch_size, self.seq_length])}


def _mixins() -> list[type]:
    """Choose the mixins as transformers does: more of them for language models."""
    mixins = [ModelTesterMixin]
    if any(model_class.can_generate() for model_class in CLASSES.values()):
        mixins.append(GenerationTesterMixin)
    if FamilyTester.causal_lm_class is not None:
        mixins += [TrainingTesterMixin, tensor_parallel.TensorParallelTesterMixin, fsdp.FSDPTesterMixin]
    return mixins


class FamilyTest(*_mixins(), unittest.TestCase):
    """transformers' tests on the classes of the family."""

    all_model_classes = tuple(dict.fromkeys(CLASSES.values()))

    def setUp(self) -> None:
        """Build the tester before each test."""
        self.model_tester = FamilyTester()
        self.is_encoder_decoder = self.model_tester.get_config().is_encoder_decoder

    def test_config(self) -> None:
        """Run the common tests of a configuration, with one field that is not at its default."""
        ConfigTester(self, config_class=CONFIG_CLASS, vocab_size=60_000).run_common_tests()

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type[PreTrainedModel], return_labels: bool = False
    ) -> dict[str, Any]:
        """Add the labels of BERT's pretraining, as transformers' test of BERT does."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and "next_sentence_label" in inspect.signature(model_class.forward).parameters:
            shape = self.model_tester.batch_size, self.model_tester.seq_length
            inputs["labels"] = torch.zeros(shape, dtype=torch.long, device=torch_device)
            inputs["next_sentence_label"] = torch.zeros(shape[0], dtype=torch.long, device=torch_device)
        return inputs


for _test, _reason in FAMILY.deselected.items():
    setattr(FamilyTest, _test, unittest.skip(_reason)(getattr(FamilyTest, _test)))
