"""A tiny model with its card, as the commands that train models leave it."""

import json
import shutil
from pathlib import Path

import pytest
from cards import RESULTS, make_card
from families import language_model, tiny_tokenizer

from hf_tiny_transformer.publish import verify
from hf_tiny_transformer.publish.card import write_card


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A model directory that is ready to be published."""
    directory = tmp_path_factory.mktemp("published") / "tiny"
    language_model("Encoder").save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    (directory / "training").mkdir()
    (directory / "training" / "metrics.jsonl").write_text('{"step": 1}\n')
    (directory / "results.json").write_text(json.dumps(RESULTS))
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "state.pt").write_bytes(b"kept here")
    (directory / "predictions.csv").write_text("texts of others\n")
    write_card(directory, make_card())
    return directory


@pytest.fixture
def copy(published, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "copy")


@pytest.fixture
def opened(monkeypatch):
    """What runs in processes of its own is taken to succeed."""
    monkeypatch.setattr(verify, "run_apart", lambda *_: (True, ""))
