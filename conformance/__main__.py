"""Runs transformers' common model tests on our families and on stock ones, and prints what became of them side by side.

Exit status: 0 all is well; 1 a test of ours fails, or is skipped where its stock counterpart passes; 2 the tests cannot
be fetched.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.files import atomic_write_text

from .families import FAMILIES
from .fetch import fetch_tests
from .report import render
from .runner import run_family


def main() -> None:
    """Raises SystemExit with 1 where something is amiss."""
    arguments = _parse()
    start = time.monotonic()
    folder = fetch_tests()
    results = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [pool.submit(run_family, family, folder) for family in dict.fromkeys(arguments.families)]
        for number, run in enumerate(as_completed(runs), start=1):
            result = run.result()
            results[result.family] = result
            print(f"[{number}/{len(runs)}] {result.family}: {result}, {result.seconds:.0f} s", file=sys.stderr)
    report, well = render(results)
    version, seconds = importlib.metadata.version("transformers"), time.monotonic() - start
    text = f"Common tests of transformers {version} on CPU: {seconds:.0f} s with --jobs {arguments.jobs}\n\n{report}"
    print(f"\n{text}", end="")
    if arguments.output:
        atomic_write_text(arguments.output, text)
    if not well:
        raise SystemExit(1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY", help=", ".join(FAMILIES)
    )
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="families at once (all cores)")
    parser.add_argument("--output", type=Path, help="file for the report, as Markdown")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of families")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
