"""The one way to open a checkpoint: config, tokenizer and weights of a directory or Hub model, with one-line errors.

No code of a checkpoint runs unless the caller passes `trust_remote_code=True`, which only a user's flag may do. Whether
it ran or not, models and tokenizers are returned without the fields that name it, so that nothing saved from them does.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from . import foreign_code
from .errors import DivergedError, UserError, first_line, one_line
from .files import read_json

UNLIMITED = 10**9  # tokens, where nothing limits the length of a text
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
)
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_ADVICE = "save the model there again with save_pretrained"

logger = logging.getLogger(__name__)


def read_config_json(source: str | Path, flag: str = "--model") -> dict[str, Any]:
    """Return the config.json of a model directory, a JSON object with a `model_type`, or raise a UserError."""
    directory = Path(source)
    if directory.is_file():
        raise UserError(f"{flag} {source}: is a file; name the directory that holds it")
    if not directory.is_dir():
        raise UserError(f"{flag} {source}: no such directory; name one that holds config.json")
    content = read_json(directory / "config.json", _ADVICE)
    if not isinstance(content.get("model_type"), str):
        raise UserError(f"{directory / 'config.json'}: no field model_type; {_ADVICE}")
    return content


def read_config(
    source: str | Path, *, flag: str = "--model", trust_remote_code: bool = False, **changes: Any
) -> PreTrainedConfig:
    """Return the config of a directory or Hub model, with the fields `changes`.

    A trusted config keeps the names of the model's own code, which `load_model` needs and then removes. `flag`, here
    and below, is the flag that named the model; errors begin with it.
    """
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(str(source)):  # anything that cannot be a Hub id was meant as a path
        read_config_json(source, flag)
    file = path / "config.json"
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **changes)
    except Exception as error:  # transformers and huggingface_hub each have their own types
        if "trust_remote_code" in str(error):
            problem = "auto_map names code without which this model cannot be opened"
            raise UserError(f"{file}: {problem}; read that code, and add --trust-remote-code to run it") from None
        if path.is_dir():
            raise UserError(f"{file}: {config_problem(error)}; correct the field") from None
        problem = f"neither a directory nor a readable Hub model ({first_line(error)})"
        raise UserError(f"{flag} {source}: {problem}; check the name and the network") from None
    for name in changes.keys() - set(dir(config)):  # from_pretrained drops fields that the class does not know
        setattr(config, name, changes[name])
    if not trust_remote_code:
        foreign_code.strip_loaded(source, config=config)
    return config


def config_problem(error: Exception) -> str:
    """Return why a config is invalid, with the field; strict dataclasses wrap the exception of each validator."""
    field = re.search(r"field '(\w+)'", str(error))
    return (f"{field[1]}: " if field else "") + one_line(error.__cause__ or error, 200)


def read_tokenizer(
    source: str | Path, config: PreTrainedConfig, *, flag: str = "--model", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer.

    A tokenizer without a padding token pads with its end token, and `config.pad_token_id` is set where it is missing.
    """
    where = f"{flag} {source}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        vocabulary = tokenizer.get_vocab()
    except Exception as error:  # tokenizers raises bare exceptions
        problem = f"its tokenizer cannot be read ({one_line(error, 200)})"
        raise UserError(f"{where}: {problem}; save it there again") from None
    foreign_code.strip_loaded(source, tokenizer=tokenizer)
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        # Without tokenizer files transformers builds an empty tokenizer of the config's kind, without a message.
        raise UserError(f"{where}: holds no tokenizer (tokenizer.json); save the model's tokenizer there")
    size, highest = getattr(config, "vocab_size", None) or UNLIMITED, max(vocabulary.values())
    if highest >= size:
        problem = f"the tokenizer's highest id is {highest}, but vocab_size in config.json is {size}"
        raise UserError(f"{where}: {problem}; save the tokenizer that belongs to the model")
    if tokenizer.pad_token is None:  # GPT-like models: padding is masked, so that any token will do
        if tokenizer.eos_token is None:
            raise UserError(f"{where}: its tokenizer has no pad_token; set one in tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def load_model(
    source: str | Path,
    model_class: Any,
    config: PreTrainedConfig,
    *,
    flag: str = "--model",
    new_head: bool = False,
    from_scratch: bool = False,
    exact: bool = False,
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Return a model in evaluation mode, with every weight accounted for.

    Args:
        model_class: An Auto class or a model class.
        new_head: Allow weights outside the trunk to be missing or of another shape; they are initialised from `seed`
            and named in the log.
        from_scratch: Initialise all weights from `seed` and read none.
        exact: Refuse weights that the model does not have.
        dtype: Of the weights; "auto" keeps the dtype of the files.
        options: More arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        UserError: Weights are missing, unreadable or of another shape than the config states, or no such model exists.
        DivergedError: Weights are not finite.
    """
    set_seed(seed)
    is_auto = hasattr(model_class, "from_config")
    options |= {"dtype": dtype} | ({"trust_remote_code": trust_remote_code} if is_auto else {})
    info: dict[str, Any] = {}
    try:
        if from_scratch:
            model = (model_class.from_config if is_auto else model_class._from_config)(config, **options)
        else:
            model, info = model_class.from_pretrained(
                source,
                config=config,
                use_safetensors=True if Path(source).is_dir() else None,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # safetensors, torch, transformers and huggingface_hub each have their own types
        raise _weights_error(source, error, flag) from None
    foreign_code.strip_loaded(source, model=model)
    if info:
        _check_weights(f"{flag} {source}", model, info, new_head, exact)
        require_finite(model.state_dict(), f"{flag} {source}", "name a model whose training did not diverge")
    return model.eval()


def require_finite(weights: Mapping[str, torch.Tensor], where: str, advice: str) -> None:
    """Raise a DivergedError if a tensor has a number that is not finite."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DivergedError(f"{where}: {name} has numbers that are not finite; {advice}")


def saved_class(source: str | Path, config: PreTrainedConfig, flag: str = "--model") -> type[PreTrainedModel]:
    """Return the class, ours or transformers', that a checkpoint was saved from, by `architectures` in its config."""
    import hf_tiny_transformer

    names = config.architectures or []
    name = names[0] if len(names) == 1 else ""
    found = getattr(hf_tiny_transformer, name, None) or getattr(transformers, name, None) if name else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config):
        return found
    problem = f"architectures in config.json is {names}; it must name one class of model_type {config.model_type!r}"
    raise UserError(f"{flag} {source}: {problem}")


