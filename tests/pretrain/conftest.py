"""Trained runs that several files of tests look at and copy, never change."""

import pytest
from pretraining import SHARED, pretrain


@pytest.fixture(scope="session")
def trained(corpus_file, tmp_path_factory):
    """A run of 12 steps with a checkpoint every four."""
    return pretrain(corpus_file, tmp_path_factory.mktemp("runs") / "run", "--max-steps=12", "--save-steps=4")


@pytest.fixture(scope="session")
def alone(corpus_file, tmp_path_factory):
    """A run of 20 steps on one process, to compare with runs on several."""
    return pretrain(corpus_file, tmp_path_factory.mktemp("runs") / "alone", "--max-steps=20", *SHARED)
