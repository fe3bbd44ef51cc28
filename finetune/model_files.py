"""Config, tokenizer and weights of a model directory or Hub model, with errors that a user can act on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_tiny_transformer import foreign_code
from hf_tiny_transformer.runs import UserError

LONGEST = 10**9  # tokens: where nothing limits them


def read_config(source: str, *, trust_remote_code: bool = False, **changes: Any) -> PreTrainedConfig:
    """The config of a directory or Hub model, with `changes` to its fields.

    Args:
        trust_remote_code: run the code that it names, if any.

    Raises:
        UserError: it is missing or broken, can't be read without code of its own, or the Hub can't be reached.
    """
    _check_directory(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **changes)
    except Exception as error:  # transformers and huggingface_hub each bring their own types
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{Path(source) / 'config.json'}: auto_map names code of its own, without which this model can't be "
                "opened; read that code, and add --trust-remote-code to run it"
            ) from None
        if Path(source).is_dir():
            raise UserError(f"{Path(source) / 'config.json'}: {_short(error)}; mend the field") from None
        first_line = str(error).strip().split("\n")[0]
        raise UserError(
            f"--model {source}: neither a directory here nor a model that can be read from the Hub "
            f"({first_line}); check the name and the network"
        ) from None
    for name in changes.keys() - set(dir(config)):  # what its class does not know, `from_pretrained` leaves out
        setattr(config, name, changes[name])
    if not trust_remote_code:
        foreign_code.strip_loaded(source, config=config)
    return config


def read_tokenizer(
    source: str, config: PreTrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a token to pad with, which `config` learns of.

    Args:
        trust_remote_code: run the code that it names, if any. What names it is taken off, so that it is not saved.

    Raises:
        UserError: it is missing, can't be read, or has more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(
            f"--model {source}: its tokenizer can't be read ({_short(error)}); save it there again"
        ) from None
    foreign_code.strip_loaded(source, tokenizer=tokenizer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        # Without tokenizer files transformers builds an empty tokenizer of the config's kind and says nothing.
        raise UserError(f"--model {source}: holds no tokenizer (tokenizer.json); save the model's tokenizer there")
    positions = getattr(config, "vocab_size", None)
    if positions is not None and max(vocabulary.values()) >= positions:
        raise UserError(
            f"--model {source}: the tokenizer's highest id is {max(vocabulary.values())}, but config.json's vocab_size "
            f"is {positions}; save the tokenizer that belongs to the model"
        )
    if tokenizer.pad_token is None:  # GPT-like models: padding is masked, so that any token will do
        if tokenizer.eos_token is None:
            raise UserError(f"--model {source}: its tokenizer has no pad_token; set one in tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def usable_length(
    wanted: int | None, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, default: int = LONGEST
) -> int:
    """Tokens per text: `wanted`, or `default`, or as many as the model takes where those are fewer.

    Raises:
        UserError: it does not take as many as are wanted.
    """
    limit = min(getattr(config, "max_position_embeddings", None) or LONGEST, tokenizer.model_max_length)
    if wanted is not None and wanted > limit:
        raise UserError(f"--max_length {wanted}: this model takes at most {limit} tokens; choose at most {limit}")
    return wanted or min(default, limit)


def check_weights(source: str, model: PreTrainedModel, info: dict) -> None:
    """The head may be new (another task's, or none before); the trunk must come from the file, whole.

    Args:
        info: what `from_pretrained` returns with `output_loading_info`.

    Raises:
        UserError: it does not.
    """
    trunk = f"{model.base_model_prefix}."
    for key, in_file, in_model in sorted(info["mismatched_keys"]):
        if key.startswith(trunk):
            raise UserError(
                f"--model {source}: the weights do not match config.json: {key} is {tuple(in_file)} in the file and "
                f"{tuple(in_model)} by the config; use the config.json that was saved with these weights"
            )
    missing = sorted(key for key in info["missing_keys"] if key.startswith(trunk) and "pooler" not in key)
    if missing:
        raise UserError(
            f"--model {source}: config.json asks for {len(missing)} weights that its files lack (first: {missing[0]}); "
            "use the config.json that was saved with these weights"
        )
    known = set(model.state_dict())
    for key in sorted(info["unexpected_keys"]):
        twin = re.sub(r"\.\d+\.", ".0.", key)
        if twin != key and (twin in known or trunk + twin in known):
            raise UserError(
                f"--model {source}: its files hold {key}, a layer that config.json does not ask for; "
                "use the config.json that was saved with these weights"
            )


def weights_error(source: str, error: Exception) -> UserError:
    """What to raise when a model can't be built."""
    directory = Path(source)
    if directory.is_dir() and not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
        path = directory / "model.safetensors"
        return UserError(f"{path}: no such file; save the model there, or use --from_scratch")
    if type(error).__name__ == "SafetensorError":
        files = sorted(file.name for file in directory.glob("*.safetensors")) or ["model.safetensors"]
        return UserError(
            f"{directory / files[0]}: truncated or corrupt ({_short(error)}); copy or save the model again"
        )
    return UserError(
        f"--model {source}: can't be built ({type(error).__name__}: {_short(error)}); mend its config.json or weights"
    )


def _check_directory(source: str) -> None:
    path = Path(source)
    if path.is_file():
        raise UserError(f"--model {source}: is a file; name the directory that holds it")
    if path.is_dir():
        _check_config_file(path / "config.json")
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) is None:  # what can't be a Hub id was meant as a path
        raise UserError(f"--model {source}: no such directory; name one that holds config.json, or a Hub id")


def _check_config_file(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --model needs config.json, model.safetensors and a tokenizer") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); save the model again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error}); save the model again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: no field model_type; save the model with save_pretrained")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
