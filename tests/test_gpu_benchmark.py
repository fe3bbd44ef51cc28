"""Protects the benchmark for a GPU, which is rented by the minute: each part runs on a CPU, bad input fails early."""

import json
import re
import sys

import pytest

from benchmarks import gpu, gpu_check
from hf_tiny_transformer.common.errors import run_command

WORDS = ["the film", "a director", "this story", "the ending"]


def benchmark(monkeypatch, *flags):
    """Return the exit status of `python -m benchmarks.gpu`; its processes compute with one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, flags)])
    return run_command(gpu.main)


def part(monkeypatch, name, output, corpus, *flags):
    """Rehearse a part, and return what it added to results.md."""
    file = output / "results.md"
    before = file.read_text() if file.is_file() else ""
    status = benchmark(monkeypatch, "--part", name, "--small", "--output", output, "--corpus", corpus, *flags)
    text = file.read_text().removeprefix(before)
    logs = "".join(log.read_text()[-2000:] for log in (output / "logs").iterdir())
    assert status == 0, text + logs
    return text


@pytest.mark.slow
def test_check_compares_repeats_resumes_and_measures(corpus_file, tmp_path, monkeypatch):
    text = part(monkeypatch, "check", tmp_path, corpus_file)
    assert text.startswith("\n## check: CPU, torch ")
    rows = dict.fromkeys(re.findall(r"\| encoder \| (.*) \| ([\d.]+) \| ([\d.e+-]+) \| (\S+) \|", text))
    variants = ["cpu, fp32, sdpa, packed", "cpu, fp32, sdpa, padded", "cpu, fp32, eager, packed"]
    assert [row[0] for row in rows] == variants
    assert len({loss for _, loss, _, _ in rows}) == 1
    assert all(float(distance) <= float(limit) == 1e-3 for *_, distance, limit in rows)
    assert "weights after 20 steps: repetition bit-identical: True; resumed at 10: True" in text
    rates = dict(re.findall(r"\| 2x128 \| 4 x 32 \| (\w+) \| ([\d,]+) \|", text))
    assert rates.keys() == {"stock", "ours"} and all(float(rate.replace(",", "")) > 0 for rate in rates.values())


@pytest.mark.slow
def test_train_survives_sigterm_and_tasks_use_its_model(corpus_file, documents, tmp_path, monkeypatch):
    """SIGTERM arrives after the first step; GLUE and BLiMP are folders of a few rows."""
    text = part(monkeypatch, "train", tmp_path, corpus_file)
    assert re.findall(r"- pretraining: exit status (\d+)", text) == ["143", "0"]
    assert "SIGTERM: saved at step " in text and "validation loss " in text
    lines = [json.loads(line) for line in (tmp_path / "pretrained/training/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 301))
    assert lines[-1]["validation_loss"] < lines[29]["validation_loss"]

    glue, blimp = tmp_path / "GLUE", tmp_path / "BLIMP"
    (glue / "WNLI").mkdir(parents=True)
    blimp.mkdir()
    table = ["index\tsentence1\tsentence2\tlabel"]
    table += [f"{i}\t{documents[i].split('.')[1]}\t{WORDS[i % 4]} is good\t{i % 2}" for i in range(24)]
    for split in ("train", "dev"):
        (glue / "WNLI" / f"{split}.tsv").write_text("\n".join(table) + "\n")
    pairs = [{"sentence_good": f"{w} is good", "sentence_bad": f"{w} good is"} for w in WORDS]
    described = [json.dumps(pair | {"field": "syntax", "linguistics_term": "order"}) for pair in pairs]
    (blimp / "order.jsonl").write_text("\n".join(described) + "\n")
    text = part(monkeypatch, "tasks", tmp_path, corpus_file, "--glue", glue, "--blimp", blimp)
    assert re.findall(r"- (\w+): exit status 0", text) == ["wnli", "blimp"]
    assert 0 <= json.loads((tmp_path / "wnli/results.json").read_text())["scores"]["dev"]["accuracy"]["mean"] <= 1
    assert "order" in (tmp_path / "blimp/report.md").read_text()


def test_bad_input_is_one_line_and_writes_nothing(corpus_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    for flags, words in (
        (["--part", "tasks"], "has no trained model; run --part train first"),
        (["--part", "everything"], "must be one of"),
        (["--part", "train", "--corpus", tmp_path / "absent.txt"], "absent.txt: does not exist"),
        (["--part", "tasks", "--glue", tmp_path / "absent"], "--glue"),
        (["--part", "tasks", "--blimp", corpus_file], "--blimp"),
        (["--part", "check", "--smal"], "did you mean --small"),
    ):
        capsys.readouterr()
        assert benchmark(monkeypatch, "--output", output, *flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error
        assert not output.exists()


@pytest.mark.slow
def test_a_step_that_fails_fails_the_part(corpus_file, tmp_path, monkeypatch, capsys):
    """Its last lines are in results.md."""
    (tmp_path / "empty.txt").write_text("")
    flags = ["--small", "--output", tmp_path / "out", "--corpus", tmp_path / "empty.txt"]
    assert benchmark(monkeypatch, "--part", "train", *flags) == 1
    assert "failed: pretraining" in capsys.readouterr().err
    assert "error: --corpus" in (tmp_path / "out/results.md").read_text()


def test_a_gradient_beyond_its_limit_is_an_error(monkeypatch):
    monkeypatch.setitem(gpu_check.LIMITS, "fp32", -1.0)
    with pytest.raises(gpu_check.RunError, match="gradients differ: encoder, cpu, fp32, sdpa, packed"):
        list(gpu_check.equality(gpu_check.CheckSettings("equality", small=True)))
