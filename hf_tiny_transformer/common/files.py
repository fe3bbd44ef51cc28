"""Output directories, the cache, and writes that are complete or absent, have checksums, and one writer at a time."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from .errors import DivergedError, UserError, one_line
from .processes import say

SUMS = "SHA256SUMS"  # in a directory, of its files; `sha256sum --check SHA256SUMS` reads it too
CHECKSUM = "sha256"  # the field of a JSON object with the checksum of its other fields
EDITED = "README.md"  # has no checksum: people add to it, and `verify` compares its figures
PARTIAL = ".partial"  # how the names of files and directories end that are being written
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
DISK_WORDS = (
    "No space left",
    "Read-only file system",
    "Disk quota",
    "I/O error",
    "PytorchStreamWriter",
    "unexpected pos",
)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty directory that becomes `path`, with SUMS of its files, by one rename; on any error it is removed.

    Readers never see a half-written directory. `path` must not exist, or be empty; a symbolic link to it stays.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path):
        staging = Path(tempfile.mkdtemp(suffix=PARTIAL, prefix=f".{path.name}-", dir=path.parent))
        try:
            staging.chmod(0o755)  # mkdtemp's 0700 would follow the model wherever it is copied
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # safetensors writes 0600, which a model server could not read
            write_sums(staging)
            staging.rename(path)
            flush(path.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary stream whose content becomes `path` by one rename; on any error it is removed.

    `path` holds either its old or its complete new content, even if several processes write it.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path):
        descriptor, staging = tempfile.mkstemp(suffix=PARTIAL, prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(staging, 0o644)
            os.replace(staging, path)
            flush(path.parent)
        except BaseException:
            Path(staging).unlink(missing_ok=True)
            raise


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 so that `path` is never half-written."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def atomic_write_json(path: str | os.PathLike[str], value: Any, *, checksum: bool = False) -> None:
    """Write `value` as indented JSON with a final newline, never half-written.

    With `checksum`, the object gets a field `CHECKSUM`, which `read_json` then verifies.

    Raises:
        DivergedError: A number is not finite.
    """
    try:
        value = {CHECKSUM: _digest_of(value), **value} if checksum else value
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        problem = f"{path}: not written, because it would hold {_not_finite(value)}, which is not finite"
        raise DivergedError(f"{problem}; lower the learning rate, and check the weights and labels") from None
    atomic_write_text(path, text + "\n")


def read_json(path: Path, advice: str, *, checksum: bool = False) -> dict[str, Any]:
    """Read a JSON object; `advice` is what the user should do if that is impossible, for the UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {advice}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object; {advice}")
    if checksum and CHECKSUM not in content:
        raise UserError(f"{path}: damaged, or written by an older version (it has no checksum); {advice}")
    if checksum and content.pop(CHECKSUM) != _digest_of(content):
        raise UserError(f"{path}: damaged (its checksum differs); {advice}")
    return content


