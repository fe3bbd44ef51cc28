"""`make faults`: break runs in many ways, resume them, and count in docs/reliability.md what held.

Every run is a process of its own, forked from this one, which has imported everything. A case holds if what the user
does next (the same command, with --resume) ends with the bits of an undisturbed run, or if the program names a damaged
file in one line and ends with a status of its own; a traceback or other bits never hold.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .subjects import SUBJECTS, Finetune, Pretrain, Subject, clear, without_the_cards_code

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.chmod")
LIMIT = 120.0  # seconds of a run
HELD, SILENT, TRACEBACK, LOST = "held", "silent", "traceback", "lost"


@dataclass
class Ended:
    """A process that has ended."""

    status: int  # negative for a signal
    text: str


@dataclass
class Case:
    """A run in a folder of its own, and what was counted."""

    subject: Subject
    work: Path
    reference: str  # hash of the undisturbed result
    seconds: float  # of the undisturbed run
    calls: int  # of the file system
    draw: random.Random
    notes: list[str] = field(default_factory=list)

    def start(self, *, resume: bool = False, before: Callable[[], object] = lambda: None) -> int:
        """Fork a process that runs the subject after `before`; return its id."""
        sys.stdout.flush()
        if process := os.fork():
            return process
        status = 70
        try:
            with (self.work / f"log-{os.getpid()}").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.environ["HF_TINY_TRANSFORMER_CACHE"] = str(self.work / "cache")
            os.environ["TMPDIR"] = tempfile.tempdir = str(self.work)
            for number in SIGNALS:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            before()
            status = self.subject.run(self.work, resume=resume)
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, process: int) -> Ended:
        """Wait for a process; one that hangs is killed."""
        deadline = time.monotonic() + LIMIT
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.01)
        text = (self.work / f"log-{process}").read_text(errors="replace") if self.log(process).is_file() else ""
        return Ended(os.waitstatus_to_exitcode(ended[1]), text)

    def log(self, process: int) -> Path:
        """Return where a process writes."""
        return self.work / f"log-{process}"

    def result(self) -> str | None:
        """Return the hash of the trained weights."""
        file = self.work / self.subject.result
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None

    def judge(self, ended: Ended, *, may_refuse: bool = False) -> str:
        """Return how a run that must end well has ended; with `may_refuse` one line of error is as good."""
        if "Traceback" in ended.text:
            self.notes.append(ended.text.strip().splitlines()[-1])
            return TRACEBACK
        if ended.status == 0:
            return HELD if self.result() == self.reference else SILENT
        if may_refuse and ended.status in (1, 2, 3) and "error: " in ended.text:
            return HELD
        self.notes.append(f"status {ended.status}: {ended.text.strip().splitlines()[-1:]}")
        return LOST

    def resumed(self, disturbed: Ended | None = None, *, may_refuse: bool = False) -> str:
        """Resume, and judge both runs."""
        if disturbed is not None and self.subject.reports_errors and "Traceback" in disturbed.text:
            self.notes.append(disturbed.text.strip().splitlines()[-1])
            return TRACEBACK
        outcome = self.judge(self.wait(self.start(resume=True)), may_refuse=may_refuse)
        left = [path for path in self.work.rglob(".*.partial") if "cache" not in path.parts]
        if outcome == HELD and self.subject.reports_errors and left and not may_refuse:
            self.notes.append(f"left behind: {left[0].name}")
            return LOST
        return outcome


def at_call(work: Path, number: int, action: Callable[[str], object]) -> Callable[[], object]:
    """Return a function that makes the process call `action` before its `number`-th call of the file system in work."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.fspath(arguments[0]).startswith(str(work)) and (count := count + 1) == number:
            action(event)

    return lambda: sys.addaudithook(hook)


def killed_at_an_instant(case: Case) -> str:
    """SIGKILL at a random instant, then resume."""
    process = case.start()
    time.sleep(case.draw.uniform(0, case.seconds))
    os.kill(process, signal.SIGKILL)
    return case.resumed(case.wait(process))


