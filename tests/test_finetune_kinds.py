"""Protects what the kinds of task say: metrics, targets and predictions, the order of rows, LoRA, search, processes."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_finetune import (
    BAD,
    GOOD,
    REPOSITORY,
    TOY_FLAGS,
    predictions_of,
    run_in_process,
    toy,
    toy_training,
    write_toy_glue,
)
from transformers import AutoModelForSequenceClassification, pipeline

from finetune import lora
from finetune.checkpoint import build_model, open_checkpoint
from finetune.examples import Example
from finetune.kinds.base import EncodedSplit
from finetune.kinds.sequence import MultiLabel, Regression, SingleLabel
from finetune.metrics import score
from finetune.order import LengthGroupedOrder
from finetune.resume import Unfinished
from finetune.search import search
from finetune.tasks import TASKS
from finetune.train import MaskedTexts, _Trainer, _training_arguments, model_outputs, train_seed

__all__ = ["toy"]  # the fixture

LABELS = ("a", "b", "c")
KINDS = {
    "single": (SingleLabel(LABELS), 2),
    "several": (MultiLabel(LABELS), (0, 2)),
    "number": (Regression(), 2.5),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_reports_the_scores_of_its_metric(task):
    """With an answer and its reference the same everywhere, each of them is there, and perfect."""
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


def test_targets_decode_and_columns():
    outputs = np.array([[2.0, -1.0, 1.0], [-3.0, -2.0, -1.0]])
    single, several, number = (kind for kind, _ in KINDS.values())
    of_one = EncodedSplit([Example(("x",), 0), Example(("y",), 1)], [])
    assert single.decode(outputs, of_one).tolist() == [0, 2]
    assert single.scores(outputs, of_one) == {"accuracy": 0.5}
    columns = single.prediction_columns(outputs, of_one)
    assert columns["label"] == ["a", "b"] and columns["prediction"] == ["a", "c"]
    softmax = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert [float(p) for p in columns["probability"]] == pytest.approx(softmax.max(axis=1).tolist(), abs=1e-6)

    of_several = EncodedSplit([Example(("x",), (0, 2)), Example(("y",), ())], [])
    assert several.target((0, 2)) == [1.0, 0.0, 1.0]
    assert several.decode(outputs, of_several).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert several.scores(outputs, of_several)["exact_match"] == 1.0
    columns = several.prediction_columns(outputs, of_several)
    assert columns["label"] == columns["prediction"] == ["a|c", ""]
    assert float(columns["p(b)"][0]) == pytest.approx(1 / (1 + np.e), abs=1e-6)

    of_number = EncodedSplit([Example(("x",), 1.0), Example(("y",), 3.0), Example(("z",), 2.0)], [])
    guesses = np.array([[10.0], [30.0], [20.0]])
    assert number.scores(guesses, of_number) == pytest.approx({"pearson": 1.0, "spearmanr": 1.0})
    assert number.constant(number.references(of_number.examples)) == 2.0


@pytest.mark.parametrize("name", KINDS)
def test_outputs_are_the_models_row_by_row(name, toy):
    """Pairs of mixed lengths, sorted for speed inside, come back in the order given; padding changes nothing."""
    kind, label = KINDS[name]
    _, _, settings, _ = toy_training(toy, "--batch_size", "2")
    checkpoint = open_checkpoint(str(toy / "model"), kind, dropout=None, max_length=None)
    words = [*GOOD, *BAD]
    texts = [(" ".join(words[: 1 + 5 * i % 9]), " ".join(words[i:][: 1 + 3 * i % 7])) for i in range(11)]
    split = kind.encode_split([Example(pair, label) for pair in texts], checkpoint)
    model = build_model(checkpoint, 1, from_scratch=False).eval()
    assert model.config.problem_type == kind.config_fields()["problem_type"]
    outputs = model_outputs(kind, checkpoint, settings, model, split)
    with torch.no_grad():
        for row, output in zip(split.rows, outputs, strict=True):
            alone = model(**{key: torch.tensor([value]) for key, value in row.items() if key != "labels"}).logits[0]
            assert output == pytest.approx(alone.numpy(), abs=1e-5)
            labels = torch.tensor([row["labels"]])
            assert torch.isfinite(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss)


def test_every_process_trains_on_the_rows_in_the_same_order(toy, tmp_path):
    """Whatever it has drawn from the global generator; each epoch holds every row once, in an order of its own."""
    kind, checkpoint, settings, data = toy_training(toy)
    model = build_model(checkpoint, 1, from_scratch=False)
    orders = []
    for drawn in (0, 17):
        torch.manual_seed(drawn)
        arguments = _training_arguments(settings, 1, str(tmp_path))
        rows = MaskedTexts(data.train.rows, checkpoint.tokenizer, 0.1)
        trainer = _Trainer(kind, data.validation, checkpoint, model=model, args=arguments, train_dataset=rows)
        sampler = trainer._get_train_sampler()
        orders.append([list(sampler), (torch.rand(drawn), list(sampler))[1]])
    assert orders[0] == orders[1] and orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == sorted(orders[0][1]) == list(range(len(data.train.rows)))


def test_lora_saves_a_plain_model_in_which_the_embeddings_did_not_move(toy, tmp_path):
    run_in_process(toy, tmp_path / "out", "--seeds", "1", "--lora", "4")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    start = AutoModelForSequenceClassification.from_pretrained(toy / "model")
    names = list(start.state_dict())
    assert list(saved.state_dict()) == names and not list((tmp_path / "out").glob("adapter*"))
    moved = {name for name in names if not torch.equal(saved.state_dict()[name], start.state_dict()[name])}
    assert "bert.encoder.layer.0.attention.self.query.weight" in moved
    assert "bert.embeddings.word_embeddings.weight" not in moved
    assert "bert.encoder.layer.0.attention.self.query.bias" not in moved
    rows = predictions_of(tmp_path / "out")[:20]
    answers = pipeline("text-classification", model=str(tmp_path / "out"))([row["text"] for row in rows])
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]


def test_lora_trains_adapters_and_head_alone_and_merges_to_the_same_function(toy):
    _, checkpoint, _, data = toy_training(toy)
    adapted = lora.with_adapters(build_model(checkpoint, 1, from_scratch=False), 4).eval()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".classifier." in name or ".pooler." in name for name in trained)
    head = [name for name in trained if "lora_" not in name]
    assert len(head) == 4 and len(trained) == 4 + 2 * 6, "weight and bias of both; query, key, value and three dense"
    for parameter in (p for name, p in adapted.named_parameters() if name in trained):
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([data.train.rows[0]["input_ids"]])
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        torch.testing.assert_close(lora.merged(adapted)(input_ids=ids).logits, before)


def test_search_chooses_without_the_reported_split(toy, tmp_path):
    """With every label of the dev set turned round the same trials are made and the same one is chosen."""
    flipped = write_toy_glue(tmp_path / "flipped")
    dev = flipped / "SST-2" / "dev.tsv"
    header, *lines = dev.read_text(encoding="utf-8").splitlines()
    dev.write_text("\n".join([header, *(line[:-1] + str(1 - int(line[-1])) for line in lines)]) + "\n")
    flags = ["--seeds", "1", "--search", "3", "--epochs", "1"]
    straight = run_in_process(toy, tmp_path / "a", *flags)
    turned = run_in_process(toy, tmp_path / "b", *flags, glue=flipped)
    assert straight["search"] == turned["search"]
    assert straight["test"]["mean"] == pytest.approx(1 - turned["test"]["mean"])
    trials, chosen = straight["search"]["trials"], straight["search"]["chosen"]
    assert len(trials) == 3 and trials[0]["learning_rate"] == float(TOY_FLAGS[1]), "the user's own settings come first"
    assert chosen == {key: value for key, value in max(trials, key=lambda t: t["validation"]).items() if key in chosen}
    assert {key: straight["settings"][key] for key in chosen} == chosen
    assert straight["validation"]["mean"] == straight["search"]["validation"]


def test_search_gets_no_reported_split_at_all(toy, tmp_path, monkeypatch):
    kind, checkpoint, settings, data = toy_training(toy, "--search", "1")
    seen = []

    def spy(kind, checkpoint, settings, data, seed, *, title, unfinished):
        seen.append(data.reported)
        return dataclasses.replace(train_seed(kind, checkpoint, settings, data, seed, title=title), validation=0.5)

    monkeypatch.setattr("finetune.search.train_seed", spy)
    unfinished = Unfinished(tmp_path / "out", {})
    search(kind, checkpoint, dataclasses.replace(settings, epochs=1), data.train, data.validation, unfinished)
    assert seen == [{}]


def test_two_processes_train_together_and_one_speaks(toy, tmp_path):
    flags = ["--model", toy / "model", "--task", "sst2", "--data", toy / "glue", "--output", tmp_path / "out"]
    launch = ["--config_file", str(REPOSITORY / "pretrain" / "launch" / "cpu-2.yaml"), "-m", "finetune"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, *map(str, flags), *TOY_FLAGS, "--seeds", "1"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the best on validation, is in") == 1
    assert [line.split("  ")[1] for line in done.stderr.splitlines() if line.startswith("seed 1")] == [
        f"epoch {i}/6" for i in range(1, 7)
    ]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["processes"] == 2 and results["test"]["mean"] > 0.6
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 101
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_batches_hold_like_lengths_and_come_in_no_order_of_length():
    """Each epoch every row once; hardly any padding; long and short batches by turns; a short batch is the last."""
    lengths = np.random.default_rng(0).integers(3, 60, size=1000).tolist()
    order = LengthGroupedOrder(lengths, batch_size=16, seed=1)
    first, second = list(order), list(order)
    assert sorted(first) == sorted(second) == list(range(1000)) and first != second and len(order) == 1000
    assert first == list(LengthGroupedOrder(lengths, batch_size=16, seed=1))
    batches = np.split(np.array(lengths)[first], range(16, 1000, 16))
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert padded < 1.1 * sum(lengths)
    longest = [batch.max() for batch in batches[:-1]]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3
