"""Fetches the test files of the installed transformers: they are in its source distribution, not in its wheel.

They are run where they lie in the cache and never copied into the repository. What the distribution leaves out of them
is in `stand_ins/`.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_directory, cache_root

PACKAGE = "transformers_tests"  # what the files are imported as: `tests` is our own
STAND_INS = Path(__file__).parent / "stand_ins"
FIRST_FILE = "test_modeling_common.py"

# makes one package of the cache folder and of the stand-ins, in every process that has both on its path
_INIT = f'__path__ = __import__("pkgutil").extend_path(__path__, "{PACKAGE}")\n'


def fetch_tests() -> Path:
    """Returns the folder that holds `transformers_tests`, downloading it at the first call.

    Raises:
        UserError: pip cannot fetch the source distribution of the installed version.
    """
    version = importlib.metadata.version("transformers")
    folder = cache_root() / "conformance" / f"transformers-{version}"
    if not (folder / PACKAGE / FIRST_FILE).is_file():
        print(f"fetching the tests of transformers {version} into {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as downloads, atomic_directory(folder) as staging:
            _unpack(_download(version, Path(downloads)), staging / PACKAGE)
    return folder


def _download(version: str, folder: Path) -> Path:
    # only transformers itself as source: what pip needs to read its metadata may come as a wheel
    what = ["--no-deps", "--no-binary", "transformers", f"transformers=={version}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *what]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode != 0 or not archives:
        reasons = [line for line in result.stderr.splitlines() if "ERROR" in line] or ["no archive came"]
        raise UserError(
            f"the tests of transformers {version} cannot be fetched (pip says: {reasons[-1]}); "
            "they come from PyPI, so check the network or pip's index settings"
        )
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    """Extracts `transformers-*/tests/` of the archive as `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with tarfile.open(archive) as tar:
            members = [member for member in tar.getmembers() if Path(member.name).parts[1:2] == ("tests",)]
            tar.extractall(scratch, members=members, filter="data")
        tests = next(Path(scratch).glob("*/tests"), None)
        if tests is None or not (tests / FIRST_FILE).is_file():
            raise UserError(f"{archive.name} holds no tests/{FIRST_FILE}: install the version in constraints.txt")
        tests.rename(folder)
    (folder / "__init__.py").write_text(_INIT, encoding="utf-8")
