"""Protects a fine-tuning run: scores are what they claim, no choice reads the reported split, runs repeat."""

import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss
from sklearn.utils import compute_class_weight
from toys import (
    BAD,
    GOOD,
    PLAIN,
    bert_config,
    launch,
    launch_several,
    predictions_of,
    results_of,
    run,
    save,
    wordpiece,
    write_glue,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, pipeline

from finetune.data import Example
from finetune.kinds import EncodedSplit
from finetune.kinds.sequence import SingleLabel
from finetune.report import Results
from finetune.tasks import TASKS
from finetune.train import Training, search
from finetune.trainer import balanced_loss
from hf_tiny_transformer.publish.verify import verify

EPOCHS = 4
FLAGS = ["--learning_rate", "5e-3", "--epochs", EPOCHS, "--batch_size", 16]


def sst2(toy: Path, output: Path, *flags, model: str = "encoder", glue: Path | None = None) -> dict:
    places = ["--model", toy / model, "--task", "sst2", "--data", glue or toy / "glue", "--output", output]
    assert run(*places, *FLAGS, *flags) == 0
    return results_of(output)


@pytest.fixture(scope="module")
def compared(tasks, tmp_path_factory):
    """The real command with --compare and --report: (what it printed, output directory, report)."""
    folder = tmp_path_factory.mktemp("compared")
    places = ["--model", tasks["qa"][1], "--task", "sst2", "--data", tasks["sst2"][-1], "--output", folder / "out"]
    process = launch(*places, *FLAGS, "--seeds", 2, "--compare", "--report", folder / "report.md")
    printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed[1]
    return printed, folder / "out", folder / "report.md"


@pytest.mark.slow
def test_the_model_beats_simpler_methods_and_statistics_are_those_of_the_seeds(compared):
    results = results_of(compared[1])
    rows = {row["name"].split(" (")[0]: row for row in results["comparison"]}
    assert set(rows) == {"majority class", "TF-IDF + logistic regression", "same architecture, from scratch"}
    assert results["test"]["mean"] > rows["majority class"]["test"]["mean"] + 0.2
    assert rows["TF-IDF + logistic regression"]["test"]["mean"] > rows["majority class"]["test"]["mean"] + 0.2
    assert len(rows["same architecture, from scratch"]["seeds"]) == 2
    assert [seed["seed"] for seed in results["seeds"]] == [1, 2]
    for split in ("validation", "test"):
        scores = [seed[split] for seed in results["seeds"]]
        assert results[split]["mean"] == pytest.approx(statistics.fmean(scores))
        assert results[split]["std"] == pytest.approx(np.std(scores, ddof=1))
    best = max(results["seeds"], key=lambda seed: seed["validation"])
    assert results["best_seed"] == best["seed"]
    for seed in results["seeds"]:
        assert seed["validation"] == max(epoch["validation"] for epoch in seed["epochs"])


def test_predictions_are_the_dev_rows_in_order_and_the_result_opens_as_a_pipeline(compared, tasks):
    rows, results = predictions_of(compared[1]), results_of(compared[1])
    lines = (Path(tasks["sst2"][-1]) / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row["text"] for row in rows] == [line.split("\t")[0].strip() for line in lines]
    assert [row["label"] for row in rows] == [("negative", "positive")[int(line.split("\t")[1])] for line in lines]
    accuracy = accuracy_score([row["label"] for row in rows], [row["prediction"] for row in rows])
    assert accuracy == pytest.approx(results["seeds"][results["best_seed"] - 1]["test"])
    classify = pipeline("text-classification", model=str(compared[1]))
    assert classify.model.config.id2label == {0: "negative", 1: "positive"}
    answers = classify([row["text"] for row in rows])
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]
    assert [answer["score"] for answer in answers] == pytest.approx([float(r["probability"]) for r in rows], abs=1e-4)