def killed_at_a_call(case: Case) -> str:
    """SIGKILL at a random call of the file system, then resume."""
    number = case.draw.randint(1, case.calls)
    die = at_call(case.work, number, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    return case.resumed(case.wait(case.start(before=die)))


def full_disk(case: Case) -> str:
    """No file can grow beyond a random size, or no file can be opened from a random call on; then resume."""

    def full(event: str) -> None:
        raise OSError(28, "No space left on device")

    before: Callable[[], object] = at_call(case.work, case.draw.randint(1, case.calls), full)
    if case.draw.random() < 0.5:
        size = int(10 ** case.draw.uniform(3.7, 5.3))
        before = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    return case.resumed(case.wait(case.start(before=before)))


def half_way(case: Case) -> None:
    """Leave a run that was killed after most of its work."""
    number = int(case.draw.uniform(0.5, 0.95) * case.calls)
    case.wait(case.start(before=at_call(case.work, number, lambda _: os.kill(os.getpid(), signal.SIGKILL))))


def damaged_file(case: Case, damage: Callable[[bytearray], bytes]) -> str:
    """Damage a random file of a killed run, then resume."""
    half_way(case)
    names = ("out", "out.unfinished", "cache/corpora")
    files = sorted(path for name in names for path in (case.work / name).rglob("*") if path.is_file())
    file = case.draw.choice([path for path in files if path.stat().st_size and path.suffix not in (".lock", ".pid")])
    file.write_bytes(damage(bytearray(file.read_bytes())))
    outcome = case.resumed(may_refuse=True)
    if outcome != HELD:
        case.notes.append(f"damaged: {file.relative_to(case.work)}")
    return outcome


def flipped_bit(case: Case) -> str:
    """One bit of a random file of a killed run is flipped; then resume."""

    def flip(content: bytearray) -> bytes:
        content[case.draw.randrange(len(content))] ^= 1 << case.draw.randrange(8)
        return bytes(content)

    return damaged_file(case, flip)


def truncated_file(case: Case) -> str:
    """A random file of a killed run loses its end; then resume."""
    return damaged_file(case, lambda content: bytes(content[: case.draw.randrange(len(content))]))


def stopped(case: Case) -> str:
    """Ctrl-C, SIGTERM or SIGHUP at a random instant: status 128 + number; then resume."""
    number, process = case.draw.choice(SIGNALS), case.start()
    time.sleep(case.draw.uniform(0.02, 1.0) * case.seconds)
    os.kill(process, number)
    ended = case.wait(process)
    if case.subject.reports_errors and ended.status not in (0, 128 + number, -number):
        case.notes.append(f"{signal.Signals(number).name}: status {ended.status}: {ended.text.splitlines()[-1:]}")
        return LOST
    return case.resumed(ended)


def two_at_once(case: Case) -> str:
    """Two runs into one directory; the second is refused with the process id of the first."""
    first = case.start()
    time.sleep(case.draw.uniform(0, 0.3) * case.seconds)
    both = [case.wait(process) for process in (first, case.start())]
    good = [ended for ended in both if ended.status == 0]
    if any("Traceback" in ended.text for ended in both):
        case.notes.append(next(e.text.strip().splitlines()[-1] for e in both if "Traceback" in e.text))
        return TRACEBACK
    if case.subject.reports_errors:
        refused = any(ended.status == 2 and "is writing there" in ended.text for ended in both)
        return HELD if len(good) == 1 and refused and case.result() == case.reference else LOST
    return HELD if len(good) == 1 and case.result() == case.reference else SILENT


WRONG = {
    "pretrain": (
        *("--corpus=", "--seed=1180591620717411303424", "--vocab_size=1180591620717411303424", "--max-steps=0"),
        *("--model.vocab_size=7", "--model.hidden_size=abc", "--stages=[1]", "--recipe=BYTES", "--corpus=BYTES"),
        *("--init=BYTES", "--init=FOLDER", "--corpus=FOLDER", "--learning_rate=nan", "--output=BYTES/x", "--nonsense"),
        *("--corpus=DEEP.jsonl", "--corpus=LONE.jsonl", "--corpus=EMPTY.txt", "--corpus=BYTES.parquet"),
    ),
    "finetune": (
        *("--model=BYTES", "--model=FOLDER", "--data=FOLDER", "--task=BYTES.csv", "--epochs=0", "--learning_rate=inf"),
        *("--seeds=1180591620717411303424x", "--max_length=1", "--lora=-1", "--output=BYTES/x", "--report=FOLDER"),
        *("--task=DEEP.jsonl", "--task=LONE.jsonl", "--task=EMPTY.csv", "--task=BYTES.parquet", "--nonsense"),
    ),
}


def wrong_input(case: Case) -> str:
    """A wrong flag, or a file of random bytes: one line, status 2, and nothing is written."""
    flag = case.draw.choice(WRONG[case.subject.name])
    content = case.draw.randbytes(2000)
    (case.work / "FOLDER").mkdir()
    for name in ("BYTES", "BYTES.csv", "BYTES.parquet", "FOLDER/config.json", "FOLDER/model.safetensors"):
        (case.work / name).write_bytes(content)
    (case.work / "DEEP.jsonl").write_text("[" * 100_000 + "\n")
    (case.work / "LONE.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    for name in ("EMPTY.txt", "EMPTY.csv"):
        (case.work / name).touch()
    name, equals, value = flag.partition("=")
    is_file = (case.work / value.partition("/")[0]).exists() and value
    flags: tuple[str, ...] = (f"{name}{equals}{case.work / value if is_file else value}",)
    if name == "--task":
        flags += ("--text=text", "--label=label")
    case.subject = type(case.subject)()
    case.subject.run = lambda work, resume: type(case.subject).run(case.subject, work, resume=resume, flags=flags)
    ended = case.wait(case.start())
    if "Traceback" in ended.text or ended.status != 2 or (case.work / "out").exists():
        case.notes.append(f"{flag}: status {ended.status}: {ended.text.strip().splitlines()[-1:]}")
        return TRACEBACK if "Traceback" in ended.text else LOST
    return HELD


FAULTS = (killed_at_an_instant, killed_at_a_call, full_disk, flipped_bit, truncated_file, stopped, two_at_once)
FAULTS += (wrong_input,)


def campaign(subjects: tuple[Subject, ...], cases: int, seconds: float, seed: int, only: str = "") -> dict:
    """Run `cases` cases of every fault and subject, or fewer in `seconds`; return a `Counter` of outcomes for each."""
    without_the_cards_code()
    ends, counts = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        known = [(subject, *undisturbed(subject, Path(scratch) / subject.name)) for subject in subjects]
        for number in range(cases):
            for fault in (each for each in FAULTS if only in each.__name__):
                for subject, source, reference, duration, calls in known:
                    if time.monotonic() > ends or (fault is wrong_input and subject.name not in WRONG):
                        continue
                    work = Path(shutil.copytree(source, f"{scratch}/case"))
                    draw = random.Random(f"{seed} {number} {fault.__name__} {subject.name}")
                    case = Case(subject, work, reference, duration, calls, draw)
                    outcome = fault(case)
                    counts.setdefault((fault, subject.name), Counter())[outcome] += 1
                    note = f": {'; '.join(case.notes)}" if outcome != HELD else ""
                    print(f"{number + 1} {fault.__name__}, {subject.name}: {outcome}{note}", flush=True)
                    shutil.rmtree(work)
    return counts


def undisturbed(subject: Subject, work: Path) -> tuple[Path, str, float, int]:
    """Prepare the input in a folder; return it with the hash, seconds and file-system calls of a run."""
    work.mkdir()
    subject.prepare(work)
    case, calls = Case(subject, work, "", 0.0, 0, random.Random(0)), work / "calls"
    for counted in (False, True):  # the seconds are those without counting
        started = time.monotonic()
        note = at_call(work, 0, lambda _: None)
        if counted:
            note = lambda: sys.addaudithook(_counter(work, calls))  # noqa: E731
        ended = case.wait(case.start(before=note))
        assert ended.status == 0, ended.text
        case.seconds = case.seconds or time.monotonic() - started
        reference = case.result()
        clear(work)
    for log in work.glob("log-*"):
        log.unlink()
    count = calls.stat().st_size
    calls.unlink()
    assert reference is not None
    return work, reference, case.seconds, count


def _counter(work: Path, file: Path) -> Callable[[str, tuple], None]:
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)

    def hook(event: str, arguments: tuple) -> None:
        is_path = event in EVENTS and isinstance(arguments[0], str | os.PathLike)
        if is_path and os.fspath(arguments[0]).startswith(str(work)):
            os.write(descriptor, b".")

    return hook


def table(counts: dict, names: list[str]) -> str:
    """Return the counts as Markdown."""
    lines = [f"| fault | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for fault in FAULTS:
        cells = []
        for name in names:
            found = counts.get((fault, name), Counter())
            bad = ", ".join(f"{found[what]} {what}" for what in (SILENT, TRACEBACK, LOST) if found[what])
            cells.append(f"{found[HELD]} of {found.total()}{f' ({bad})' if bad else ''}" if found else "-")
        lines.append(f"| {fault.__doc__.rstrip('.')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the campaign and write its table into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--cases", type=int, default=12, help="cases of each fault and program")
    parser.add_argument("--minutes", type=float, default=30.0, help="time after which no case is started")
    parser.add_argument("--seed", type=int, default=1, help="seed of the cases")
    parser.add_argument("--only", default="", help="part of a fault's name")
    parser.add_argument(
        "--subjects", default=len(SUBJECTS), type=int, help="how many: pretrain, finetune, stock Trainer"
    )
    parser.add_argument("--dry", action="store_true", help="print the table only")
    given = parser.parse_args()
    counts = campaign(SUBJECTS[: given.subjects], given.cases, 60 * given.minutes, given.seed, given.only)
    found = table(counts, [subject.name for subject in SUBJECTS])
    print(f"\n{found}")
    if not given.dry and not given.only:
        before, begin, rest = PAGE.read_text(encoding="utf-8").partition("<!-- begin -->\n")
        end = "<!-- end -->" + rest.partition("<!-- end -->")[2]
        PAGE.write_text(f"{before}{begin}\n{found}\n\n{end}", encoding="utf-8")
    ours = [counts.get((fault, subject.name), Counter()) for fault in FAULTS for subject in (Pretrain, Finetune)]
    sys.exit(any(count.total() != count[HELD] for count in ours))


if __name__ == "__main__":
    main()
