"""Protects BLiMP's figures: batched scores are those of one plain model call a token, ties and means count as said."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from families import language_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from finetune.cli import main
from finetune.zero_shot import baselines, scoring
from finetune.zero_shot.scoring import encode, likelihood_rows, masked_rows, score_rows

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["the", "cat", "dog", "sit", "bark", "##s", "##ting", "##ty", "a", "."]
SENTENCES = [
    "the cat sits .",
    "the cat sit .",
    "a dog barks",
    "the cattys sitting",
    "a",
    "a dog xylophone",
    "a dog barks",
]
STOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def small_tokenizer(single: str = "[CLS] $A [SEP]", **names: str) -> PreTrainedTokenizerFast:
    """WordPiece, so that words have pieces; `single` is what stands around a text."""
    vocabulary = {piece: number for number, piece in enumerate(SPECIAL + PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    known = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **known, **names)


def stock_bert(**changes) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(**{"vocab_size": 16, "initializer_range": 0.3} | STOCK | changes)).eval()


MASKED = {
    "ours, Encoder": lambda: language_model("Encoder", vocab_size=16),
    "ours, Bert": lambda: language_model("Bert", vocab_size=16),
    "stock BERT": stock_bert,
}
CAUSAL = {
    "ours": lambda: language_model("Decoder", vocab_size=16),
    "stock GPT-2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=16, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    ).eval(),
}


@torch.no_grad()
def plain_score(model, tokenizer, text: str, *, word_l2r: bool) -> float:
    """The definition, a token at a time: every scored token hides itself, and the rest of its word if asked."""
    inputs = tokenizer(text, return_tensors="pt")
    ids, words = inputs["input_ids"][0], inputs.word_ids(0)
    total = 0.0
    for position in range(1, len(ids) - 1):
        masked = ids.clone()
        for other in range(position, len(ids)):
            if other == position or (word_l2r and words[other] == words[position]):
                masked[other] = tokenizer.mask_token_id
        total += float(model(masked[None]).logits[0, position].log_softmax(-1)[ids[position]])
    return total


@pytest.mark.parametrize("word_l2r", [True, False])
@pytest.mark.parametrize("kind", MASKED)
def test_pseudo_log_likelihood_is_that_of_one_call_a_token(kind, word_l2r, monkeypatch):
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 12)  # several batches, the last ones smaller
    model, tokenizer = MASKED[kind](), small_tokenizer()
    rows = masked_rows(encode(tokenizer, SENTENCES, causal=False), tokenizer.mask_token_id, word_l2r=word_l2r)
    expected = [plain_score(model, tokenizer, text, word_l2r=word_l2r) for text in SENTENCES]
    np.testing.assert_allclose(score_rows(model, rows, len(SENTENCES)), expected, atol=1e-4)
    assert len({round(score, 3) for score in expected}) == len(set(SENTENCES)), "the test needs scores that differ"


def test_the_two_maskings_differ_where_words_have_pieces_and_only_there():
    model, tokenizer = stock_bert(), small_tokenizer()
    sentences = encode(tokenizer, SENTENCES, causal=False)
    scores = [
        score_rows(model, masked_rows(sentences, tokenizer.mask_token_id, word_l2r=l2r), len(sentences))
        for l2r in (True, False)
    ]
    in_pieces = [len(sentence.scored) > len(text.split()) for sentence, text in zip(sentences, SENTENCES, strict=True)]
    assert ((scores[0] != scores[1]) == in_pieces).all() and 0 < sum(in_pieces) < len(in_pieces)


def test_equal_rows_run_once():
    tokenizer = small_tokenizer()
    sentences = encode(tokenizer, ["the cat", "the dog", "the cat"], causal=False)
    rows = masked_rows(sentences, tokenizer.mask_token_id, word_l2r=True)
    assert len(rows) == 3, "[the] cat, [the] dog, the [cat or dog]"
    scores = score_rows(stock_bert(), rows, 3)
    assert scores[0] == scores[2] != scores[1]


@pytest.mark.parametrize("template", ["[CLS] $A", "$A", "[CLS] $A [SEP]"])
@pytest.mark.parametrize("kind", CAUSAL)
@torch.no_grad()
def test_likelihood_is_the_sum_of_the_models_log_softmax(kind, template, monkeypatch):
    """From the first word on; neither what begins a text nor what ends it is scored."""
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 12)
    model, tokenizer = CAUSAL[kind](), small_tokenizer(template, bos_token="[CLS]")
    expected = []
    for text in SENTENCES:
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        logs = model(torch.tensor([[tokenizer.bos_token_id, *words]])).logits[0].log_softmax(-1)
        expected.append(sum(float(logs[position, word]) for position, word in enumerate(words)))
    rows = likelihood_rows(encode(tokenizer, SENTENCES, causal=True))
    np.testing.assert_allclose(score_rows(model, rows, len(SENTENCES)), expected, atol=1e-4)


# Files of pairs: uneven numbers, so that a mean over pairs is not a mean over files.
PAIRS = {
    "agreement_1": ("morphology", "agreement", [("the cat sits", "the cat sit"), ("a dog barks", "a dog bark")]),
    "agreement_2": ("morphology", "agreement", [("the dog sits .", "the dog sit .")]),
    "islands": (
        "syntax/semantics",
        "island_effects",
        [("the cat", "cat the"), ("a dog", "a dog"), ("a cat .", "a . cat")],
    ),
}


def write_blimp(folder: Path) -> Path:
    folder.mkdir()
    for name, (field, term, pairs) in PAIRS.items():
        rows = [
            {"sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": term, "UID": name}
            for good, bad in pairs
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """`data/`, `model/` (an Encoder with its tokenizer), `decoder/`."""
    folder = tmp_path_factory.mktemp("blimp")
    torch.manual_seed(3)
    write_blimp(folder / "data")
    language_model("Encoder", vocab_size=16).save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    language_model("Decoder", vocab_size=16).save_pretrained(folder / "decoder")
    small_tokenizer("[CLS] $A", bos_token="[CLS]").save_pretrained(folder / "decoder")
    return folder


def run(work: Path, output: Path, model: str = "model", *flags: str) -> int:
    places = ["--model", work / model, "--data", work / "data", "--output", output]
    return main(["--task", "blimp", *map(str, places), *flags])


@pytest.mark.parametrize("model", ["model", "decoder"])
def test_the_command_counts_ties_half_and_means_over_files(work, model, tmp_path, capsys):
    assert run(work, tmp_path / "out", model) == 0
    captured = capsys.readouterr()
    assert captured.err == "3 files, but BLiMP has 67: not to be compared with figures of the whole\n"
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["sentence_good"], row["sentence_bad"]) for row in rows] == [
        pair for _, _, pairs in PAIRS.values() for pair in pairs
    ]
    accuracies = {}
    for name in PAIRS:
        scores = [(float(row["score_good"]), float(row["score_bad"])) for row in rows if row["file"] == name]
        accuracies[name] = fmean(1.0 if good > bad else 0.5 if good == bad else 0.0 for good, bad in scores)
    assert {name: record["accuracy"] for name, record in results["files"].items()} == pytest.approx(accuracies)
    assert results["accuracy"] == pytest.approx(fmean(accuracies.values()))
    assert results["files"]["islands"]["ties"] == results["ties"] == 1 and results["pairs"] == 6
    for group, names in (("agreement", ["agreement_1", "agreement_2"]), ("island_effects", ["islands"])):
        assert results["terms"][group]["accuracy"] == pytest.approx(fmean(accuracies[name] for name in names))
    assert results["fields"]["morphology"] == results["terms"]["agreement"]
    assert set(results["fields"]) == {"morphology", "syntax_semantics"}
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"| agreement_1 | agreement | morphology | {100 * accuracies['agreement_1']:.2f} | " in report
    assert report.startswith(f"# BLiMP: {100 * results['accuracy']:.2f}\n") and results["command"] in report
    assert re.search(rf"^all +3 +{100 * results['accuracy']:.2f} +\d+\.\d\d$", captured.out, re.MULTILINE)
    assert ("pseudo" in results["scored_by"]) == (model == "model")


def test_twice_the_same_and_fresh_weights_are_others(work, tmp_path):
    for name, flags in {"a": [], "b": [], "fresh": ["--from_scratch"], "token": ["--masking", "token"]}.items():
        assert run(work, tmp_path / name, "model", *flags) == 0
    predictions = {file.parent.name: file.read_bytes() for file in tmp_path.glob("*/predictions.csv")}
    assert predictions["a"] == predictions["b"]
    assert len(set(predictions.values())) == 3


def plain_backoff(texts: list[list[int]], ids: list[int], total: int, base: int) -> float:
    """The definition, a token at a time."""

    def count(*ngram: int) -> int:
        return sum(tuple(text[i : i + len(ngram)]) == ngram for text in texts for i in range(len(text)))

    def share(ngram: tuple[int, ...]) -> float:
        if len(ngram) == 1:
            return (count(*ngram) + 1) / (total + base)
        return count(*ngram) / count(*ngram[:-1]) if count(*ngram) else 0.4 * share(ngram[1:])

    return sum(math.log(share(tuple(ids[max(0, i - 2) : i + 1]))) for i in range(len(ids)))


def test_trigrams_are_those_of_the_definition(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "LINES_AT_ONCE", 2)  # counted in parts
    lines = ["the cat sits .", "the cat sits a dog", "", "a dog barks", "the dog barks . the dog sits"]
    (tmp_path / "a.txt").write_text("\n".join(lines[:3]), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(lines[3:]) + "\n", encoding="utf-8")
    tokenizer = small_tokenizer()
    sentences = {
        "one": encode(tokenizer, SENTENCES[:4], causal=False),
        "two": encode(tokenizer, SENTENCES[4:6], causal=False),
    }
    scores = baselines.trigrams([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tokenizer, sentences)
    texts = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    expected = [
        plain_backoff(texts, [sentence.ids[at] for at in sentence.scored], sum(map(len, texts)), len(tokenizer) + 1)
        for of_file in sentences.values()
        for sentence in of_file
    ]
    assert scores["one"].shape == (2, 2) and scores["two"].shape == (1, 2)
    np.testing.assert_allclose(np.concatenate([scores["one"], scores["two"]]).ravel(), expected, rtol=1e-12)
    assert len(set(expected)) == len(expected), "the test needs scores that differ"


def test_baselines_stand_beside_the_model(work, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sits .\na dog barks\n" * 20, encoding="utf-8")
    assert run(work, tmp_path / "out", "model", "--ngram", str(text)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(results["baselines"]) == {"fewer words", "trigrams"}
    shorter = fmean(
        fmean(
            (len(good.split()) < len(bad.split())) + (len(good.split()) == len(bad.split())) / 2 for good, bad in pairs
        )
        for _, _, pairs in PAIRS.values()
    )
    assert results["baselines"]["fewer words"]["accuracy"] == pytest.approx(shorter)
    trigram = 100 * results["baselines"]["trigrams"]["terms"]["agreement"]["accuracy"]
    assert f" | {trigram:.2f} |\n" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"\xff", "not UTF-8"), (b"\n \n", "holds no text")]
)
def test_a_text_for_ngrams_that_is_none_is_refused(work, tmp_path, capsys, content, message):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert run(work, tmp_path / "out", "model", "--ngram", str(text)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: --ngram {text}: {message}") and not (tmp_path / "out").exists()


def edit(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def no_head(work: Path) -> None:
    shutil.rmtree(work / "model")
    BertModel(BertConfig(vocab_size=16, **STOCK)).save_pretrained(work / "model")
    small_tokenizer().save_pretrained(work / "model")


def seq2seq(work: Path) -> None:
    shutil.rmtree(work / "model")
    T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).save_pretrained(work / "model")
    small_tokenizer().save_pretrained(work / "model")


BROKEN = {
    "no folder": (lambda w: shutil.rmtree(w / "data"), "no such folder"),
    "empty folder": (lambda w: [file.unlink() for file in (w / "data").iterdir()], "holds no .jsonl file"),
    "broken line": (
        lambda w: edit(w / "data/islands.jsonl", '{"sentence_good": "a dog"', "{"),
        "islands.jsonl, line 2",
    ),
    "no field": (lambda w: edit(w / "data/islands.jsonl", "sentence_bad", "bad"), "no text in field 'sentence_bad'"),
    "a list": (lambda w: (w / "data/islands.jsonl").write_text("[]"), "islands.jsonl, line 1: no text in field"),
    "not UTF-8": (lambda w: (w / "data/islands.jsonl").write_bytes(b"\xff"), "not UTF-8"),
    "too long": (lambda w: edit(w / "data/islands.jsonl", "a . cat", "a " * 40), "line 3: 42 tokens, but --model"),
    "no model": (lambda w: shutil.rmtree(w / "model"), "no such directory"),
    "no head": (no_head, "lack cls.predictions.bias, which BertForMaskedLM needs"),
    "seq2seq": (seq2seq, "t5 reads one text to write another"),
    "no language model": (
        lambda w: edit(w / "model/config.json", "tiny_transformer_encoder", "vit"),
        "no language model",
    ),
    "no mask token": (lambda w: small_tokenizer().save_pretrained(w / "model") and unmask(w), "has no mask_token"),
    "output taken": (lambda w: ((w / "out").mkdir(), (w / "out/x").touch()), "already holds something"),
}


def unmask(work: Path) -> None:
    edit(work / "model/tokenizer_config.json", '"mask_token": "[MASK]",', "")


@pytest.mark.parametrize("case", BROKEN)
def test_refused_in_one_line_and_nothing_written(case, work, tmp_path, capsys):
    shutil.copytree(work, tmp_path, dirs_exist_ok=True)
    spoil, message = BROKEN[case]
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(tmp_path, tmp_path / "out") == 2
    captured = capsys.readouterr()
    notes = ("figures of the whole", "names code of others; removed")
    lines = [line for line in captured.err.splitlines() if not line.endswith(notes)]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], captured.err
    assert captured.out == "" and sorted(tmp_path.rglob("*")) == before


def test_without_data_the_hub_is_asked(work, tmp_path, capsys):
    assert main(["--task=blimp", "--model", str(work / "model"), "--output", str(tmp_path / "out")]) == 2
    assert "nyu-mll/blimp can't be read from the Hub" in capsys.readouterr().err
    assert main(["--task", "blimp", "--output", str(tmp_path / "out")]) == 2
    assert (
        "the following arguments are required: --model; see python -m finetune --task blimp" in capsys.readouterr().err
    )
    assert main(["--task", "blimp", "--model", "x", "--output", "y", "--masking", "word"]) == 2
    assert "--masking: invalid choice: 'word'" in capsys.readouterr().err
