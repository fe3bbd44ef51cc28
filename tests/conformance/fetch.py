"""Download the test files of the installed transformers. Its source distribution has them, its wheel does not.

They are run from the cache and never copied into the repository. `stand_ins/` replaces what the distribution lacks.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_directory, cache_root

PACKAGE = "transformers_tests"  # the import name of the files
STAND_INS = Path(__file__).parent / "stand_ins"
FIRST_FILE = "test_modeling_common.py"

# Makes one package of the cached files and the stand-ins, in every process that has both on its path.
_INIT = f'__path__ = __import__("pkgutil").extend_path(__path__, "{PACKAGE}")\n'


def fetch_tests() -> Path:
    """Return the folder that holds `transformers_tests`, after downloading it if necessary.

    Raises:
        UserError: If pip cannot download the source distribution of the installed version.
    """
    version = transformers.__version__
    folder = cache_root() / "conformance" / f"transformers-{version}"
    if not (folder / PACKAGE / FIRST_FILE).is_file():
        print(f"downloading the tests of transformers {version} to {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch, atomic_directory(folder) as staging:
            with tarfile.open(_download(version, Path(scratch))) as tar:
                members = [member for member in tar.getmembers() if Path(member.name).parts[1:2] == ("tests",)]
                tar.extractall(staging, members=members, filter="data")
            tests = next(staging.glob("*/tests"), None)
            if tests is None or not (tests / FIRST_FILE).is_file():
                raise UserError(
                    f"transformers {version}: no tests/{FIRST_FILE}; install the version in constraints.txt"
                )
            tests.rename(staging / PACKAGE)
            (staging / PACKAGE / "__init__.py").write_text(_INIT, encoding="utf-8")
    return folder


def _download(version: str, folder: Path) -> Path:
    # Only transformers itself as source: its build dependencies may be wheels.
    what = ["--no-deps", "--no-binary", "transformers", f"transformers=={version}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *what]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode != 0 or not archives:
        reasons = [line for line in result.stderr.splitlines() if "ERROR" in line] or ["no archive"]
        raise UserError(
            f"cannot download the tests of transformers {version} (pip: {reasons[-1]}): "
            "check the network and pip's index settings"
        )
    return archives[0]
