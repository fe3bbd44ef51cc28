"""Where prepared data is kept, for all runs of this user."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """`$HF_TINY_TRANSFORMER_CACHE`, else `hf_tiny_transformer` under `$XDG_CACHE_HOME` or ~/.cache."""
    if "HF_TINY_TRANSFORMER_CACHE" in os.environ:
        return Path(os.environ["HF_TINY_TRANSFORMER_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_tiny_transformer"


def cache_entry(kind: str, settings: Any) -> Path:
    """The directory of what was made of `settings`, which JSON can hold."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    return cache_root() / kind / key
