"""Small models, tokenizers and data for the tests of fine-tuning, and how they run its command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

import hf_tiny_transformer as ours
from hf_tiny_transformer.cli import run as run_named
from hf_tiny_transformer.common.errors import run_command

REPOSITORY = Path(__file__).parents[2]
GOOD, BAD = [f"good{i}" for i in range(8)], [f"bad{i}" for i in range(8)]
PLAIN = [f"plain{i}" for i in range(24)]
PEOPLE, PLACES, VERBS = ["anna", "bert", "clara"], ["rome", "oslo"], ["sees", "and", "in", "goes", "to"]
PIECES = ["##a", "##b", "##s", ".", "-", "'"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENDINGS = ["ending0", "ending1", "ending2"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SIZE = {"vocab_size": 64, "max_position_embeddings": 32}
# Everything that draws random numbers: dropout, masking, and the order of batches of different lengths.
DRAWS = ["--learning_rate", "5e-3", "--batch_size", "16", "--dropout", "0.1", "--token_masking", "0.15"]
TIMES = {"seconds", "timings", "energy", "command", "resume", "output"}


def run(*words: Any, command: str = "finetune") -> int:
    """Run a command in this process and return its exit status."""
    return run_command(lambda: run_named(command, [str(word) for word in words]))


def launch(*words: Any, command: str = "finetune") -> subprocess.Popen:
    """Start a command in a process of its own."""
    return _start("-m", "hf_tiny_transformer", command, *map(str, words))


def launch_several(commands: list[list[Any]]) -> subprocess.Popen:
    """Start two processes, by gloo, that run the commands one after the other."""
    config = str(REPOSITORY / "pretrain" / "launch" / "cpu-2.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", config]
    return _start(*launcher, __file__, json.dumps(commands, default=str))


def _start(*words: str) -> subprocess.Popen:
    variables = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env=os.environ | variables | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def predictions_of(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def without_times(value: Any) -> Any:
    """results.json without what differs between two equal runs: times, command, and the flag itself."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def assert_same_run(one: Path, other: Path) -> None:
    assert without_times(results_of(one)) == without_times(results_of(other))
    for name in ("model.safetensors", "config.json", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())