def test_the_result_directory_verifies_and_has_nothing_else(compared):
    output = compared[1]
    assert not [finding for finding in verify(output) if finding.problem]
    files = {str(file.relative_to(output)) for file in output.rglob("*") if file.suffix != ".py" and file.is_file()}
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    records = {"results.json", "predictions.csv", "README.md", "training/loss.png", "training/card.json"}
    records |= {"training/confusion.png", "SHA256SUMS"}
    assert files == model | records
    assert {file.stat().st_mode & 0o777 for file in output.rglob("*") if file.is_file()} == {0o644}
    assert [entry.name for entry in output.parent.iterdir() if entry.name[0] == "." or "unfinished" in entry.name] == []
    results = Results.read(output / "results.json")
    assert results.data["counts"] == {"train": 360, "validation": 40, "dev": 60}
    assert results.settings["max_length"] == 32
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"{100 * results.test['mean']:.2f}" in card and "fine-tuned from `encoder`" in card


def test_rare_classes_are_weighted_chosen_by_and_reported(toy, tmp_path):
    """One row in eight is rare; its words are clear enough to be learned."""
    rows = [(f"{GOOD[i % 8]} {PLAIN[i % 24]}" if i % 8 else f"{BAD[i % 5]} {PLAIN[i % 24]}", i) for i in range(240)]
    lines = [f"{text} {PLAIN[i % 23]},{'common' if i % 8 else 'rare'}" for text, i in rows]
    (tmp_path / "rare.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    places = ["--model", toy / "encoder", "--task", tmp_path / "rare.csv", "--text", "text", "--label", "label"]
    options = ["--metric", "macro_f1", "--class_weights", "balanced", "--seeds", 1, "--output", tmp_path / "out"]
    assert run(*places, *FLAGS, *options) == 0
    results, rows = results_of(tmp_path / "out"), predictions_of(tmp_path / "out")
    assert results["metric"] == "macro_f1" and set(results["scores"]["test"]) == {"accuracy", "macro_f1"}
    found = results["by_class"]
    assert found["labels"] == ["common", "rare"]
    truth, predicted = ([row[name] for row in rows] for name in ("label", "prediction"))
    assert found["rows"] == [truth.count(label) for label in found["labels"]] and min(found["rows"]) > 0
    pairs = list(zip(truth, predicted, strict=True))
    assert found["confusion"] == [[pairs.count((a, b)) for b in found["labels"]] for a in found["labels"]]
    assert found["recall"][1] == found["confusion"][1][1] / found["rows"][1]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| rare |" in card and "![confusion](training/confusion.png)" in card
    assert not [finding for finding in verify(tmp_path / "out") if finding.problem]


def test_the_result_reads_texts_to_the_length_it_was_evaluated_on(toy, tmp_path, capsys):
    sst2(toy, tmp_path / "out", "--seeds", 1, "--epochs", 1, "--max_length", 4)
    assert "texts truncated to 4 tokens (--max_length): train " in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 4
    (tmp_path / "in.txt").write_text("good0 plain1 plain2 plain3 plain4\n")
    places = ["--model", tmp_path / "out", "--input", tmp_path / "in.txt", "--output", tmp_path / "answers.jsonl"]
    assert run(*places, command="predict") == 0
    assert "1 truncated to 4 tokens" in capsys.readouterr().out


def test_balanced_weights_are_those_of_scikit_learn(toy):
    split = EncodedSplit([Example(("x",), label) for label in (0, 0, 0, 1)], [], [])
    training = SimpleNamespace(kind=SingleLabel(("a", "b", "c")), train=split)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    weights = compute_class_weight("balanced", classes=np.array([0, 1]), y=np.array([0, 0, 0, 1]))
    expected = log_loss(labels, logits.softmax(-1), labels=[0, 1, 2], sample_weight=weights[labels], normalize=False)
    assert balanced_loss(training)({"logits": logits}, labels, 4).item() == pytest.approx(expected / 4, rel=1e-5)


def test_output_is_a_table_and_plain_progress_lines(compared):
    (printed, progress), output, report = compared
    lines = printed.splitlines()
    assert len({len(line) for line in lines[:5]}) == 1, "the table's lines are aligned"
    assert lines[1].startswith("majority class")
    assert lines[-2] == f"seed {results_of(output)['best_seed']}, the best on validation, is in {output}"
    line = re.compile(rf".*seed \d  epoch \d/{EPOCHS}  train loss \d\.\d{{4}}  validation \d+\.\d\d  \d+\.\d s")
    assert progress and all(line.fullmatch(text) for text in progress.splitlines()), progress
    text, results = report.read_text(encoding="utf-8"), results_of(output)
    assert all(f"| {row['name']} |" in text for row in results["comparison"]) and results["command"] in text


def test_a_long_epoch_shows_rate_and_time_left(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("finetune.trainer.SECONDS_BETWEEN_LINES", 0.0)  # every step is late
    sst2(toy, tmp_path / "out", "--seeds", 1, "--epochs", 2)
    line = re.compile(r"seed 1  epoch (\d\.\d\d)/2  [\d,]+ texts/s  (\d+:\d\d) left")
    shown = [found.groups() for text in capsys.readouterr().err.splitlines() if (found := line.fullmatch(text))]
    steps = -(-360 // 16)
    assert [float(epoch) for epoch, _ in shown] == pytest.approx([n / steps for n in range(1, 2 * steps + 1)], abs=0.01)
    assert shown[-1][1] == "0:00"


def flip_labels(folder: Path) -> Path:
    """The same data with every label of the dev set inverted."""
    dev = write_glue(folder) / "SST-2" / "dev.tsv"
    header, *lines = dev.read_text(encoding="utf-8").splitlines()
    dev.write_text("\n".join([header, *(line[:-1] + str(1 - int(line[-1])) for line in lines)]) + "\n")
    return folder


@pytest.mark.slow
def test_the_reported_split_chooses_nothing_and_a_seed_gives_the_same_bytes(toy, tmp_path):
    """With the labels of the dev set inverted, neither training nor a search may change by a bit."""
    flags = ["--seeds", 1, "--search", 2, "--epochs", 1]
    straight = sst2(toy, tmp_path / "a", *flags)
    inverted = sst2(toy, tmp_path / "b", *flags, glue=flip_labels(tmp_path / "flipped"))
    for name in ("validation", "best_seed", "search"):
        assert straight[name] == inverted[name]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert inverted["test"]["mean"] == pytest.approx(1 - straight["test"]["mean"]) and straight["test"]["std"] is None
    assert straight["data"]["sha256"] != inverted["data"]["sha256"]
    trials, chosen = straight["search"]["trials"], straight["search"]["chosen"]
    assert len(trials) == 2 and trials[0]["learning_rate"] == 5e-3, "the user's own settings come first"
    assert chosen == {key: value for key, value in max(trials, key=lambda t: t["validation"]).items() if key in chosen}
    assert {key: straight["settings"][key] for key in chosen} == chosen
    assert straight["validation"]["mean"] == straight["search"]["validation"]


def test_training_and_search_cannot_reach_a_reported_split():
    assert set(Training.__dataclass_fields__) == {"kind", "checkpoint", "settings", "train", "validation"}
    assert set(search.__annotations__) == {"training", "directory", "return"}


@dataclass(frozen=True)
class PrefersTheFirstEpoch(SingleLabel):
    """Scores each further epoch lower, except the reported split."""

    def scores(self, outputs, split):
        scores = super().scores(outputs, split)
        SCORED.append(len(split.examples))
        return {"accuracy": 1 / len(SCORED)} if len(split.examples) == 40 else scores


SCORED: list[int] = []


def test_the_best_epoch_is_published_and_patience_ends_the_training(toy, tmp_path, monkeypatch):
    task = replace(TASKS["sst2"], kind=PrefersTheFirstEpoch(("negative", "positive")))
    monkeypatch.setitem(TASKS, "sst2", task)
    SCORED.clear()
    results = sst2(toy, tmp_path / "one", "--seeds", 1, "--patience", 2)
    assert results["seeds"][0]["best_epoch"] == 1 and len(results["seeds"][0]["epochs"]) == 3
    assert SCORED == [40, 40, 40, 60], "validation after each epoch, the reported split once"
    SCORED.clear()
    first = sst2(toy, tmp_path / "two", "--seeds", 1)
    assert len(first["seeds"][0]["epochs"]) == EPOCHS
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def of_two_processes(tasks, tmp_path_factory) -> Path:
    """A result directory for each kind, all made by the same two processes."""
    folder = tmp_path_factory.mktemp("two")
    started = launch_several([[*flags, *SHORT, "--output", folder / name] for name, flags in tasks.items()])
    printed, error = started.communicate(timeout=400)
    assert started.returncode == 0, error
    assert printed.count("the best on validation, is in") == len(tasks), "one process prints"
    return folder


SHORT = ["--epochs", "1", "--batch_size", "8", "--seeds", "1", "--learning_rate", "1e-3", "--dropout", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sst2", "ner", "qa", "write", "choose"])
def test_two_processes_train_and_score_as_one(name, tasks, of_two_processes, tmp_path):
    assert run(*tasks[name], *SHORT, "--output", tmp_path / "out") == 0
    one, two = results_of(tmp_path / "out"), results_of(of_two_processes / name)
    assert one["processes"] == 1 and two["processes"] == 2 and one["data"]["counts"]["train"] % 8 == 0
    assert two["scores"] == one["scores"] and two["validation"] == one["validation"]
    loss_of_one, loss_of_two = (result["seeds"][0]["epochs"][0]["train_loss"] for result in (one, two))
    assert loss_of_two == pytest.approx(loss_of_one, rel=1e-4)
    rows = [
        [{key: value for key, value in row.items() if key != "probability"} for row in predictions_of(output)]
        for output in (tmp_path / "out", of_two_processes / name)
    ]
    assert rows[0] == rows[1] and len(rows[0]) >= 10
    weights = [load_file(output / "model.safetensors") for output in (tmp_path / "out", of_two_processes / name)]
    for key, expected in weights[0].items():
        if not key.endswith(("key.bias", "classifier.bias", "qa_outputs.bias")):  # only rounding moves them (softmax)
            torch.testing.assert_close(weights[1][key], expected, atol=2e-4, rtol=0, msg=lambda text, k=key: k + text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sst2", "ner", "qa", "write", "choose"])
def test_adapters_learn_and_leave_a_plain_model(name, tasks, tmp_path):
    flags = ["--lora", "4", "--epochs", "3", "--learning_rate", "1e-2", "--output", tmp_path / "out"]
    assert run(*tasks[name], *SHORT, *flags) == 0
    losses = [epoch["train_loss"] for epoch in results_of(tmp_path / "out")["seeds"][0]["epochs"]]
    assert losses[-1] < losses[0] and not list((tmp_path / "out").glob("adapter*"))
    before = load_file(Path(tasks[name][1]) / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert not [key for key in after if "lora" in key or "base_layer" in key]
    moved = {key for key in after if key in before and not torch.equal(after[key], before[key])}
    embeddings = {key for key in before if "embed" in key and "norm" not in key.lower()}
    assert embeddings and not embeddings & moved and any("q_proj" in key or "query" in key for key in moved), moved
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| lora | 4 |" in card and "It printed:" in card


@pytest.mark.slow
def test_a_fine_tuned_model_can_be_fine_tuned_again_also_after_another_head(toy, tmp_path):
    torch.manual_seed(0)
    save(BertForSequenceClassification(bert_config(num_labels=5)), wordpiece(), tmp_path / "encoder")
    sst2(tmp_path, tmp_path / "out", "--seeds", 1, "--epochs", 1, glue=toy / "glue")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.classifier.weight.shape == (2, 32)
