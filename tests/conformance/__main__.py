"""Run transformers' common model tests on our families and on stock ones, and print the results side by side.

Exit status: 0 if none of our tests fails, and none is skipped that a stock counterpart passes; else 1; 2 if the tests
cannot be downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import transformers

from hf_tiny_transformer.common.errors import run_command

from .families import FAMILIES, FAMILY_VARIABLE, OURS
from .fetch import STAND_INS, fetch_tests
from .plugin import RESULTS_VARIABLE

REPOSITORY = Path(__file__).parents[2]
SECONDS_PER_TEST = 600  # a longer test hangs


@dataclass(frozen=True)
class Results:
    """Results of one family.

    Args:
        family: Its name.
        tests: Test name -> outcome and reason, from `plugin.py`.
        seconds: Duration.
        log: The output of pytest.
    """

    family: str
    tests: dict[str, dict[str, str]]
    seconds: float
    log: Path

    def reasons(self, outcome: str) -> dict[str, str]:
        """Return the tests that `passed`, `failed` or were `skipped`, with their reasons."""
        return {name: test["reason"] for name, test in self.tests.items() if test["outcome"] == outcome}

    def counts(self) -> list[str]:
        """Return the numbers of tests that passed, failed and were skipped."""
        return [str(len(self.reasons(outcome))) for outcome in ("passed", "failed", "skipped")]


def main() -> None:
    """Run the command line; raises SystemExit with status 1 if one of our families does not conform."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--families",
        nargs="+",
        choices=FAMILIES,
        default=list(FAMILIES),
        metavar="FAMILY",
        help=f"families to test, of {', '.join(FAMILIES)}; default: all",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="families at once; default: the number of cores"
    )
    arguments = parser.parse_args()
    folder, start, results = fetch_tests(), time.monotonic(), {}
    with ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        runs = [pool.submit(run_family, family, folder) for family in dict.fromkeys(arguments.families)]
        for number, run in enumerate(as_completed(runs), start=1):
            one = results[run.result().family] = run.result()
            counts = "{} passed, {} failed, {} skipped".format(*one.counts())
            print(f"[{number}/{len(runs)}] {one.family}: {counts}", flush=True)
    print(f"\nCommon tests of transformers {transformers.__version__} on CPU, {time.monotonic() - start:.0f} s\n")
    if not report(results):
        raise SystemExit(1)


def run_family(family: str, tests_folder: Path) -> Results:
    """Run pytest on a family, on CPU, without network, on one thread.

    Raises:
        RuntimeError: If pytest cannot start; contains the end of its output.
    """
    log = tests_folder / "logs" / f"{family}.txt"
    log.parent.mkdir(exist_ok=True)
    # pyproject.toml and conftest.py are for our own tests.
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("suite.py"))]
    command += ["-p", "tests.conformance.plugin", "-p", "no:cacheprovider", "-o", "addopts=", "--noconftest"]
    path = [str(tests_folder), str(STAND_INS), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        FAMILY_VARIABLE: family,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TRANSFORMERS_VERBOSITY": "warning",  # the default; some tests read the log
        "TRANSFORMERS_TEST_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, log.open("w", encoding="utf-8") as stream:
        results = environment[RESULTS_VARIABLE] = os.path.join(scratch, "results.json")
        subprocess.run(
            [*command, "--disable-warnings", f"--timeout={SECONDS_PER_TEST}"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        if not os.path.isfile(results):
            raise RuntimeError(f"pytest could not test {family}:\n{log.read_text(encoding='utf-8')[-3000:]}")
        tests = json.loads(Path(results).read_text(encoding="utf-8"))
    return Results(family, tests, time.monotonic() - start, log)


def report(results: dict[str, Results]) -> bool:
    """Print the results as Markdown.

    Args:
        results: By family.

    Returns:
        Whether none of our tests failed, and none was skipped that a counterpart passes.
    """
    print("| family | passed | failed | skipped | s |\n| --- | ---: | ---: | ---: | ---: |")
    pairs = [name for family, spec in OURS.items() for name in (family, *spec.counterparts)]
    for one in (results[name] for name in pairs if name in results):
        print(f"| {one.family} | {' | '.join(one.counts())} | {one.seconds:.0f} |")
    conforms = True
    for one in results.values():
        failed, skipped = one.reasons("failed"), {}
        for stock in OURS[one.family].counterparts if one.family in OURS else ():
            for name in results[stock].reasons("passed") if stock in results else ():
                test = one.tests.get(name, {"outcome": "skipped", "reason": "we have no such test"})
                if test["outcome"] == "skipped":
                    skipped[name] = f"{test['reason']} ({stock} passes)"
        for title, tests in (("failed", failed), ("skipped, passed by a counterpart", skipped)):
            if tests:
                print(f"\n{one.family}, {title} (log: {one.log}):\n")
                print("\n".join(f"- `{name}`: {reason}" for name, reason in sorted(tests.items())))
        conforms = conforms and not (one.family in OURS and (failed or skipped))
    return conforms


if __name__ == "__main__":
    sys.exit(run_command(main))
