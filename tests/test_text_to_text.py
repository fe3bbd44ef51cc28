"""Protects texts written for texts: targets and scores are what they claim, for our Seq2Seq and for a stock model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_finetune import results_of, toy, toy_tokenizer
from transformers import BartConfig, BartForConditionalGeneration

import hf_tiny_transformer as ours
from finetune.checkpoint import open_checkpoint
from finetune.cli import main
from finetune.examples import Example
from finetune.kinds.text_to_text import TextToText
from finetune.metrics import score
from hf_tiny_transformer.cards import run_snippet, snippet

__all__ = ["toy"]  # the fixture

WORDS = [f"good{i}" for i in range(8)]
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
SIZE = {"vocab_size": 64, "max_position_embeddings": 32}
FLAGS = ["--epochs", "10", "--batch_size", "16", "--seeds", "1", "--max_length", "24"]


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "stock":
        shape = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0}
        layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        return BartForConditionalGeneration(
            BartConfig(**SIZE, **SPECIAL, **shape, **layers, forced_eos_token_id=None, init_std=0.2)
        )
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = ours.TinyTransformerSeq2SeqConfig(**SIZE, **SPECIAL, **shape, initializer_range=0.1)
    return ours.TinyTransformerSeq2SeqForConditionalGeneration(config)


@pytest.fixture(scope="session", params=["ours", "stock"])
def writer(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Good words become the bad ones of the same number, plain ones are left out."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        words = draw.choice(WORDS, draw.integers(4, 6))
        text = " ".join(f"{word} plain{draw.integers(24)}" for word in words)
        found.append((f"{text} plain{i % 24}", " ".join(word.replace("good", "bad") for word in words)))
    return found


def write_csv(path: Path, rows, header=("source", "summary")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def command(model: Path, data: Path, output: Path, *flags) -> list[str]:
    places = {"model": model, "task": data, "output": output, "text": "source", "target": "summary"}
    words = [str(word) for name, value in places.items() for word in (f"--{name}", value)]
    return [*words, *FLAGS, *map(str, flags)]


def test_rows_and_texts_are_each_others_reverse(writer):
    kind = TextToText()
    checkpoint = open_checkpoint(str(writer), kind, dropout=None, max_length=24)
    examples = [Example((text,), target) for text, target in pairs(6)]
    split = kind.encode_split(examples, checkpoint)
    for row, (text, target) in zip(split.rows, pairs(6), strict=True):
        assert row["input_ids"] == checkpoint.tokenizer(text, truncation=True, max_length=24)["input_ids"]
        assert [2, *row["labels"]] == checkpoint.tokenizer(target)["input_ids"] and row["labels"][-1] == 3
    batch = kind.collator(checkpoint)(split.rows)
    assert (batch["labels"] == -100).any() and batch["labels"].shape[0] == 6
    written = np.concatenate([np.full((6, 1), 2), batch["labels"].numpy()], axis=1)  # generate() begins with the start
    assert kind.decode(written, split) == [target for _, target in pairs(6)]
    scores = kind.scores(written, split)
    assert list(scores) == list(kind.metrics) and scores["rougeL"] == scores["rouge1"] == pytest.approx(1.0)


def test_the_command_learns_to_write(writer, tmp_path):
    data = write_csv(tmp_path / "pairs.csv", pairs(300))
    name = "bleu" if writer.name.startswith("stock") else "rougeL"
    rate = {"bleu": "5e-3", "rougeL": "1e-2"}[name]
    assert main(command(writer, data, tmp_path / "out", "--metric", name.rstrip("L"), "--learning_rate", rate)) == 0
    results = results_of(tmp_path / "out")
    assert results["metric"] == name and results["data"]["counts"]["test"] >= 30
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="")))
    truth = dict(pairs(300))
    assert all(truth[row["text"]] == row["label"] for row in rows)
    scores = score(name.rstrip("L"), [row["prediction"] for row in rows], [row["label"] for row in rows])
    assert scores[name] == pytest.approx(results["test"]["mean"])
    losses = [epoch["train_loss"] for epoch in results["seeds"][0]["epochs"]]
    assert losses[-1] < losses[0] / 2 and results["test"]["mean"] > 0.2, losses
    card = (tmp_path / "out" / "README.md").read_text()
    assert run_snippet(snippet(card), tmp_path / "out") == results_of(tmp_path / "out")["snippet_printed"]
    saved = TextToText.auto_class.from_pretrained(tmp_path / "out")
    encoded = toy_tokenizer()([row["text"] for row in rows[:8]], return_tensors="pt", padding=True)
    again = saved.generate(**{k: v for k, v in encoded.items() if k != "token_type_ids"}, max_length=24)
    texts = [text.strip() for text in toy_tokenizer().batch_decode(again, skip_special_tokens=True)]
    assert texts == [row["prediction"] for row in rows[:8]]


REFUSED = {
    "label too": (["--label", "summary"], "--label and --target"),
    "pair": (["--pair", "other"], "--pair other"),
    "metric unknown": (["--metric", "meteor"], "--metric meteor: must be rouge or bleu"),
    "same column": (["--target", "source"], "different columns"),
    "no such column": (["--target", "answer"], "column 'answer'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_flags_that_do_not_fit_are_refused(name, toy, tmp_path, capsys):
    flags, fragment = REFUSED[name]
    data = write_csv(tmp_path / "pairs.csv", pairs(40))
    assert main(command(toy / "model", data, tmp_path / "out", *flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and fragment in error
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_a_model_that_writes_nothing_and_a_missing_text_are_refused(toy, tmp_path, capsys):
    data = write_csv(tmp_path / "pairs.csv", pairs(40))
    assert main(command(toy / "model", data, tmp_path / "out")) == 2
    assert "model_type 'bert' has no head for this task" in capsys.readouterr().err
    data.write_text("source,summary\na b,c\nd e,\n")
    assert main(command(toy / "model", data, tmp_path / "out")) == 2
    assert "pairs.csv, line 3, column 'summary': label ''; a text is wanted" in capsys.readouterr().err
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"source": "a", "summary": 3}) + "\n")
    assert main(command(toy / "model", data, tmp_path / "out")) == 2
    assert "line 1, column 'summary': label 3; a text is wanted" in capsys.readouterr().err
    labelled = [*command(toy / "model", data, tmp_path / "out")[:6], "--text", "a", "--label", "b", "--metric", "bleu"]
    assert main(labelled) == 2
    assert "--metric bleu: is for --target" in capsys.readouterr().err
