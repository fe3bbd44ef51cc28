"""Shared fixtures of the fine-tuning tests: models and data of every kind, made once."""

from pathlib import Path

import pytest
from toys import make_tasks


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> dict[str, list[str]]:
    """The flags of a run of every kind, without --output."""
    return make_tasks(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy(tasks) -> Path:
    """The folder with the models and data of `tasks`, see `toys.make_tasks`."""
    return Path(tasks["sst2"][1]).parent
