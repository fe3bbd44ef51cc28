"""What a frozen model knows of sentiment: logistic regression on its mean-pooled states, and TF-IDF beside it.

    python -m benchmarks.probe runs/sample/pretrained runs/sample/pretrained/checkpoints/step-0

Accuracy over three folds of the sample's training and validation sentences; the test sentences are not read.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_tiny_transformer  # noqa: F401  (registers the families)
from hf_tiny_transformer.attend.read import load
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.sample import load_sample
from hf_tiny_transformer.layers import mean_pool

FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)
BATCH = 64


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="model directories")
    names = parser.parse_args().models
    quieten_libraries()
    models = {name: load(name) for name in names}
    sample = load_sample()
    examples = sample.train + sample.validation
    texts, labels = [e.text for e in examples], np.array([e.label for e in examples])
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=4, max_iter=1000)
    )
    show("TF-IDF", cross_val_score(words, texts, labels, cv=FOLDS))
    for name, (model, tokenizer) in models.items():
        states = pooled_states(model, tokenizer, texts)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        show(name, cross_val_score(probe, states, labels, cv=FOLDS))


@torch.no_grad()
def pooled_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """(texts, hidden_size): means over each text's tokens of the last states."""
    pooled = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        pooled.append(mean_pool(model(**inputs).last_hidden_state, inputs["attention_mask"]).numpy())
    return np.concatenate(pooled)


def show(name: str, scores: np.ndarray) -> None:
    """One line."""
    print(f"{name}: {100 * scores.mean():.2f} ± {100 * scores.std():.2f} %")


if __name__ == "__main__":
    sys.exit(run_command(main))
