"""The sample recipe with one thing changed at a time: held-out loss after the same core-minutes.

    python -m benchmarks.ablation --minutes 3 --output runs/ablation

Each row is a run by `benchmarks.time_to_loss ours`: same text, tokenizer, held-out blocks and masks, CPU time of one
core. Runs that are finished already (a JSON file in the output folder) are not repeated; --only picks some.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from .time_to_loss import main as time_to_loss


def stages(*rows: str) -> list[str]:
    """The recipe's flag for these stages: each "SHARE LENGTH x ROWS, MASK RATE, MUON'S RATE" as plain numbers."""
    names = ("share", "block_size", "batch_size", "mask_rate", "matrix_learning_rate")
    parsed = [[float(word) if "." in word else int(word) for word in row.split()] for row in rows]
    return ["--stages", json.dumps([dict(zip(names, row, strict=True)) for row in parsed])]


CHANGES: dict[str, list[str]] = {
    "the recipe": [],
    "the recipe, another seed": ["--seed", "2"],
    "AdamW on everything, 2e-3": ["--optimizer", "adamw"],
    "AdamW on everything, 4e-3": ["--optimizer", "adamw", "--learning_rate", "0.004"],
    "Muon 0.02 throughout": stages("0.2 128 8 0.2 0.02", "0.8 128 32 0.2 0.02"),
    "Muon 0.005 throughout": stages("0.2 128 8 0.2 0.005", "0.8 128 32 0.2 0.005"),
    "32 rows throughout": stages("0.2 128 32 0.2 0.02", "0.8 128 32 0.2 0.005"),
    "8 rows throughout": stages("0.2 128 8 0.2 0.02", "0.8 128 8 0.2 0.005"),
    "64 rows in the second half": stages("0.2 128 8 0.2 0.02", "0.4 128 32 0.2 0.005", "0.4 128 64 0.2 0.005"),
    "rows of 64 at first, 16 of them": stages("0.2 64 16 0.2 0.02", "0.8 128 32 0.2 0.005"),
    "15 % hidden": stages("0.2 128 8 0.15 0.02", "0.8 128 32 0.15 0.005"),
    "30 % hidden": stages("0.2 128 8 0.3 0.02", "0.8 128 32 0.3 0.005"),
    "30 % hidden, then 20, then 15": stages("0.2 128 8 0.3 0.02", "0.4 128 32 0.2 0.005", "0.4 128 32 0.15 0.005"),
    "embeddings at random": ["--embedding_init", "random"],
    "warm-up 5 %": ["--warmup", "0.05"],
    "decay over the last fifth": ["--decay", "0.2"],
    "decay from the beginning": ["--decay", "0.995"],
    "no decay, mean of the last fifth": ["--decay", "0.0", "--average", "0.2"],
}


def main() -> None:
    """Runs what is not finished, then prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), default=list(CHANGES), metavar="NAME")
    arguments = parser.parse_args()
    rows = [_row(name, _run(name, arguments)) for name in arguments.only]
    print("| change | steps | loss 6.0 after | loss 5.0 after | last loss |\n| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(row)


def _run(name: str, arguments: argparse.Namespace) -> dict:
    slug = "".join(character if character.isalnum() else "-" for character in name)
    path = arguments.output / f"ours-{arguments.minutes:g}min-{slug}.json"
    if not path.exists():
        common = ["--minutes", f"{arguments.minutes:g}", "--output", str(arguments.output), "--name", slug]
        time_to_loss(["ours", *common, *CHANGES[name]])
    return json.loads(path.read_text(encoding="utf-8"))


def _row(name: str, run: dict) -> str:
    curve = run["curve"]
    reached = [next((seconds for seconds, _, loss in curve if loss <= goal), math.inf) for goal in (6.0, 5.0)]
    last = f"{curve[-1][2]:.3f}" + (f" ({run['averaged']:.3f} averaged)" if "averaged" in run else "")
    return f"| {name} | {run['steps']:,} | {reached[0]:.0f} s | {reached[1]:.0f} s | {last} |"


if __name__ == "__main__":
    main()
