"""Protects the metrics: official scores through both ways of calling them, from disk and without a network."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from finetune.metrics import score
from finetune.metrics.glue.glue import TASKS

REPOSITORY = Path(__file__).parents[2]
METRICS = REPOSITORY / "finetune" / "metrics"
TEXTS = ["the cat sat on the mat .", "a dog barks at night !", "no man is an island", "running dogs run"]


@pytest.fixture(autouse=True, scope="module")
def _caches(tmp_path_factory):
    """Keep apart the caches of evaluate, which has copies of modules and of what it scores."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_METRICS_CACHE", folder / "metrics")
        patch.setattr("evaluate.config.HF_MODULES_CACHE", folder / "modules")
        yield


def random_labels(classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    return generator.integers(classes, size=200), generator.integers(classes, size=200)


def random_tags() -> tuple[list[list[str]], list[list[str]]]:
    """IOB2 with mistakes in it, among them an I- that begins an entity."""
    generator, tags = np.random.default_rng(0), ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    return tuple([list(generator.choice(tags, size=n)) for n in range(1, 40)] for _ in range(2))


def random_texts(count: int) -> list[str]:
    generator = np.random.default_rng(count)
    words = " ".join(TEXTS).split()
    return [" ".join(generator.choice(words, size=generator.integers(3, 12))) for _ in range(count)]


def rouge_of(predictions: list[str], references: list[str]) -> dict[str, float]:
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(right, written) for right, written in zip(references, predictions, strict=True)]
    return {kind: np.mean([score[kind].fmeasure for score in scores]) for kind in kinds}


BINARY, MANY = random_labels(2), random_labels(5)
NUMBERS = tuple(np.random.default_rng(7).normal(size=(2, 200)))
MULTILABEL = tuple(np.random.default_rng(8).integers(2, size=(2, 60, 4)))
WRITTEN, RIGHT = random_texts(30), random_texts(31)[:30]
ACCURACY = {"accuracy": accuracy_score(MANY[1], MANY[0])}
PARAPHRASE = {"accuracy": accuracy_score(BINARY[1], BINARY[0]), "f1": f1_score(BINARY[1], BINARY[0])}

CASES = {
    "classes": (
        MANY,
        ACCURACY
        | {
            "macro_f1": f1_score(MANY[1], MANY[0], average="macro"),
            "balanced_accuracy": np.mean([np.mean(MANY[0][MANY[1] == label] == label) for label in range(5)]),
            "matthews_correlation": matthews_corrcoef(MANY[1], MANY[0]),
        },
    ),
    "accuracy": (MANY, ACCURACY),
    "multilabel": (
        MULTILABEL,
        {
            "micro_f1": f1_score(MULTILABEL[1], MULTILABEL[0], average="micro"),
            "macro_f1": f1_score(MULTILABEL[1], MULTILABEL[0], average="macro"),
            "exact_match": (MULTILABEL[0] == MULTILABEL[1]).all(axis=1).mean(),
        },
    ),
    "glue/cola": (BINARY, {"matthews_correlation": matthews_corrcoef(BINARY[1], BINARY[0])}),
    "glue/mrpc": (BINARY, PARAPHRASE),
    "glue/qqp": (BINARY, PARAPHRASE),
    "glue/mnli_mismatched": (MANY, ACCURACY),
    "glue/stsb": (NUMBERS, {"pearson": pearsonr(*NUMBERS).statistic, "spearmanr": spearmanr(*NUMBERS).statistic}),
    "ner": (random_tags(), {"f1": entity_f1(*reversed(random_tags()))}),
    "rouge": ((WRITTEN, RIGHT), rouge_of(WRITTEN, RIGHT)),
    "bleu": ((WRITTEN, RIGHT), {"bleu": sacrebleu.corpus_bleu(WRITTEN, [RIGHT]).score / 100}),
    # One exact (case, article and full stop do not count), one of two words of three, one right silence, one wrong.
    "squad": (
        (["The Cat.", "big dog", "", "something"], [["cat", "dog"], ["the big black dog"], [], []]),
        {"exact_match": 2 / 4, "f1": (1 + 2 * 1.0 * (2 / 3) / (1 + 2 / 3) + 1 + 0) / 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_libraries_through_evaluate_too(name):
    (predictions, references), expected = CASES[name]
    scores = score(name, predictions, references)
    assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    module, *config_name = name.split("/")
    loaded = evaluate.load(str(METRICS / module), *config_name)
    assert loaded.compute(predictions=predictions, references=references) == pytest.approx(scores, abs=1e-12)


def test_every_metric_has_a_case_and_every_glue_task_a_metric():
    assert {name.split("/")[0] for name in CASES} == {path.stem for path in METRICS.glob("*/*.py")}
    tasks = "cola sst2 mrpc stsb qqp mnli mnli_matched mnli_mismatched qnli rte wnli ax"
    assert set(TASKS) == set(tasks.split())
    for task in TASKS:
        assert min(score(f"glue/{task}", BINARY[0], BINARY[0]).values()) == pytest.approx(1.0), task


@pytest.mark.filterwarnings("error")
def test_a_constant_prediction_has_no_correlation_and_no_f1():
    constant = np.zeros(200, dtype=int)
    assert score("glue/stsb", constant, NUMBERS[1]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert score("glue/stsb", NUMBERS[0], constant) == {"pearson": 0.0, "spearmanr": 0.0}
    assert score("glue/cola", constant, BINARY[1]) == {"matthews_correlation": 0.0}
    assert score("glue/mrpc", constant, BINARY[1])["f1"] == 0.0
    assert score("glue/stsb", [1.0], [2.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert score("ner", [["O", "O"]], [["B-PER", "O"]])["f1"] == 0.0
    # a diverged model stays visible
    assert np.isnan(score("glue/stsb", [float("nan"), 1.0, 2.0], [1.0, 2.0, 3.0])["pearson"])


def test_entities_count_whole_by_type_and_in_both_notations():
    right = [["B-PER", "I-PER", "O", "B-LOC"]]
    scores = score("ner", [["B-PER", "I-PER", "O", "B-PER"]], right)
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.75, "f1_PER": 2 / 3, "f1_LOC": 0.0}
    assert score("ner", [["B-PER", "O", "O", "B-LOC"]], right)["f1"] == 0.5, "half an entity is none"
    assert score("ner", [["I-PER", "I-PER", "O", "I-LOC"]], right)["f1"] == 1.0, "IOB1"


def test_evaluate_names_an_unknown_task():
    with pytest.raises(KeyError, match="no GLUE task 'nonsense'; expected sst2"):
        evaluate.load(str(METRICS / "glue"), "nonsense")


def test_a_fresh_process_without_network_loads_by_relative_path(tmp_path):
    code = "import evaluate; metric = evaluate.load('finetune/metrics/glue', 'mrpc')\n"
    code += "print(metric.compute(predictions=[1], references=[1]))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "{'accuracy': 1.0, 'f1': 1.0}", done.stderr