def wordpiece(words: list[str] = GOOD + BAD + PLAIN, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(SPECIAL + words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def names_tokenizer() -> PreTrainedTokenizerFast:
    return wordpiece(PEOPLE + PLACES + VERBS + PIECES)


def bert_config(**changes: Any) -> BertConfig:
    return BertConfig(**SIZE | SHAPE | {"intermediate_size": 64} | changes)


def encoder_config(**changes: Any) -> ours.TinyTransformerEncoderConfig:
    return ours.TinyTransformerEncoderConfig(**SIZE | SHAPE | {"pad_token_id": 0} | changes)


def seq2seq() -> PreTrainedModel:
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    config = ours.TinyTransformerSeq2SeqConfig(**SIZE | SHAPE | special, initializer_range=0.1)
    return ours.TinyTransformerSeq2SeqForConditionalGeneration(config)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentiments(count: int, seed: int) -> list[tuple[str, int]]:
    """Texts of unequal length: two words of the label's kind and one of the other among neutral ones."""
    draw, rows = np.random.default_rng(seed), []
    for _ in range(count):
        label = int(draw.integers(2))
        own, other = (GOOD, BAD) if label else (BAD, GOOD)
        words = [*draw.choice(own, 2), *draw.choice(other, 1), *draw.choice(PLAIN, draw.integers(1, 9))]
        rows.append((" ".join(draw.permutation(words)), label))
    return rows


def write_glue(folder: Path, rows: int = 400) -> Path:
    """SST-2's layout."""
    (folder / "SST-2").mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", rows), ("dev", 60))):
        lines = ["sentence\tlabel", *(f"{text} \t{label}" for text, label in sentiments(count, seed))]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def sentences(count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """A person meets persons in a place of one or two words."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        place = list(draw.choice(PLACES, draw.integers(1, 3)))
        words = [draw.choice(PEOPLE), "sees", draw.choice(PEOPLE), "and", draw.choice(PEOPLE), "in", *place]
        found.append((words, ["B-PER", "O", "B-PER", "O", "B-PER", "O", "B-LOC", *["I-LOC"] * (len(place) - 1)]))
    return found


def write_conll(folder: Path, train: int = 80) -> Path:
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate({"train": train, "dev": 11, "test": 13}.items()):
        text = "\n\n".join("\n".join(f"{w} {t}" for w, t in zip(*one, strict=True)) for one in sentences(count, seed))
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


def squad(count: int, seed: int, *, words: int = 12, impossible: bool = False) -> dict[str, Any]:
    """Texts of one length with one good word, which is the answer; with `impossible`, every third has none."""
    draw, paragraphs = np.random.default_rng(seed), []
    for i in range(count):
        chosen, at = list(draw.choice(PLAIN + BAD, words)), int(draw.integers(words))
        none = impossible and i % 3 == 0
        chosen[at] = chosen[at] if none else draw.choice(GOOD)
        answers = [] if none else [{"text": chosen[at], "answer_start": len(" ".join([*chosen[:at], ""]))}]
        question = {"id": f"q{i}", "question": "plain1", "answers": answers, "is_impossible": none}
        paragraphs.append({"context": " ".join(chosen), "qas": [question]})
    return {"data": [{"paragraphs": paragraphs[i : i + 4]} for i in range(0, count, 4)]}


def write_squad(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate({"train": 80, "dev": 8, "test": 12}.items()):
        (folder / f"{name}.json").write_text(json.dumps(squad(count, seed, **options)))
    return folder


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """.csv or .jsonl."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return path


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """In SWAG's columns: the right ending holds a good word, the others a bad one; lengths differ."""
    draw, rows = np.random.default_rng(seed), []
    for i in range(count):
        label, endings = int(draw.integers(3)), {}
        for c, name in enumerate(ENDINGS):
            words = [*draw.choice(PLAIN, draw.integers(1, 7)), draw.choice(GOOD if c == label else BAD)]
            endings[name] = " ".join(draw.permutation(words))
        rows.append({"sent1": f"plain{i % 24} plain{i // 24}", "sent2": "plain2", **endings, "label": label})
    return rows


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Good words become the bad ones of the same number, plain ones are left out."""
    draw, found = np.random.default_rng(seed), []
    for i in range(count):
        words = draw.choice(GOOD, draw.integers(4, 6))
        text = " ".join(f"{word} plain{draw.integers(24)}" for word in words)
        found.append({"source": f"{text} plain{i % 24}", "summary": " ".join(w.replace("good", "bad") for w in words)})
    return found


def make_tasks(folder: Path) -> dict[str, list[str]]:
    """Models and data of every kind; the flags of a run of each, without --output. The first model is a stock one."""
    torch.manual_seed(0)
    encoder = ours.TinyTransformerEncoderForMaskedLM
    models = {
        "stock": (BertForMaskedLM(bert_config()), wordpiece()),
        "encoder": (encoder(encoder_config()), wordpiece()),
        "names": (encoder(encoder_config()), names_tokenizer()),
        "writer": (seq2seq(), wordpiece()),
    }
    for name, (model, tokenizer) in models.items():
        save(model, tokenizer, folder / name)
    write_glue(folder / "glue")
    write_conll(folder / "ner")
    write_squad(folder / "qa")
    write_table(folder / "pairs.csv", pairs(100))
    write_table(folder / "choices.csv", questions(100))
    choices = ["--choices", *ENDINGS, "--text", "sent1", "--pair", "sent2", "--label", "label"]
    texts = ["--text", "source", "--target", "summary", "--max_length", "16"]
    commands = {
        "sst2": ["--model", folder / "stock", "--task", "sst2", "--data", folder / "glue"],
        "ner": ["--model", folder / "names", "--task", "ner", "--data", folder / "ner"],
        "qa": ["--model", folder / "encoder", "--task", "qa", "--data", folder / "qa", "--max_length", "32"],
        "write": ["--model", folder / "writer", "--task", folder / "pairs.csv", *texts],
        "choose": ["--model", folder / "encoder", "--task", folder / "choices.csv", *choices],
    }
    return {name: [str(word) for word in words] for name, words in commands.items()}


if __name__ == "__main__":
    sys.exit(max(run(*words) for words in json.loads(sys.argv[1])))