def usable_length(
    wanted: int | None, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, default: int = UNLIMITED
) -> int:
    """Return the tokens per text: `wanted`, which must be within the model's limit, else `default` or the limit."""
    limit = min(getattr(config, "max_position_embeddings", None) or UNLIMITED, tokenizer.model_max_length)
    if wanted is not None and wanted > limit:
        raise UserError(f"--max-length {wanted}: this model takes at most {limit} tokens; choose at most {limit}")
    return wanted or min(default, limit)


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy the tokenizer files of a model directory into another, without names of foreign code."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    foreign_code.strip_files(target, source)


def _check_weights(where: str, model: PreTrainedModel, info: dict[str, Any], new_head: bool, exact: bool) -> None:
    """Log the newly initialised weights, after checking that each is allowed to be new."""
    trunk = f"{model.base_model_prefix}." if model.base_model is not model else ""
    advice, name = "use the config.json that was saved with these weights", type(model).__name__

    def must_be_there(key: str) -> bool:
        return not new_head or (key.startswith(trunk) and "pooler" not in key)

    for key, in_file, in_model in sorted(info["mismatched_keys"]):
        if must_be_there(key):
            shapes = f"{tuple(in_file)} in the file and {tuple(in_model)} by the config"
            raise UserError(f"{where}: the weights do not match config.json: {key} is {shapes}; {advice}")
    if missing := sorted(filter(must_be_there, info["missing_keys"])):
        advice = advice if new_head else "name a model that was trained for this"
        raise UserError(f"{where}: {len(missing)} weights of {name} are missing (first: {missing[0]}); {advice}")
    known, extra = set(model.state_dict()), sorted(info["unexpected_keys"])
    for key in extra:
        twin = re.sub(r"\.\d+\.", ".0.", key)
        if twin != key and (twin in known or trunk + twin in known):
            raise UserError(f"{where}: holds {key}, a layer that config.json does not have; {advice}")
    if exact and extra:
        raise UserError(f"{where}: {len(extra)} weights that {name} lacks (first: {extra[0]})")
    if new := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        logger.warning("%s lacks these weights, which are newly initialised: %s", where, ", ".join(new))


def _weights_error(source: str | Path, error: Exception, flag: str) -> UserError:
    directory = Path(source)
    if directory.is_dir() and not any(directory.glob("*.safetensors")):
        what = "only safetensors are read; convert the .bin weights" if any(directory.glob("*.bin")) else _ADVICE
        return UserError(f"{directory / WEIGHTS_FILE}: no such file; {what}")
    if isinstance(error, SafetensorError):
        files = sorted(directory.glob("*.safetensors")) or [directory / WEIGHTS_FILE]
        return UserError(f"{files[0]}: truncated or corrupt ({one_line(error, 200)}); copy or save the model again")
    reason = f"{type(error).__name__}: {one_line(error, 200)}"
    return UserError(f"{flag} {source}: cannot be opened ({reason}); correct its config.json or weights")
