"""Protects what the kinds of task define: targets and answers, tags of words, windows of long texts, choices, texts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toys import (
    BAD,
    GOOD,
    PEOPLE,
    PLACES,
    PLAIN,
    SPECIAL,
    VERBS,
    bert_config,
    names_tokenizer,
    save,
    seq2seq,
    wordpiece,
)
from transformers import BartConfig, BertForMaskedLM, PreTrainedTokenizerFast

from finetune.data import Example
from finetune.kinds import Checkpoint, EncodedSplit
from finetune.kinds.multiple_choice import MultipleChoice
from finetune.kinds.sequence import MultiLabel, Regression, SingleLabel
from finetune.kinds.spans import LONGEST_ANSWER, NO_ANSWER, Spans, best_span
from finetune.kinds.tagging import Tagging
from finetune.kinds.text_to_text import TextToText
from finetune.metrics import score
from finetune.predict import KINDS, kind_of
from finetune.settings import parse_settings
from finetune.tasks import TASKS
from finetune.train import Training, outputs_of

LABELS = ("a", "b", "c")
SEQUENCES = {"single": (SingleLabel(LABELS), 2), "several": (MultiLabel(LABELS), (0, 2)), "number": (Regression(), 2.5)}
TAGS = Tagging(("O", "B-LOC", "B-PER", "I-LOC", "I-PER"))


def opened(kind, tokenizer=None, max_length: int = 64, config=None) -> Checkpoint:
    return Checkpoint("here", kind.auto_class, config, tokenizer or wordpiece(), max_length)


def split_of(*labels) -> EncodedSplit:
    examples = [Example((name,), label) for name, label in zip("xyz", labels, strict=False)]
    return EncodedSplit(examples, [], [])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_reports_the_scores_of_its_metric(task):
    """A perfect answer has a perfect score in each of them."""
    examples = [Example(("x",), i % 2) for i in range(6)]
    scores = task.kind.score_predictions(task.kind.references(examples), examples)
    assert scores == pytest.approx(dict.fromkeys(task.kind.metrics, 1.0)) and task.kind.main in scores
    if task.glue is not None:
        official = score(f"glue/{task.name}", [0, 1, 1, 0, 1], [0, 1, 0, 0, 1])
        assert official == score(task.kind.metric, [0, 1, 1, 0, 1], [0, 1, 0, 0, 1])
        assert set(official) == set(task.kind.metrics)


def test_a_constant_or_diverged_prediction_scores_nothing():
    numbers = [Example(("x",), float(i)) for i in range(5)]
    for predictions in (np.ones(5), np.full(5, np.nan)):
        assert Regression().score_predictions(predictions, numbers) == {"pearson": 0, "spearmanr": 0}


def test_targets_answers_and_columns():
    outputs = np.array([[2.0, -1.0, 1.0], [-3.0, -2.0, -1.0]], dtype=np.float32)
    single, several, number = (kind for kind, _ in SEQUENCES.values())
    of_one = split_of(0, 1)
    assert single.decode(outputs, of_one).tolist() == [0, 2] and single.scores(outputs, of_one) == {"accuracy": 0.5}
    rows = single.predictions(outputs, of_one, ["text"])
    assert [tuple(row.values())[:4] for row in rows] == [(0, "x", "a", "a"), (1, "y", "b", "c")]
    softmax = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert [r["probability"] for r in rows] == pytest.approx(softmax.max(axis=1).tolist(), abs=1e-6)

    of_several = split_of((0, 2), ())
    assert several.target((0, 2)) == [1.0, 0.0, 1.0]
    assert several.decode(outputs, of_several).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert several.scores(outputs, of_several)["exact_match"] == 1.0
    rows = several.predictions(outputs, of_several, ["text"])
    assert [row["label"] for row in rows] == [row["prediction"] for row in rows] == ["a|c", ""]
    assert rows[0]["p(b)"] == pytest.approx(1 / (1 + np.e), abs=1e-6)

    of_number, guesses = split_of(1.0, 3.0, 2.0), np.array([[10.0], [30.0], [20.0]])
    assert number.scores(guesses, of_number) == pytest.approx({"pearson": 1.0, "spearmanr": 1.0})


@pytest.mark.parametrize("name", SEQUENCES)
def test_outputs_are_the_models_row_by_row(name, toy):
    """Pairs of mixed lengths, sorted for speed inside, come back in the order given; padding changes nothing."""
    kind, label = SEQUENCES[name]
    settings = parse_settings(["--model", str(toy / "stock"), "--task", "x", "--output", "x", "--batch_size", "2"])
    checkpoint, words = kind.open(settings.model), [*GOOD, *BAD]
    texts = [(" ".join(words[: 1 + 5 * i % 9]), " ".join(words[i:][: 1 + 3 * i % 7])) for i in range(11)]
    split = kind.encode([Example(pair, label) for pair in texts], checkpoint)
    training = Training(kind, checkpoint, settings, split, split)
    model = training.build(1)
    model.config.architectures = [type(model).__name__]
    assert kind_of(model.config, "x") == kind
    with torch.no_grad():
        for row, output in zip(split.rows, outputs_of(training, model, split), strict=True):
            alone = model(**{key: torch.tensor([value]) for key, value in row.items() if key != "labels"}).logits[0]
            assert output == pytest.approx(alone.numpy(), abs=1e-5)
            labels = torch.tensor([row["labels"]])
            assert torch.isfinite(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss)


WORDS = ["Ánna", "bertab", "x-y", "O'rome", "...", "qqq", "romes", "goes."]


@pytest.mark.parametrize("max_length", [64, 9])
def test_tags_are_where_the_tokenizer_says_that_words_begin(max_length):
    tokenizer, tags = names_tokenizer(), [TAGS.label_names[i % 5] for i in range(len(WORDS))]
    split = TAGS.encode([Example((" ".join(WORDS),), tags)], opened(TAGS, tokenizer, max_length))
    expected = tokenizer(WORDS, is_split_into_words=True, truncation=True, max_length=max_length)
    row, word_ids = split.rows[0], expected.word_ids()
    assert row["input_ids"] == expected["input_ids"] and len(word_ids) <= max_length
    first = [word_ids.index(i) if i in word_ids else None for i in range(len(WORDS))]
    assert split.first_pieces == [first] and (None in first) == (max_length == 9) == split.cut[0]
    labels = {position: TAGS.label_names.index(tag) for position, tag in zip(first, tags, strict=True)}
    assert row["labels"] == [labels.get(position, -100) for position in range(len(word_ids))]


def test_byte_level_tokenizers_include_the_space_before_a_word():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bpe.train_from_iterator([" ".join(PEOPLE + PLACES + VERBS)] * 5, trainer)
    tokenizer, words = (
        PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="[PAD]"),
        ["anna", "zzé", "oslo", "'", "in"],
    )
    split = TAGS.encode([Example((" ".join(words),), ["O"] * 5)], opened(TAGS, tokenizer))
    ids, first = split.rows[0]["input_ids"], split.first_pieces[0]
    assert [tokenizer.decode(ids[a:b]).strip() for a, b in pairwise([*first, len(ids)])] == words


def tags_of(labels: list[int]) -> np.ndarray:
    return np.stack([np.array(labels, dtype=np.float32), np.full(len(labels), 0.5, dtype=np.float32)], axis=-1)[None]


def test_a_word_without_a_token_is_outside_and_counts_against_the_model():
    split = TAGS.encode([Example(("anna \u200b rome",), ["B-PER", "O", "B-LOC"])], opened(TAGS, names_tokenizer()))
    assert split.first_pieces == [[1, None, 2]] and split.rows[0]["labels"] == [-100, 2, 1, -100]
    assert TAGS.decode(tags_of([1] * 4), split) == [["B-LOC", "O", "B-LOC"]]
    tags = ["B-PER", "O", "B-LOC", "I-LOC"]
    split = TAGS.encode([Example(("anna in rome oslo",), tags)], opened(TAGS, names_tokenizer(), 5))
    outputs = tags_of([label if label >= 0 else 3 for label in split.rows[0]["labels"]])
    assert TAGS.decode(outputs, split) == [["B-PER", "O", "B-LOC", "O"]]
    assert TAGS.scores(outputs, split) == {"f1": 0.5, "precision": 0.5, "recall": 0.5}


def test_entities_are_joined_from_tags_and_exclude_punctuation():
    text = "Anna in 'Rome Oslo'."
    split = TAGS.encode([Example((text,), [])], opened(TAGS, names_tokenizer()), labelled=False)
    places = split.first_pieces[0]
    labels = [0] * len(split.rows[0]["input_ids"])
    for position, label in zip(places, (2, 0, 1, 3), strict=True):
        labels[position] = label
    (answer,) = TAGS.answer(tags_of(labels), split)
    found = [(e["label"], e["text"], e["probability"]) for e in answer["entities"]]
    assert found == [("PER", "Anna", 0.5), ("LOC", "Rome Oslo", 0.5)]
    assert all(text[e["start"] : e["end"]] == e["text"] for e in answer["entities"])


def question(words: int, at: int, *, answer: int = 2, seed: int = 0) -> Example:
    """A context of `words` words; the answer is the `answer` words from number `at` on."""
    chosen = list(np.random.default_rng(seed).choice(PLAIN + BAD, words))
    start = len(" ".join([*chosen[:at], ""]))
    return Example(("good1 good2", " ".join(chosen)), [[start, " ".join(chosen[at : at + answer])]])


@pytest.mark.parametrize("max_length", [16, 24, 512])
def test_windows_cover_the_text_and_right_logits_give_the_answer_back(max_length):
    examples = [question(words, at, seed=words) for words in (2, 20, 61, 100) for at in (0, words // 2, words - 2)]
    tokenizer = wordpiece()
    split = Spans().encode(examples, opened(Spans, tokenizer, max_length))
    covered = [set() for _ in examples]
    outputs = np.full((len(split.rows), max_length, 2), -5.0, dtype=np.float32)
    for i, (row, window) in enumerate(zip(split.rows, split.windows, strict=True)):
        assert len(row["input_ids"]) <= max_length
        context = examples[window.example].texts[1]
        for position, (start, end) in enumerate(window.offsets, start=window.first):
            covered[window.example].add((start, end))
            assert row["input_ids"][position] == tokenizer.convert_tokens_to_ids(context[start:end])
        outputs[i, row["start_positions"], 0] = outputs[i, row["end_positions"], 1] = 5.0
    for example, spans in zip(examples, covered, strict=True):
        assert len(spans) == len(example.texts[1].split())
    expected = [example.label[0][1] for example in examples]
    assert Spans().decode(outputs, split) == Spans(unanswerable=True).decode(outputs, split) == expected
    assert Spans().scores(outputs, split) == {"f1": 1.0, "exact_match": 1.0}
    assert (len(split.rows) > len(examples)) == (max_length < 512)


def test_a_window_is_trained_on_the_answer_only_if_it_holds_all_of_it():
    example = question(30, 9, answer=4)
    split = Spans().encode([example], opened(Spans, max_length=20))
    start, text = example.label[0]
    for row, window in zip(split.rows, split.windows, strict=True):
        whole = window.offsets[0][0] <= start and start + len(text) <= window.offsets[-1][1]
        if whole:
            first, last = (window.offsets[row[name] - window.first] for name in ("start_positions", "end_positions"))
            assert example.texts[1][first[0] : last[1]] == text
        else:
            assert row["start_positions"] == row["end_positions"] == NO_ANSWER
    assert {row["start_positions"] == NO_ANSWER for row in split.rows} == {True, False}


@pytest.mark.parametrize("seed", range(3))
def test_the_best_span_is_the_best_of_all(seed):
    logits = np.random.default_rng(seed).normal(size=(50, 2))
    spans = [(start, end) for start in range(50) for end in range(start, min(50, start + LONGEST_ANSWER))]
    every = {(start, end): logits[start, 0] + logits[end, 1] for start, end in spans}
    best = max(every, key=every.__getitem__)
    assert best_span(logits) == (pytest.approx(every[best]), *best)


def test_no_answer_wins_only_where_there_may_be_none_and_a_long_question_is_shortened():
    split = Spans(True).encode([Example(("good1 " * 40, "plain1 plain2"), [])], opened(Spans, max_length=24))
    assert split.cut == [True] and len(split.rows[0]["input_ids"]) <= 24
    outputs = np.zeros((1, 24, 2), dtype=np.float32)
    outputs[0, NO_ANSWER] = 9.0
    assert Spans(unanswerable=True).decode(outputs, split) == [""]
    assert Spans().decode(outputs, split)[0].startswith("plain")
    assert Spans(unanswerable=True).answer(outputs, split)[0]["start"] is None


def test_each_choice_is_read_as_its_own_pair():
    tokenizer = wordpiece()
    example = Example(("plain1 plain2", "plain3", "good1", "bad1 bad2"), 1)
    kind = MultipleChoice(shared=2)
    split = kind.encode([example, example], opened(kind, tokenizer, 16))
    for i, choice in enumerate(("plain3 good1", "plain3 bad1 bad2")):
        assert split.rows[1]["input_ids"][i] == tokenizer("plain1 plain2", choice)["input_ids"]
    assert split.rows[0]["labels"] == 1
    assert kind.collator(opened(kind, tokenizer))(split.rows)["labels"].tolist() == [1, 1]
    answer = kind.answer(np.array([[0.0, 2.0], [3.0, 0.0]], dtype=np.float32), split)
    assert [(a["prediction"], a["choice"]) for a in answer] == [(1, "bad1 bad2"), (0, "good1")]


@pytest.mark.parametrize("start", [2, 3])
def test_the_start_token_does_not_occur_twice_in_what_the_decoder_reads(start):
    kind, tokenizer = TextToText(), wordpiece()
    config = BartConfig(decoder_start_token_id=start) if start == 3 else seq2seq().config
    split = kind.encode([Example(("good1",), "bad1 bad2")], opened(kind, tokenizer, 8, config))
    ids = tokenizer("bad1 bad2")["input_ids"]
    assert split.rows[0]["labels"] == (ids[1:] if start == 2 else ids)
    generated = np.array([[2, *tokenizer.convert_tokens_to_ids(["bad1", "bad2"]), 3, -100]])
    assert kind.decode(generated, split) == ["bad1 bad2"] and kind.scores(generated, split)["rougeL"] == 1.0


def test_every_kind_is_found_by_the_config_it_writes(tmp_path):
    made = {SingleLabel(LABELS), MultiLabel(LABELS), Regression(), TAGS, Spans(), Spans(True), MultipleChoice()}
    save(BertForMaskedLM(bert_config()), wordpiece(), tmp_path)
    for kind in made:
        config = kind.open(str(tmp_path)).build(0).config
        config.architectures = [f"Bert{kind.ending}"]
        assert kind_of(config, "x") == kind
    assert len({kind.ending for kind in KINDS}) == len(KINDS) == 5
