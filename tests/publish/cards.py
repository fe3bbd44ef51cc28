"""A card for tests, and ways to damage a model directory and to list what `verify` finds."""

from pathlib import Path

from hf_tiny_transformer.publish import verify
from hf_tiny_transformer.publish.card import THIS_DIRECTORY, Card, Figure, Section

CODE = f"""\
from transformers import pipeline

{THIS_DIRECTORY}
pipe = pipeline("fill-mask", model=model_id, trust_remote_code=True)
for text in [
    'word5 [MASK] word7',
]:
    for guess in pipe(text, top_k=3):
        print(text, "->", guess["token_str"], round(guess["score"], 3))"""
RESULTS = {"parameters": 12345, "scores": {"test": {"accuracy": 0.71234567}}, "model": "tiny", "losses": [2.5]}


def make_card(**changes) -> Card:
    fields = {
        "name": "tiny",
        "summary": "A tiny masked language model.",
        "code": CODE,
        "data": Section(header=("", ""), rows=[("documents", "300"), ("fingerprint", "`0f-1`")]),
        "model": Section(header=("", ""), rows=[("parameters", "12,345")]),
        "training": Section(header=("", ""), rows=[("seed", "1")], after="![loss](training/loss.png)"),
        "evaluation": Section(header=("split", "accuracy, %"), rows=[("test", "71.23 ± 0.50")]),
        "intended_use": "Tests.",
        "limits": "It is tiny.",
        "figures": [
            Figure("test", "accuracy", 0.71234567, "results.json", "/scores/test/accuracy"),
            Figure("validation", "loss", 2.5, "results.json", "/losses/0"),
        ],
        "task_type": "fill-mask",
        "dataset": {"name": "words", "type": "words"},
        "metadata": {"license": "mit", "pipeline_tag": "fill-mask", "tags": ["hf-tiny-transformer"]},
    }
    return Card(**{**fields, **changes})


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def failures(directory: Path) -> dict[str, str]:
    return {finding.check: finding.problem for finding in verify.verify(directory) if finding.problem is not None}
