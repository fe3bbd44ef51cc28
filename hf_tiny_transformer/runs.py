"""What the applications beside the models need and nothing more: clear errors, atomic writes, run and cache
directories, and one setting of the C library that training on CPU is a third faster with."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130  # what a shell reports for Ctrl-C
EXIT_TERMINATED = 143  # and for SIGTERM
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


class RunError(Exception):
    """Ends a run with one line on stderr and the exit status of its class."""

    exit_status = 1


class UserError(RunError):
    """Something the user can mend. The message is one line: what is wrong, in which file or field, and what to do."""

    exit_status = EXIT_BAD_INPUT


class DivergedError(RunError):
    """The loss is not finite, or has exploded."""

    exit_status = EXIT_DIVERGED


class TerminatedError(RunError):
    """SIGTERM came; everything is saved."""

    exit_status = EXIT_TERMINATED


def run_cli(main: Callable[[], None]) -> int:
    """Runs `main` and turns its errors into exit codes: a `RunError` prints one line on stderr and gives its own,
    Ctrl-C gives 130. Anything else is a bug of ours and keeps its traceback."""
    logging.getLogger("DeepSpeed").addFilter(_is_no_greeting)
    try:
        main()
    except RunError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _is_no_greeting(record: logging.LogRecord) -> bool:
    """Accelerate imports DeepSpeed wherever it is installed; on a CPU that prints a warning among results on stdout."""
    return record.funcName != "get_accelerator"


@contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty directory beside `path`; on success it becomes `path` by one rename, on any error it vanishes.

    A reader therefore never sees a half-written directory, and a crash leaves the old one in place.
    An existing `path` is replaced only at the very end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    staging.chmod(0o755)  # mkdtemp's 0700 would follow the model wherever it is copied
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes 0600, which a model server could not read
                _flush_to_disk(file)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            os.rename(path, retired / path.name)
            os.rename(staging, path)
            shutil.rmtree(retired)
        else:
            os.rename(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yields a stream; on success what was written to it becomes `path` by one rename, on any error it vanishes.

    `path` therefore holds either its old or its whole new content, also where several processes write it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(staging, 0o644)
        os.replace(staging, path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` so that `path` holds either its old or its whole new content, never a part."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def atomic_write_json(path: str | os.PathLike, value: Any) -> None:
    """`atomic_write_text` of `value` as indented JSON with a final newline."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def cache_root() -> Path:
    """Where downloads and prepared corpora are kept, for all runs of this user: `$HF_TINY_TRANSFORMER_CACHE`, else
    `hf_tiny_transformer` under `$XDG_CACHE_HOME` or ~/.cache."""
    if "HF_TINY_TRANSFORMER_CACHE" in os.environ:
        return Path(os.environ["HF_TINY_TRANSFORMER_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_tiny_transformer"


def cache_entry(kind: str, settings: Any) -> Path:
    """The place of what was made of `settings`, which JSON can hold, under `cache_root`."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    return cache_root() / kind / key


def require_free_output(path: str | os.PathLike) -> Path:
    """Returns `path` if a new run may write there.

    Raises:
        UserError: `path` is a file, or a directory that already holds something: nothing is overwritten unasked.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path}: is a file; name a directory")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(
            f"--output {path}: already holds something ({', '.join(sorted(p.name for p in path.iterdir())[:3])}, ...), "
            "perhaps another run; name a new directory or remove this one (python -m pretrain continues with --resume)"
        )
    return path


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory instead of giving each large tensor back to the kernel, which would hand it out
    again page by page, zeroed. Elsewhere (macOS, musl) nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)


def _flush_to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
