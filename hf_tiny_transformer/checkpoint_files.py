"""Model directories: their config.json, tensors and tokenizer, with errors that a user can act on."""

import json
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from . import foreign_code
from .families import FAMILIES
from .runs import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)


def open_ours(directory: str | PathLike) -> PreTrainedModel:
    """A checkpoint of any of our families as the class it was saved from, in evaluation mode.

    Raises:
        UserError: not a checkpoint of ours, or not a whole one: every weight must come from the file.
    """
    directory = Path(directory)
    content = read_config_json(directory)
    model_class = _class_of(content, directory / "config.json")
    try:
        model, loading = model_class.from_pretrained(directory, use_safetensors=True, output_loading_info=True)
    except (SafetensorError, StrictDataclassError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{directory}: cannot be opened ({error})") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if loading[kind]:
            raise UserError(f"{directory}: {kind.replace('_keys', '')} weights: {', '.join(sorted(loading[kind]))}")
    foreign_code.strip_loaded(directory, model=model)
    return model.eval()


def _class_of(content: dict[str, Any], file: Path) -> type[PreTrainedModel]:
    """The class that a config.json names in `architectures`."""
    families = {config_class.model_type: set(table.values()) for config_class, table in FAMILIES.items()}
    model_type = content.get("model_type")
    if model_type not in families:
        raise UserError(f"{file}: model_type is {model_type!r}; ours are {', '.join(families)}")
    classes = {model_class.__name__: model_class for model_class in families[model_type]}
    architectures = content.get("architectures") or []
    if len(architectures) != 1 or architectures[0] not in classes:
        raise UserError(f"{file}: architectures is {architectures}; it must name one of {', '.join(sorted(classes))}")
    return classes[architectures[0]]


def copy_tokenizer_files(source: str | PathLike, target: str | PathLike) -> list[str]:
    """Copies the tokenizer files of a model directory into another, but for what names code in them, and returns their
    names."""
    names = [name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    for name in names:
        shutil.copyfile(Path(source) / name, Path(target) / name)
    foreign_code.strip_files(Path(target), source)
    return names


def read_config_json(directory: str | PathLike) -> dict[str, Any]:
    """The parsed config.json of a model directory.

    Raises:
        UserError: no such directory or file, or it holds no JSON object.
    """
    file = Path(directory) / "config.json"
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such directory")
    if not file.is_file():
        raise UserError(f"{directory}: holds no config.json; name a model directory")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold a JSON object")
    return content


def read_safetensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory by their names in the file.

    Raises:
        UserError: no safetensors there, or not a whole file of them.
    """
    index = directory / "model.safetensors.index.json"
    files = [directory / "model.safetensors"]
    if index.is_file() and not files[0].is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: is not an index of safetensors shards ({error})") from error
        files = [directory / Path(shard).name for shard in sorted(shards)]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.is_file():
            if any(directory.glob("*.bin")):
                raise UserError(f"{file}: no such file; only safetensors is read: convert the .bin weights to it first")
            raise UserError(f"{file}: no such file; the checkpoint has no weights")
        try:
            tensors.update(load_file(file))
        except SafetensorError as error:
            raise UserError(f"{file}: is not a whole safetensors file ({error})") from error
    return tensors
