"""Protects the use in transformers' pipelines: a saved model and a tokenizer are sufficient."""

import pytest
import torch
from families import (
    CLASSIFIERS,
    ENCODERS,
    assert_close,
    language_model,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

TEXTS = ["word5 word6 word7", "word8 word9 word10 word11 word12"]
# with a tokenizer that returns token types, too: families without token types ignore them
with_and_without_token_types = pytest.mark.parametrize(
    "inputs", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]]
)


def saved(model: PreTrainedModel, folder, **settings) -> tuple[str, PreTrainedTokenizerFast]:
    """Save a model and a tokenizer."""
    tokenizer = tiny_tokenizer(**settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer


@pytest.mark.parametrize("family", ENCODERS)
@with_and_without_token_types
def test_fill_mask(family: str, inputs: list[str], tmp_path):
    model = language_model(family)
    folder, tokenizer = saved(model, tmp_path, model_input_names=inputs)
    fill = pipeline("fill-mask", model=folder)
    assert type(fill.model) is type(model)
    text = "word5 [MASK] word7"
    best = fill(text)[0]
    with torch.no_grad():
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0, 2].softmax(-1)
    assert best["token"] == expected.argmax().item()
    assert best["score"] == pytest.approx(expected.max().item(), abs=1e-5)
    together = fill([text, "[MASK] word8 word9 word10"], batch_size=2)
    assert together[0][0]["score"] == pytest.approx(best["score"], abs=1e-5)


@pytest.mark.parametrize("family", CLASSIFIERS)
@with_and_without_token_types
def test_text_classification(family: str, inputs: list[str], tmp_path):
    """With the label names of the config; texts of different lengths in one batch."""
    model = tiny_model(family, "ForSequenceClassification", num_labels=3, id2label={0: "bad", 1: "so-so", 2: "good"})
    folder, tokenizer = saved(model, tmp_path, model_input_names=inputs)
    classify = pipeline("text-classification", model=folder, top_k=None)
    for text, scores in zip(TEXTS, classify(TEXTS, batch_size=2), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        found = {score["label"]: score["score"] for score in scores}
        assert found == pytest.approx(dict(zip(("bad", "so-so", "good"), expected.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_token_classification(family: str, tmp_path):
    model = tiny_model(family, "ForTokenClassification", id2label={0: "O", 1: "NAME"})
    folder, tokenizer = saved(model, tmp_path)
    tag = pipeline("token-classification", model=folder, ignore_labels=[])
    for text in TEXTS:
        found = tag(text)
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1].softmax(-1)
        assert [token["word"] for token in found] == text.split()
        assert [token["entity"] for token in found] == [model.config.id2label[i] for i in expected.argmax(-1).tolist()]
        assert [token["score"] for token in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Encoder", "Decoder"])
@with_and_without_token_types
def test_feature_extraction(family: str, inputs: list[str], tmp_path):
    """The trunk's states, also from the checkpoint of a language model."""
    model = tiny_model(family)
    folder, tokenizer = saved(model, tmp_path / "trunk", model_input_names=inputs)
    for text, features in zip(TEXTS, pipeline("feature-extraction", model=folder)(TEXTS), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert_close(torch.tensor(features), expected)
    folder, tokenizer = saved(language_model(family), tmp_path / "full", model_input_names=inputs)
    assert torch.tensor(pipeline("feature-extraction", model=folder)(TEXTS[0])).shape == (1, 5, 32)


@with_and_without_token_types
def test_text_generation(inputs: list[str], tmp_path):
    """Prompts of different lengths, padded on the left, are continued as they are alone."""
    model = language_model("Decoder", tie_word_embeddings=False, pad_token_id=0)
    folder, tokenizer = saved(model, tmp_path, padding_side="left", model_input_names=inputs)
    write = pipeline("text-generation", model=folder)
    settings = {"max_new_tokens": 6, "do_sample": False}
    together = write(TEXTS, batch_size=2, return_full_text=False, **settings)
    for text, written in zip(TEXTS, together, strict=True):
        prompt = tokenizer(text, return_tensors="pt")
        expected = model.generate(**prompt, **settings)[0, prompt["input_ids"].shape[1] :]
        assert written[0]["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert write(TEXTS[0], **settings)[0]["generated_text"].startswith(TEXTS[0])


@with_and_without_token_types
def test_seq2seq_generation(inputs: list[str], tmp_path):
    """There is no text-to-text pipeline in transformers 5; the Auto class and a tokenizer replace it."""
    model = language_model("Seq2Seq", tie_word_embeddings=False, decoder_start_token_id=2, pad_token_id=0)
    folder, _ = saved(model, tmp_path, model_input_names=inputs)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    together = model.generate(**tokenizer(TEXTS, padding=True, return_tensors="pt"), max_new_tokens=6)
    for text, written in zip(TEXTS, together, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6)[0]
        assert written.tolist() == alone.tolist()
