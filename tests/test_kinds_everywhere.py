"""Protects that every kind of task trains in two processes to the weights of one, and by adapters alone (--lora)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import REPOSITORY, bert_config, predictions_of, results_of, toy_tokenizer, write_toy_glue
from test_multiple_choice import COLUMNS, ENDINGS, questions, write
from test_spans import WORDS
from test_tagging import sentences, wordpiece, write_conll
from test_text_to_text import build, pairs, write_csv
from transformers import BertForMaskedLM, T5Config, T5ForConditionalGeneration

import hf_tiny_transformer as ours
from finetune import lora
from finetune.cli import main

FLAGS = ["--epochs", "1", "--batch_size", "8", "--seeds", "1", "--learning_rate", "1e-3", "--dropout", "0"]
COUNT = 80  # rows to train on: whole batches, for a short one is filled up where it can't be divided
SEVERAL = """import json, sys
from finetune.__main__ import main
sys.exit(max(map(main, json.loads(sys.argv[1]))))
"""


def squad(count: int, seed: int) -> dict:
    """Texts of one length: in a model for questions padding takes part in the softmax over positions, in each process
    its own."""
    draw = torch.Generator().manual_seed(seed)
    paragraphs = []
    for _ in range(count):
        words = [WORDS[int(i)] for i in torch.randint(len(WORDS), (12,), generator=draw)]
        at = int(torch.randint(12, (1,), generator=draw))
        words[at] = f"good{int(torch.randint(8, (1,), generator=draw))}"
        answers = [{"text": words[at], "answer_start": len(" ".join([*words[:at], ""]))}]
        paragraphs.append({"context": " ".join(words), "qas": [{"question": "plain1", "answers": answers}]})
    return {"data": [{"paragraphs": paragraphs[i : i + 4]} for i in range(0, count, 4)]}


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> dict[str, list[str]]:
    """The flags of a run of each kind, but for --output; the first has a stock model."""
    folder = tmp_path_factory.mktemp("tasks")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = ours.TinyTransformerEncoderConfig(vocab_size=64, max_position_embeddings=32, **shape)
    models = {
        "stock": (BertForMaskedLM(bert_config()), toy_tokenizer()),
        "encoder": (ours.TinyTransformerEncoderForMaskedLM(config), toy_tokenizer()),
        "names": (ours.TinyTransformerEncoderForMaskedLM(config), wordpiece()),
        "writer": (build("ours"), toy_tokenizer()),
    }
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_toy_glue(folder / "glue", 89)  # nine of them are held out
    (folder / "ner").mkdir()
    for seed, (name, count) in enumerate({"train": COUNT, "dev": 11, "test": 13}.items()):
        write_conll(folder / "ner" / f"{name}.txt", sentences(count, seed))
    (folder / "qa").mkdir()
    for seed, (name, count) in enumerate({"train": COUNT, "dev": 8, "test": 12}.items()):
        (folder / "qa" / f"{name}.json").write_text(json.dumps(squad(count, seed)))
    write_csv(folder / "pairs.csv", pairs(100))
    write(folder / "choices.csv", questions(100))
    commands = {
        "sst2": ["--model", folder / "stock", "--task", "sst2", "--data", folder / "glue"],
        "ner": ["--model", folder / "names", "--task", "ner", "--data", folder / "ner"],
        "qa": ["--model", folder / "encoder", "--task", "qa", "--data", folder / "qa", "--max_length", "32"],
        "write": ["--model", folder / "writer", "--task", folder / "pairs.csv", "--text", "source"],
        "choose": ["--model", folder / "encoder", "--task", folder / "choices.csv", "--choices", *ENDINGS, *COLUMNS],
    }
    commands["write"] += ["--target", "summary", "--max_length", "16"]
    return {name: [*map(str, words), *FLAGS] for name, words in commands.items()}


@pytest.fixture(scope="session")
def of_two_processes(tasks, tmp_path_factory) -> Path:
    """A result directory for each kind, all made by the same two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "several.py").write_text(SEVERAL)
    commands = json.dumps([[*flags, "--output", str(folder / name)] for name, flags in tasks.items()])
    launch = ["--main_process_port", "0", "--config_file", REPOSITORY / "pretrain" / "launch" / "cpu-2.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, launch), str(folder / "several.py"), commands],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["sst2", "ner", "qa", "write", "choose"])
def test_two_processes_train_and_score_as_one(name, tasks, of_two_processes, tmp_path):
    assert main([*tasks[name], "--output", str(tmp_path / "out")]) == 0
    one, two = results_of(tmp_path / "out"), results_of(of_two_processes / name)
    assert one["processes"] == 1 and two["processes"] == 2 and one["data"]["counts"]["train"] == COUNT
    assert two["scores"] == one["scores"] and two["validation"] == one["validation"]
    loss_of_one, loss_of_two = (run["seeds"][0]["epochs"][0]["train_loss"] for run in (one, two))
    assert loss_of_two == pytest.approx(loss_of_one, rel=1e-4)
    known = ["probability"]  # to fewer digits
    rows = [
        [{key: value for key, value in row.items() if key not in known} for row in predictions_of(output)]
        for output in (tmp_path / "out", of_two_processes / name)
    ]
    assert rows[0] == rows[1] and len(rows[0]) >= 10
    weights = [load_file(output / "model.safetensors") for output in (tmp_path / "out", of_two_processes / name)]
    for key, expected in weights[0].items():
        if not key.endswith(
            ("key.bias", "classifier.bias", "qa_outputs.bias")
        ):  # the softmax's sums: only rounding moves them
            torch.testing.assert_close(weights[1][key], expected, atol=2e-4, rtol=0, msg=lambda text, k=key: k + text)


@pytest.mark.parametrize("name", ["ner", "qa", "write", "choose"])
def test_adapters_learn_and_leave_a_plain_model(name, tasks, tmp_path):
    flags = ["--lora", "4", "--epochs", "3", "--learning_rate", "1e-2", "--output", str(tmp_path / "out")]
    assert main([*tasks[name], *flags]) == 0
    losses = [epoch["train_loss"] for epoch in results_of(tmp_path / "out")["seeds"][0]["epochs"]]
    assert losses[-1] < 0.9 * losses[0]
    assert not list((tmp_path / "out").glob("adapter*"))
    before = load_file(Path(tasks[name][1]) / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert not [key for key in after if "lora" in key]
    moved = {key for key in after if key in before and not torch.equal(after[key], before[key])}
    embeddings = {key for key in before if "embed" in key and "norm" not in key}
    assert embeddings and not embeddings & moved and any("q_proj" in key for key in moved), moved


def test_adapters_of_a_model_that_is_its_own_trunk():
    """T5: the trunk has no prefix, and the head is the embeddings' transpose, which stays as it is."""
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, **shape))
    adapted = lora.with_adapters(model, 4)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * (6 + 10) and all("lora_" in name for name in trained)
    assert not any("lm_head" in name or "shared" in name for name in trained)
