"""Tiny models of the four families, with inputs and labels for each of their classes."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

import hf_tiny_transformer as ours

VOCAB = 53
LENGTH, SOURCE_LENGTH = 9, 11  # both sides of a Seq2Seq differ, so that mixing them up is noticed
PADDING, SOURCE_PADDING = 3, 5
FAMILIES = {
    "Bert": ours.TinyTransformerBertConfig,
    "Encoder": ours.TinyTransformerEncoderConfig,
    "Decoder": ours.TinyTransformerDecoderConfig,
    "Seq2Seq": ours.TinyTransformerSeq2SeqConfig,
}
ENCODERS = ["Bert", "Encoder"]
GENERATORS = ["Decoder", "Seq2Seq"]
LANGUAGE_MODELS = {
    "Bert": "ForMaskedLM",
    "Encoder": "ForMaskedLM",
    "Decoder": "ForCausalLM",
    "Seq2Seq": "ForConditionalGeneration",
}
ENCODER_TASKS = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"]
TASKS = {
    "Bert": ["Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction", *ENCODER_TASKS],
    "Encoder": ["Model", "ForMaskedLM", *ENCODER_TASKS],
    "Decoder": ["Model", "ForCausalLM", "ForSequenceClassification"],
    "Seq2Seq": ["Model", "ForConditionalGeneration"],
}
CLASSES = [(family, task) for family in FAMILIES for task in TASKS[family]]
WITH_LM_HEAD = [("Bert", "ForPreTraining"), *LANGUAGE_MODELS.items()]
CLASSIFIERS = [family for family in FAMILIES if "ForSequenceClassification" in TASKS[family]]
BACKENDS = ["eager", "sdpa", "flex_attention"]
POSITIONS = ["rotary", "sinusoidal", "learned", "none"]

# Encoder and Decoder: two layer types, each with its own rotary base
WINDOWS = {
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "local_attention": 8,
    "max_position_embeddings": 64,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}

every_family = pytest.mark.parametrize("family", list(FAMILIES))
every_class = pytest.mark.parametrize(("family", "task"), CLASSES)
every_lm_head = pytest.mark.parametrize(("family", "task"), WITH_LM_HEAD)


def tiny_config(family: str, **overrides) -> PreTrainedConfig:
    """Build a config without dropout, with weights large enough for non-uniform attention."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
    }
    if family == "Bert":
        shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return FAMILIES[family](**{**shape, **overrides})


def model_class(family: str, task: str) -> type[PreTrainedModel]:
    return getattr(ours, f"TinyTransformer{family}{task}")


def tiny_model(family: str, task: str = "Model", **overrides) -> PreTrainedModel:
    return model_class(family, task)(tiny_config(family, **overrides)).eval()


def language_model(family: str, **overrides) -> PreTrainedModel:
    return tiny_model(family, LANGUAGE_MODELS[family], **overrides)


def random_ids(*shape: int) -> torch.Tensor:
    """Draw tokens other than padding."""
    return torch.randint(1, VOCAB, shape)


def batch(family: str, task: str = "Model", padded: bool = True) -> dict[str, torch.Tensor]:
    """Build input_ids and attention_mask of two texts, the second one shorter; for Seq2Seq also the decoder's."""
    shape = (2, 3) if task == "ForMultipleChoice" else (2,)
    texts = {"": (LENGTH, PADDING)}
    if family == "Seq2Seq":
        texts = {"": (SOURCE_LENGTH, SOURCE_PADDING), "decoder_": (LENGTH, PADDING)}
    inputs = {}
    for side, (length, padding) in texts.items():
        attention_mask = torch.ones(*shape, length, dtype=torch.long)
        if padded:
            attention_mask[1, ..., length - padding :] = 0
        inputs |= {f"{side}input_ids": random_ids(*shape, length), f"{side}attention_mask": attention_mask}
    return inputs


def output_ids(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the tokens of the outputs: for Seq2Seq the decoder's."""
    return inputs.get("decoder_input_ids", inputs["input_ids"])


def real(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a mask of the outputs that belong to real tokens."""
    return inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()


def every_third(ids: torch.Tensor) -> torch.Tensor:
    """Build labels with every third token as a target."""
    return torch.where(torch.arange(ids.numel()).view(ids.shape) % 3 == 0, ids, -100)


def labels_for(task: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Build the labels of a task for the two texts of `batch`."""
    ids = output_ids(inputs)
    if task == "Model":
        return {}
    if task == "ForPreTraining":
        return {"labels": every_third(ids), "next_sentence_label": torch.tensor([0, 1])}
    if task in LANGUAGE_MODELS.values():
        return {"labels": every_third(ids)}
    if task == "ForTokenClassification":
        return {"labels": (ids % 2).masked_fill(inputs["attention_mask"] == 0, -100)}
    if task == "ForQuestionAnswering":
        return {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 2])}
    return {"labels": torch.tensor([1, 0])}


def training_batch(family: str, task: str | None = None, padded: bool = True) -> dict[str, torch.Tensor]:
    """Build inputs and labels; by default for the language model."""
    task = task or LANGUAGE_MODELS[family]
    inputs = batch(family, task, padded)
    return inputs | labels_for(task, inputs)


def two_documents(family: str) -> list[dict[str, torch.Tensor]]:
    """Build texts of different lengths, each as a batch of one."""
    if family == "Seq2Seq":
        return [{"input_ids": random_ids(1, s), "decoder_input_ids": random_ids(1, t)} for s, t in ((4, 5), (6, 4))]
    return [{"input_ids": random_ids(1, length)} for length in (5, 4)]


def pack(documents: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put all in one row, with positions that restart at each document and no attention mask."""
    inputs = {}
    for name in documents[0]:
        inputs[name] = torch.cat([document[name] for document in documents], dim=1)
        positions = [torch.arange(document[name].shape[1]) for document in documents]
        inputs[name.replace("input_ids", "position_ids")] = torch.cat(positions)[None]
    return inputs


def pad(documents: list[dict[str, torch.Tensor]], side: str = "right") -> dict[str, torch.Tensor]:
    """Put each document in a row, with attention masks."""
    inputs = {}
    for name in documents[0]:
        rows = [document[name][0] for document in documents]
        inputs[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
        inputs[name.replace("input_ids", "attention_mask")] = (inputs[name] > 0).long()
    return inputs


def other_tokens(ids: torch.Tensor) -> torch.Tensor:
    """Replace each token by another one that is not padding."""
    return ids % (VOCAB - 1) + 1


def tiny_tokenizer(**settings) -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer of five special tokens and the words `word5` to `word52`, named after their ids."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"word{i}" for i in range(len(special), VOCAB)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **settings)


def without_cache(family: str) -> dict[str, bool]:
    """Keep caches out of a compiled or exported graph."""
    return {"use_cache": False} if family in GENERATORS else {}


def gradients(model: PreTrainedModel, **inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(first, second) -> None:
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
