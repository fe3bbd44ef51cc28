"""Code that a model directory names or brings. None of it runs unasked, and none is passed on: what we write names only
this package's own code, which lies beside it as this package has it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .runs import UserError

FLAG_HELP = "run Python that the model's files name (auto_map) or bring; it is not passed on to what is made of it"
CODE_FIELDS = {"auto_map", "custom_pipelines", "custom_generate"}
# Fields with the name of a class, or of a way to compute, that is fetched from elsewhere where it is no plain name.
NAME_FIELDS = {"tokenizer_class", "slow_tokenizer_class", "processor_class", "image_processor_type"}
NAME_FIELDS |= {"feature_extractor_type", "video_processor_type"}
NAME_FIELDS |= {"attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
CODE_SUFFIXES = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"}
PACKAGE = Path(__file__).parent
NOT_PUBLISHED = "checkpoints"  # of a run


def own_auto_map(model_type: Any) -> dict[str, str]:
    """Return the auto_map that we write for a family, empty for a model type that is not ours."""
    from .families import FAMILIES

    for config_class, table in FAMILIES.items():
        if config_class.model_type == model_type:
            classes = {"AutoConfig": config_class, **{auto.__name__: model for auto, model in table.items()}}
            return {name: f"{one.__module__.rpartition('.')[2]}.{one.__name__}" for name, one in classes.items()}
    return {}


def strip(content: Any, own: dict[str, str] | None = None, where: str = "") -> list[str]:
    """Remove, in place, what names code in parsed JSON or in an object's `vars`.

    Args:
        own: the auto_map that may stay, at the top.

    Returns:
        The removed fields' names, with dots where they lay deeper.
    """
    removed = []
    for name, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        if isinstance(name, str) and _names_code(name, value, own or {}):
            removed.append(f"{where}{name}")
            if name == "_attn_implementation_internal":  # which an object cannot do without
                content[name] = None
            else:
                del content[name]
            continue
        below = vars(value) if hasattr(type(value), "model_type") else value  # a config within a config
        if isinstance(below, dict | list | tuple):
            removed += strip(below, None, f"{where}{name}.")
    return removed


def strip_loaded(
    source: str | Path, *, config: Any = None, tokenizer: Any = None, model: Any = None, quiet: bool = False
) -> None:
    """Take what names code off objects that may be saved; print a line for each field on stderr, unless `quiet`."""
    config = model.config if model is not None else config
    found = {}
    if config is not None:
        found["config.json"] = strip(vars(config), own_auto_map(config.model_type))
    if tokenizer is not None:
        tokenizer._auto_class = tokenizer._auto_map = None  # or saving would copy the file of its class along
        found["tokenizer_config.json"] = strip(tokenizer.init_kwargs)
    if getattr(model, "generation_config", None) is not None:
        found["generation_config.json"] = strip(vars(model.generation_config))
    for name, removed in found.items():
        _tell(source, name, [] if quiet else removed)


def strip_files(directory: Path, source: str | Path) -> None:
    """Rewrite each JSON file of `directory` that names code of others, and print a line for each field.

    Args:
        source: where the files came from, for the lines.

    Raises:
        UserError: a file holds no JSON.
    """
    for file in sorted(directory.glob("*.json")):
        content = _read(file)
        if removed := strip(content, _own_of(file, content)):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            _tell(source, file.name, removed)


def find(directory: Path) -> str | None:
    """Say which file of a directory is, or names, code that this package does not write; None where there is none.

    Raises:
        UserError: a .json file holds no JSON.
    """
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        place = file.relative_to(directory)
        if place.parts[0] == NOT_PUBLISHED:
            continue
        if file.suffix.lower() in CODE_SUFFIXES and not is_own_file(file):
            return f"{place}: is not the code that this package writes; remove it, or save the model again"
        if file.suffix == ".json":
            content = _read(file)
            if removed := strip(content, _own_of(file, content)):
                return f"{place}: {removed[0]} names code that this package did not write; remove the field"
    return None


def is_own_file(file: Path) -> bool:
    """Whether a file of code is, byte by byte, the one of that name in this package."""
    own = PACKAGE / file.name
    return own.is_file() and own.read_bytes() == file.read_bytes()


def _names_code(name: str, value: Any, own: dict[str, str]) -> bool:
    if name in NAME_FIELDS:
        return isinstance(value, str) and any(mark in value for mark in (".", "/", "--"))
    if name not in CODE_FIELDS or not isinstance(value, dict | list | tuple | str):  # a token's id in a vocabulary
        return False
    return not (name == "auto_map" and own and isinstance(value, dict) and own.items() >= value.items())


def _own_of(file: Path, content: Any) -> dict[str, str]:
    is_config = file.name == "config.json" and isinstance(content, dict)
    return own_auto_map(content.get("model_type")) if is_config else {}


def _read(file: Path) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: can't be read as JSON ({error}); save the model again") from None
    return content if isinstance(content, dict | list) else []


def _tell(source: str | Path, name: str, removed: list[str]) -> None:
    for field in removed:
        print(f"{source}: {name}: {field} names code of others; removed", file=sys.stderr)
