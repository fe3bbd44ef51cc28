"""Output directories, the cache, and writes that are either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` by one rename; on any error it is removed.

    Readers never see a half-written directory. An existing `path` is replaced only at the very end.
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
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        retired = Path(f"{staging}.old")
        if path.exists():
            path.rename(retired)
        staging.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary stream whose content becomes `path` by one rename; on any error it is removed.

    `path` holds either its old or its complete new content, even if several processes write it.
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


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 so that `path` is never half-written."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with a final newline, never half-written."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str) -> dict[str, Any]:
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
    return content


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
    require_writable_parent("--output", path)
    return path


def require_writable_parent(flag: str, path: Path) -> None:
    """Raise a UserError if `path`, which `flag` named, cannot be created."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {existing} is a file, not a directory; name another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: no permission to write in {existing}; name another path")
