"""Python that a model directory names or has: never run without consent, never copied into what this package writes.

What this package writes names only its own code, which is stored with the weights as this package has it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..configuration_base import AUTO_MAPS
from .errors import UserError
from .processes import say

PACKAGE = Path(__file__).resolve().parents[1]
KEPT_LOCALLY = "checkpoints"  # a folder of a model directory that is never published
CODE_FIELDS = {"auto_map", "custom_pipelines", "custom_generate"}
# Fields that name a class or an implementation; unless it is a plain name, it is fetched from elsewhere.
NAME_FIELDS = {"tokenizer_class", "slow_tokenizer_class", "processor_class", "image_processor_type"}
NAME_FIELDS |= {"feature_extractor_type", "video_processor_type", "attn_implementation"}
NAME_FIELDS |= {"_attn_implementation", "_attn_implementation_internal"}
CODE_SUFFIXES = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"}


def own_auto_map(model_type: Any) -> dict[str, str]:
    """Return the auto_map that this package writes for a family; empty for other model types."""
    return next((own for family, own in AUTO_MAPS.items() if family.model_type == model_type), {})


def strip(content: Any, own: dict[str, str] | None = None, where: str = "") -> list[str]:
    """Remove, in place, the fields that name code from parsed JSON or from an object's `vars`; return their names.

    `own` is the auto_map that is kept at the top level. Nested names have dots, and start with `where`.
    """
    removed = []
    for name, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        if isinstance(name, str) and _names_code(name, value, own or {}):
            removed.append(f"{where}{name}")
            if name == "_attn_implementation_internal":  # an attribute that configs require
                content[name] = None
            else:
                del content[name]
            continue
        inner = vars(value) if hasattr(type(value), "model_type") else value  # a config within a config
        if isinstance(inner, dict | list | tuple):
            removed += strip(inner, None, f"{where}{name}.")
    return removed


def strip_loaded(source: str | Path, *, config: Any = None, tokenizer: Any = None, model: Any = None) -> None:
    """Remove the fields that name code from objects that may be saved, and report each on stderr once."""
    config = model.config if model is not None else config
    classes: list[Any] = [type(config), type(model)]
    for of_loaded in classes:
        if of_loaded.__module__.startswith("transformers_modules."):
            of_loaded._auto_class = None  # with it, saving would copy the file of the class
    if config is not None:
        _report(source, "config.json", strip(vars(config), own_auto_map(config.model_type)))
    if tokenizer is not None:
        tokenizer._auto_class = tokenizer._auto_map = None
        _report(source, "tokenizer_config.json", strip(tokenizer.init_kwargs))
    if (generation := getattr(model, "generation_config", None)) is not None:
        _report(source, "generation_config.json", strip(vars(generation)))


def strip_files(directory: Path, source: str | Path) -> None:
    """Remove the fields that name foreign code from the JSON files of a directory; the report names `source`."""
    for file in sorted(directory.glob("*.json")):
        content, removed = _strip_file(file)
        if removed:
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            _report(source, file.name, removed)


def find(directory: Path) -> str | None:
    """Return which file is or names code that this package did not write, and what to do; None if there is none."""
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        place = file.relative_to(directory)
        if place.parts[0] == KEPT_LOCALLY:
            continue
        own = PACKAGE / file.name
        is_own = own.is_file() and own.read_bytes() == file.read_bytes()
        if file.suffix.lower() in CODE_SUFFIXES and not is_own:
            return f"{place}: is not code of this package; remove it, or save the model again"
        if file.suffix == ".json" and (removed := _strip_file(file)[1]):
            return f"{place}: {removed[0]} names code that this package did not write; remove the field"
    return None


def _names_code(name: str, value: Any, own: dict[str, str]) -> bool:
    if name in NAME_FIELDS:
        return isinstance(value, str) and any(mark in value for mark in (".", "/", "--"))
    if name not in CODE_FIELDS or not isinstance(value, dict | list | tuple | str):  # a token's id in a vocabulary
        return False
    return not (name == "auto_map" and own and isinstance(value, dict) and own.items() >= value.items())


def _strip_file(file: Path) -> tuple[Any, list[str]]:
    """Return the content of a JSON file without the fields that name code, and their names."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); save the model again") from None
    is_config = file.name == "config.json" and isinstance(content, dict)
    own = own_auto_map(content.get("model_type")) if is_config else {}
    return content, strip(content, own) if isinstance(content, dict | list) else []


def _report(source: str | Path, name: str, removed: list[str]) -> None:
    for field in removed:
        _say_once(f"{source}: {name}: {field} names foreign code; removed")


_say_once = cache(say)
