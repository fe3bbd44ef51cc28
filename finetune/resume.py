"""What a run keeps beside --output until it is finished, and what --resume goes on from.

`OUTPUT.unfinished` holds run.json, which says what is being run; epoch.pt, the training in work as of its last finished
epoch; and seeds.pt, trials.pt, scratch.pt with what is finished of each. Every file is replaced by one rename and
stands for itself, so that a run may be killed at any instant.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from hf_tiny_transformer.runs import TerminatedError, UserError, atomic_directory, atomic_file, atomic_write_json

from . import processes
from .examples import Splits
from .settings import FinetuneSettings, public_settings

RESULTS_FILE, RUN_FILE = "results.json", "run.json"
# may differ between the parts of a run; data goes by its sha256
NOT_COMPARED = {"output", "report", "resume", "data", "trust_remote_code"}


class Unfinished:
    """The folder of one run. Several processes read it, one writes; it is made when there is something to keep.

    Args:
        identity: what must be the same in all parts of the run, as `run_identity` says it.
    """

    def __init__(self, output: Path, identity: dict) -> None:
        self.folder, self.identity = unfinished_folder(output), identity

    def require_same(self) -> None:
        """Clears what a killed run was about to write.

        Raises:
            UserError: what is there was run with something else.
        """
        if not self.folder.is_dir():
            return
        before = _read(self.folder / RUN_FILE)
        require_same_data(self.folder / RUN_FILE, before, self.identity["data"])
        for name, what in (("weights", "the weights of --model"), ("processes", "the number of processes")):
            then, now = before.get(name), self.identity[name]
            if then != now:
                raise UserError(
                    f"--resume: {what} changed since {self.folder} was begun ({str(then)[:12]} then, {str(now)[:12]} "
                    "now); go back to that, or remove that folder and begin anew"
                )
        if processes.is_main():
            for staging in self.folder.glob(".*"):
                staging.unlink()

    def load(self, name: str) -> dict[str, Any] | None:
        """What `save` wrote under that name, tensors on the CPU; None where there is nothing.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            return None
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            return content | {"facts": json.loads(content["facts"])}
        except Exception as error:  # pickle, zip and json each raise their own kind for a damaged file
            raise UserError(
                f"{path}: damaged ({type(error).__name__}); remove it, and --resume does again what it held"
            ) from None

    def save(self, name: str, facts: Any, **states: Any) -> None:
        """Keeps `facts`, which JSON can hold, and `states`, of tensors and plain values.

        Raises:
            UserError: the disk refuses.
        """
        if not processes.is_main():
            return
        try:
            if not self.folder.is_dir():
                with atomic_directory(self.folder) as staging:
                    atomic_write_json(staging / RUN_FILE, self.identity)
            with atomic_file(self.folder / f"{name}.pt") as stream:
                torch.save({"facts": json.dumps(facts), **states}, stream)
        except OSError as error:
            raise UserError(
                f"{self.folder}: can't be written ({error.strerror or error}); free the disk, and go on with --resume"
            ) from None

    def remove(self) -> None:
        """At the end of the run. The name goes first: a half-removed folder must not look like an unfinished run."""
        if processes.is_main() and self.folder.is_dir():
            retired = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
            os.rename(self.folder, retired / self.folder.name)
            shutil.rmtree(retired)

    @contextmanager
    def kept_on_sigterm(self) -> Iterator[None]:
        """While the block lasts, SIGTERM ends the run in one line."""

        def end(*_: object) -> NoReturn:
            kept = f"what is finished is in {self.folder}; go on with --resume"
            raise TerminatedError(f"SIGTERM: {kept if self.folder.is_dir() else 'no epoch was finished'}")

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def unfinished_folder(output: Path) -> Path:
    return output.absolute().with_name(f"{output.absolute().name}.unfinished")


def run_identity(settings: FinetuneSettings, splits: Splits, model: torch.nn.Module) -> dict:
    """Args:
    model: as `build_model` makes it with seed 0.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "settings": public_settings(settings),
        "data": splits.describe(),
        "weights": digest.hexdigest(),
        "processes": processes.count(),
    }


def earlier_results(settings: FinetuneSettings) -> dict | None:
    """The results that are in `settings.output`; None where there are none, or they are not finished.

    Raises:
        UserError: what is there, finished or not, was made with other settings, or can't be read.
    """
    output = Path(settings.output)
    unfinished = unfinished_folder(output)
    if unfinished.is_dir():
        _require_same_settings(unfinished / RUN_FILE, _read(unfinished / RUN_FILE), settings)
        return None
    if not (output / RESULTS_FILE).is_file():
        return None
    results = _read(output / RESULTS_FILE)
    _require_same_settings(output / RESULTS_FILE, results, settings)
    return results


def require_same_data(path: Path, before: dict, data: dict) -> None:
    """Args:
        before: what `path` holds.
        data: as `Splits.describe` says it.

    Raises:
        UserError: `before` is of other texts or labels.
    """
    if before["data"] != data:
        raise UserError(
            f"--resume: the data has changed: {path} was made with {before['data']['counts']}, sha256 "
            f"{before['data']['sha256'][:12]}, now it is {data['counts']}, {data['sha256'][:12]}; "
            f"give the same data, or remove {path.parent} and begin anew"
        )


def say(line: str) -> None:
    """To stderr, by one process."""
    if processes.is_main():
        print(line, file=sys.stderr, flush=True)


def _require_same_settings(path: Path, before: dict, settings: FinetuneSettings) -> None:
    """A max_length that is not given, and what a search chose, are not the user's."""
    chosen = set(before["search"]["chosen"]) if before.get("search") else set()
    for name, value in public_settings(settings).items():
        skipped = name in NOT_COMPARED | chosen or (name == "max_length" and value is None)
        if not skipped and before["settings"].get(name) != value:
            raise UserError(
                f"--resume: {path} was made with {name} {before['settings'].get(name)}, now it is {value}; "
                "give the same flags, or name a new --output"
            )


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["settings"], content["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: can't be read ({type(error).__name__}: {error}); remove {path.parent}, and it is run again"
        ) from None
    return content
