"""Sentiment in a frozen model: logistic regression on its mean-pooled features, compared with TF-IDF.

    python -m benchmarks.probe runs/sample/pretrained runs/sample/pretrained/checkpoints/step-0

The figure is the accuracy over three folds of the sample's training and validation sentences. The test sentences are
not read.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_tiny_transformer.attend.read import load
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.sample import load_sample
from hf_tiny_transformer.layers import mean_pool

from .command import parse

FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)
BATCH = 64


@dataclass(frozen=True)
class ProbeSettings:
    """What to probe.

    Args:
        models: Model directories.
    """

    models: list[str]


def main() -> None:
    settings = parse("probe", __doc__, ProbeSettings, positional=["models"])
    quieten_libraries()
    models = {name: load(name) for name in settings.models}
    sample = load_sample()
    examples = sample.train + sample.validation
    texts, labels = [e.text for e in examples], np.array([e.label for e in examples])
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=4, max_iter=1000)
    )
    show("TF-IDF", cross_val_score(words, texts, labels, cv=FOLDS))
    for name, (model, tokenizer) in models.items():
        features = pooled_features(model, tokenizer, texts)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        show(name, cross_val_score(probe, features, labels, cv=FOLDS))


@torch.no_grad()
def pooled_features(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """Return the mean of each text's last hidden states, (texts, hidden_size)."""
    pooled = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        pooled.append(mean_pool(model(**inputs).last_hidden_state, inputs["attention_mask"]).numpy())
    return np.concatenate(pooled)


def show(name: str, scores: np.ndarray) -> None:
    """Print mean and standard deviation over the folds."""
    print(f"{name}: {100 * scores.mean():.2f} ± {100 * scores.std():.2f} %")


if __name__ == "__main__":
    sys.exit(run_command(main))
