"""Protects transformers' pipelines: a saved directory and a tokenizer are all they need of our classes."""

import pytest
import torch
from families import (
    CLASSIFIERS,
    ENCODERS,
    LANGUAGE_MODELS,
    VOCAB,
    assert_close,
    language_model,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

TEXTS = ["word5 word6 word7", "word8 word9 word10 word11 word12"]
# a tokenizer that sends token types as well: families without them take them and give them no meaning
with_and_without_token_types = pytest.mark.parametrize(
    "inputs", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]]
)


def saved(model: PreTrainedModel, folder, **settings) -> tuple[str, PreTrainedTokenizerFast]:
    """A directory as users have it: config, weights, tokenizer."""
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
    """The config's label names come out; texts of unequal length in one batch score as they do alone."""
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


@pytest.mark.parametrize("family", ENCODERS)
def test_question_answering_by_hand(family: str, tmp_path):
    """transformers 5 has no pipeline for this task any more: the Auto class and a tokenizer do the same."""
    model = tiny_model(family, "ForQuestionAnswering")
    folder, _ = saved(model, tmp_path)
    with pytest.raises(KeyError, match="question-answering"):
        pipeline("question-answering", model=folder)
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**tokenizer("word5 word6", TEXTS[1], return_tensors="pt"))
    assert outputs.start_logits.shape == outputs.end_logits.shape == (1, 10)


@pytest.mark.parametrize("family", ["Bert", "Encoder", "Decoder"])
@with_and_without_token_types
def test_feature_extraction(family: str, inputs: list[str], tmp_path):
    """The trunk's states; also out of a language model's directory, whose head it leaves aside."""
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
    """Prompts of unequal length, padded on the left, are continued as they are alone."""
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
def test_seq2seq_by_hand(inputs: list[str], tmp_path):
    """transformers 5 has no text-to-text pipeline any more: the Auto class and a tokenizer do the same."""
    model = language_model("Seq2Seq", tie_word_embeddings=False, decoder_start_token_id=2, pad_token_id=0)
    folder, _ = saved(model, tmp_path, model_input_names=inputs)
    with pytest.raises(KeyError, match="text2text-generation"):
        pipeline("text2text-generation", model=folder)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    together = model.generate(**tokenizer(TEXTS, padding=True, return_tensors="pt"), max_new_tokens=6)
    for text, written in zip(TEXTS, together, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6)[0]
        assert written.tolist() == alone.tolist()


@pytest.mark.parametrize("family", list(LANGUAGE_MODELS))
def test_the_tokenizer_of_these_tests(family: str):
    """Words are called after their ids, and all ids lie in the models' vocabulary."""
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == VOCAB == language_model(family).config.vocab_size
    assert tokenizer("word5 unknown word52")["input_ids"] == [2, 5, 1, 52, 3]
