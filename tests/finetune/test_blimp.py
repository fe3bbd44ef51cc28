"""Protects BLiMP's figures: batched scores are those of one model call per token; ties, means and baselines."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.t5 import T5ForConditionalGeneration

import hf_tiny_transformer as ours
from finetune import blimp
from finetune.blimp import main, reads, score
from hf_tiny_transformer.common.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["the", "cat", "dog", "sit", "bark", "##s", "##ting", "##ty", "a", "."]
SENTENCES = ["the cat sits .", "the cat sit .", "a dog barks", "the cattys sitting", "a", "a dog xylophone"]
SENTENCES += ["a dog barks"]
WIDE = {"initializer_range": 0.3, "vocab_size": 16}
STOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def small_tokenizer(single: str = "[CLS] $A [SEP]", **names: str) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer, so that words have pieces; `single` is the template of a text."""
    vocabulary = {piece: number for number, piece in enumerate(SPECIAL + PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    known = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **known, **names)


MASKED: dict[str, Callable] = {
    "ours": lambda: ours.TinyTransformerEncoderForMaskedLM(ours.TinyTransformerEncoderConfig(**WIDE, **STOCK)),
    "our BERT": lambda: ours.TinyTransformerBertForMaskedLM(ours.TinyTransformerBertConfig(**WIDE, **STOCK)),
    "stock BERT": lambda: BertForMaskedLM(BertConfig(**WIDE, **STOCK)),
}
CAUSAL: dict[str, Callable] = {
    "ours": lambda: ours.TinyTransformerDecoderForCausalLM(ours.TinyTransformerDecoderConfig(**WIDE, **STOCK)),
    "stock GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**WIDE, n_embd=32, n_layer=2, n_head=2)),
}


@torch.no_grad()
def plain_score(model, tokenizer, text: str, *, word_l2r: bool) -> float:
    """Return the definition's score, one call per token: each is masked, with the rest of its word if wanted."""
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


@pytest.mark.parametrize("masking", ["word-l2r", "token"])
@pytest.mark.parametrize("kind", MASKED)
def test_pseudo_log_likelihood_is_that_of_one_call_per_token(kind, masking, monkeypatch):
    monkeypatch.setattr(blimp, "TOKENS_PER_BATCH", 12)  # several batches, the last ones smaller
    model, tokenizer = MASKED[kind]().eval(), small_tokenizer()
    scores = score(model, reads(tokenizer, SENTENCES, tokenizer.mask_token_id, masking), len(SENTENCES))
    expected = [plain_score(model, tokenizer, text, word_l2r=masking == "word-l2r") for text in SENTENCES]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert len({round(score, 3) for score in expected}) == len(set(SENTENCES)), "the test needs scores that differ"


def test_the_maskings_differ_only_where_words_have_pieces_and_equal_rows_run_once():
    tokenizer = small_tokenizer()
    for text in SENTENCES:
        rows = [[*reads(tokenizer, [text], tokenizer.mask_token_id, masking)] for masking in ("word-l2r", "token")]
        assert (rows[0] != rows[1]) == (len(rows[0]) > len(text.split()))
    calls = []
    model = MASKED["stock BERT"]().eval()
    model.register_forward_pre_hook(lambda _, __, inputs: calls.append(len(inputs["input_ids"])), with_kwargs=True)
    scores = score(model, reads(tokenizer, ["the cat", "the dog", "the cat"], tokenizer.mask_token_id, "token"), 3)
    assert calls == [3], "[the] cat, [the] dog, the [cat or dog]"
    assert scores[0] == scores[2] != scores[1]


@pytest.mark.parametrize("template", ["[CLS] $A", "$A", "[CLS] $A [SEP]"])
@pytest.mark.parametrize("kind", CAUSAL)
@torch.no_grad()
def test_likelihood_is_the_sum_of_the_models_log_softmax(kind, template, monkeypatch):
    """From the first word on; special tokens are not scored."""
    monkeypatch.setattr(blimp, "TOKENS_PER_BATCH", 12)
    model, tokenizer = CAUSAL[kind]().eval(), small_tokenizer(template, bos_token="[CLS]")
    expected = []
    for text in SENTENCES:
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        logs = model(torch.tensor([[tokenizer.bos_token_id, *words]])).logits[0].log_softmax(-1)
        expected.append(sum(float(logs[position, word]) for position, word in enumerate(words)))
    scores = score(model, reads(tokenizer, SENTENCES, None, ""), len(SENTENCES))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


# Files of unequal size, so that a mean over pairs is not a mean over files.
PAIRS = {
    "agreement_1": ("morphology", "agreement", [("the cat sits", "the cat sit"), ("a dog barks", "a dog bark")]),
    "agreement_2": ("morphology", "agreement", [("the dog sits .", "the dog sit .")]),
    "islands": ("syntax/semantics", "islands", [("the cat", "cat the"), ("a dog", "a dog"), ("a cat .", "a . cat")]),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Return a folder with `data/`, `model/` (an Encoder with its tokenizer) and `decoder/`."""
    folder = tmp_path_factory.mktemp("blimp")
    torch.manual_seed(3)
    (folder / "data").mkdir()
    for name, (field, term, pairs) in PAIRS.items():
        rows = [dict(zip(blimp.FIELDS, (*pair, field, term), strict=True)) | {"UID": name} for pair in pairs]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, model, tokenizer in [
        ("model", MASKED["ours"](), small_tokenizer()),
        ("decoder", CAUSAL["ours"](), small_tokenizer("[CLS] $A", bos_token="[CLS]")),
    ]:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def run(work: Path, output: Path, model: str = "model", *flags: str) -> dict:
    """Run the command and return results.json."""
    main(["--model", str(work / model), "--data", str(work / "data"), "--output", str(output), *flags])
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", ["model", "decoder"])
def test_ties_count_half_and_means_are_over_files(work, model, tmp_path, capsys):
    results = run(work, tmp_path / "out", model)
    captured = capsys.readouterr()
    assert "warning: 3 files instead of 67" in captured.err
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    pairs = [pair for _, _, pairs in PAIRS.values() for pair in pairs]
    assert [(row["sentence_good"], row["sentence_bad"]) for row in rows] == pairs
    accuracies = {}
    for name in PAIRS:
        scores = [(float(row["score_good"]), float(row["score_bad"])) for row in rows if row["file"] == name]
        accuracies[name] = fmean(1.0 if good > bad else 0.5 if good == bad else 0.0 for good, bad in scores)
    assert {name: record["accuracy"] for name, record in results["files"].items()} == pytest.approx(accuracies)
    assert results["accuracy"] == pytest.approx(fmean(accuracies.values()))
    assert results["ties"] == 1 and results["data"]["pairs"] == 6
    agreement = fmean([accuracies["agreement_1"], accuracies["agreement_2"]])
    assert results["terms"]["agreement"] == {"accuracy": pytest.approx(agreement), "files": 2}
    assert results["fields"]["morphology"] == results["terms"]["agreement"]
    assert results["baselines"]["fewer words"]["accuracy"] == 0.5, "in each pair the words are equally many"
    assert set(results["fields"]) == {"morphology", "syntax_semantics"}
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"| file agreement_1 | {100 * accuracies['agreement_1']:.2f} | " in report
    assert report.startswith(f"# BLiMP: {100 * results['accuracy']:.2f}\n")
    assert f"| all files | {100 * results['accuracy']:.2f} | " in captured.out
    assert ("pseudo" in results["scored_by"]) == (model == "model")


def test_runs_are_repeatable_and_fresh_weights_differ(work, tmp_path):
    for name, flags in {"a": [], "b": [], "fresh": ["--from-scratch"], "token": ["--masking=token"]}.items():
        run(work, tmp_path / name, "model", *flags)
    predictions = {file.parent.name: file.read_bytes() for file in tmp_path.glob("*/predictions.csv")}
    assert predictions["a"] == predictions["b"] and len(set(predictions.values())) == 3


def edit(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def replace_model(work: Path, model: torch.nn.Module) -> None:
    shutil.rmtree(work / "model")
    model.save_pretrained(work / "model")
    small_tokenizer().save_pretrained(work / "model")


T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
ISLANDS, CONFIG, TOKENIZER = "data/islands.jsonl", "model/config.json", "model/tokenizer_config.json"
NEITHER = "is neither a masked nor a causal"
BROKEN = {
    "no folder": (lambda w: shutil.rmtree(w / "data"), [], "data: not a folder with .jsonl files"),
    "broken line": (lambda w: edit(w / ISLANDS, '{"sentence_good": "a dog"', "{"), [], "islands.jsonl, line 2: broken"),
    "no field": (lambda w: edit(w / ISLANDS, "sentence_bad", "bad"), [], "no column 'sentence_bad'"),
    "null": (lambda w: edit(w / ISLANDS, '"cat the"', "null"), [], "line 1, column 'sentence_bad': no text"),
    "too long": (lambda w: edit(w / ISLANDS, "a . cat", "a " * 1030), [], "has 1032 tokens, but the model takes"),
    "no head": (lambda w: replace_model(w, BertModel(BertConfig(**WIDE, **STOCK))), [], "weights of BertForMaskedLM"),
    "seq2seq": (lambda w: replace_model(w, T5ForConditionalGeneration(T5Config(vocab_size=16, **T5))), [], NEITHER),
    "no language model": (lambda w: edit(w / CONFIG, "tiny_transformer_encoder", "vit"), [], NEITHER),
    "no mask token": (lambda w: edit(w / TOKENIZER, '"mask_token": "[MASK]",', ""), [], "has no mask_token"),
    "output taken": (lambda w: ((w / "out").mkdir(), (w / "out/x").touch()), [], "is not empty"),
    "no such masking": (lambda w: None, ["--masking", "word"], "--masking word: must be one of word-l2r, token"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_refused_in_one_line_and_nothing_written(case, work, tmp_path, monkeypatch, capsys):
    shutil.copytree(work, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    spoil, flags, message = BROKEN[case]
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        run(tmp_path, tmp_path / "out", "model", *flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == "" and sorted(tmp_path.rglob("*")) == before


def test_without_data_the_hub_is_read(work, tmp_path, monkeypatch):
    model = ["--model", str(work / "model"), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="nyu-mll/blimp cannot be read from the Hub"):
        main(model)
    rows = {
        name: [dict(zip(blimp.FIELDS, (*pair, field, term), strict=True)) for pair in pairs]
        for name, (field, term, pairs) in PAIRS.items()
    }
    monkeypatch.setattr(blimp.datasets, "get_dataset_config_names", lambda path: list(rows)[::-1])
    monkeypatch.setattr(blimp.datasets, "load_dataset", lambda path, name, split: rows[name])
    assert blimp.load_blimp(None) == {name: rows[name] for name in sorted(rows)}
    from_folder = run(work, tmp_path / "out")
    main([*model[:3], str(tmp_path / "hub")])
    assert json.loads((tmp_path / "hub/results.json").read_text())["data"] == from_folder["data"]
