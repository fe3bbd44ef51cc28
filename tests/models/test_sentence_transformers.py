"""Protects the use in sentence-transformers: a checkpoint opens with mean pooling, is trained and saved."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from families import tiny_config, tiny_tokenizer
from transformers import AutoModel

import hf_tiny_transformer as ours

sentence_transformers = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

TEXTS = ["word7 word9 word11", "word8", "word20 word21 word22 word23 word24"]
PAIRS = [(f"word{i} word{i + 1}", f"word{i + 1} word{i} word5") for i in range(6, 50)]


@pytest.fixture(params=["Encoder", "Bert"])
def checkpoint(request, tmp_path: Path) -> Path:
    """A masked language model with a tokenizer."""
    model_class = getattr(ours, f"TinyTransformer{request.param}ForMaskedLM")
    model_class(tiny_config(request.param)).save_pretrained(tmp_path / "checkpoint")
    tiny_tokenizer(model_max_length=32).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def similarity_of_pairs(model) -> float:
    first, second = (model.encode(list(side), convert_to_tensor=True) for side in zip(*PAIRS, strict=True))
    return (model.similarity(first, second).diagonal().mean() - model.similarity(first, second).mean()).item()


def test_open_train_save(checkpoint: Path, tmp_path: Path):
    """Padding changes nothing, training increases the similarity of pairs, and the code is saved with the model."""
    model = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
    trunk = AutoModel.from_pretrained(checkpoint).eval()
    tokenizer = tiny_tokenizer()
    embeddings = model.encode(TEXTS, convert_to_tensor=True)
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        with torch.no_grad():
            expected = trunk(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)[0]
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)

    before = similarity_of_pairs(model)
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            max_steps=20,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list([{"anchor": first, "positive": second} for first, second in PAIRS]),
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    after = similarity_of_pairs(model)
    assert after > before + 0.05

    model.save_pretrained(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert similarity_of_pairs(again) == pytest.approx(after, abs=1e-5)
    assert list((tmp_path / "saved").rglob("configuration_base.py"))
