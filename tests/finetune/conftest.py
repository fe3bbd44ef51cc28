"""Shared fixtures of the fine-tuning tests: models and data of every kind, made once."""

from pathlib import Path

import pytest
from toys import make_tasks


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A folder with models and data, see `toys.make_tasks`."""
    folder = tmp_path_factory.mktemp("toy")
    make_tasks(folder)
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> dict[str, list[str]]:
    """The flags of a run of every kind, without --output."""
    return make_tasks(tmp_path_factory.mktemp("tasks"))
