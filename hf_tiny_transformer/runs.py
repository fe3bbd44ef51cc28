"""Old names of what is now in `common`; removed at the end of the restructuring."""

# ruff: noqa: F401

from .common.environment import keep_freed_memory
from .common.errors import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    DivergedError,
    RunError,
    TerminatedError,
    UserError,
)
from .common.errors import run_command as run_cli
from .common.files import (
    atomic_directory,
    atomic_file,
    atomic_write_json,
    atomic_write_text,
    cache_entry,
    cache_root,
    require_free_output,
)

__all__ = [name for name in dir() if not name.startswith("_")]