def _digest_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _not_finite(value: Any, name: str = "") -> str | None:
    """Return the first number in a JSON value that is not finite, with its place, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} {value}".strip()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(filter(None, (_not_finite(item, f"{name}/{key}") for key, item in items)), None)


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(directory: Path, leave_out: Collection[str] = ()) -> None:
    """Write SUMS, in the format of sha256sum, of all files of a directory, after they have reached the disk.

    `leave_out` names files or folders of the directory that may change.
    """
    lines = []
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory)
        if name.parts[0] not in (*leave_out, SUMS, EDITED) and not name.parts[0].endswith(PARTIAL):
            flush(file)
            lines.append(f"{sha256(file)}  {name.as_posix()}\n")
    atomic_write_text(directory / SUMS, "".join(lines))
    flush(directory)


def damage(directory: Path) -> str | None:
    """Return which file of a directory differs from its SUMS, or None; without SUMS it is incomplete."""
    try:
        for line in (directory / SUMS).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            if Path(name).is_absolute() or ".." in Path(name).parts or not (directory / name).is_file():
                return f"{name} is missing"
            if sha256(directory / name) != digest:
                return f"{name} is damaged (its checksum differs)"
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({one_line(error)})"
    return None


def is_intact(directory: Path) -> bool:
    """Return whether a directory can be used; a damaged one is reported and removed, so that it is made again."""
    if not directory.is_dir():
        return False
    if (problem := damage(directory)) is not None:
        say(f"{directory}: {problem}; removed, and made again")
        shutil.rmtree(directory)
    return problem is None


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of a full, failing or read-only disk, which each library words differently, into one line."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or one_line(error, 200)
        if getattr(error, "errno", None) not in DISK and not any(words in text for words in DISK_WORDS):
            raise
        free = f"{_free(Path(path)) / 1e6:,.0f} MB free"
        reason = text if isinstance(error, OSError) or "No space" in text else "the disk is full or fails"
        advice = "free space there and repeat the command; a run continues after its last checkpoint with --resume"
        raise UserError(f"{path}: cannot be written ({reason}, {free}); {advice}") from None


def require_space(path: Path, needed: float, what: str) -> None:
    """Raise a UserError if the disk of `path` has less than the needed bytes."""
    if (free := _free(path)) < needed:
        advice = "free space there, or name a path on another disk"
        raise UserError(f"{path}: {what} need {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free; {advice}")


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot do this for directories
            raise
    finally:
        os.close(descriptor)


@contextmanager
def only_process(path: Path, flag: str = "") -> Iterator[None]:
    """Let one process at a time write `path`, and remove what killed ones left there. The lock dies with its process.

    With a `flag`, which named `path`, a second process is refused; without one it waits.
    """
    path = Path(os.path.realpath(path))
    file = cache_entry("locks", str(path))
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock, owner = FileLock(f"{file}.lock"), file.with_suffix(".pid")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            process = owner.read_text() if owner.is_file() else "unknown"
            if flag:
                problem = f"{flag} {path}: process {process} is writing there"
                raise UserError(f"{problem}; wait for it, end it, or name another path") from None
            say(f"{path}: waiting for process {process}, which makes it")
            lock.acquire()
    try:
        atomic_write_text(owner, str(os.getpid()))
        for leftover in (*path.parent.glob(f".{glob.escape(path.name)}-*{PARTIAL}"), *path.rglob(f".*{PARTIAL}")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    finally:
        lock.release()


def cache_root() -> Path:
    """Return the directory for downloads and prepared corpora, shared by all runs of this user."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_TINY_TRANSFORMER_CACHE") or shared / "hf_tiny_transformer")


def cache_entry(kind: str, settings: Any) -> Path:
    """Return the cache path, in the folder `kind`, of a result that depends on `settings` (of JSON types)."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    return cache_root() / kind / key


def require_free_output(path: str | os.PathLike[str]) -> Path:
    """Return `path` if a new run may write there, else raise a UserError; existing files are never overwritten."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path}: is a file; name a directory")
    if path.is_dir() and (names := sorted(entry.name for entry in path.iterdir())):
        advice = "name a new directory, remove this one, or continue its run with --resume"
        raise UserError(f"--output {path}: is not empty ({', '.join(names[:3])}, ...); {advice}")
    require_writable("--output", path)
    return path


def require_writable(flag: str, path: Path) -> None:
    """Raise a UserError if `path`, which `flag` named, cannot be created or written; a block is written to find out."""
    existing = _existing(path)
    if not existing.is_dir() and existing != path.absolute():
        raise UserError(f"{flag} {path}: {existing} is a file, not a directory; name another path")
    existing = existing if existing.is_dir() else existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    except PermissionError:
        raise UserError(f"{flag} {path}: no permission to write in {existing}; name another path") from None
    except OSError as error:
        problem = f"{error.strerror}, {_free(existing) / 1e6:,.0f} MB free"
        raise UserError(f"{flag} {path}: cannot write in {existing} ({problem}); name another path") from None
