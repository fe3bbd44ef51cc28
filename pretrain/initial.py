"""--init: a run that begins with the weights, the config and the tokenizer of another model."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from hf_tiny_transformer import foreign_code
from hf_tiny_transformer.checkpoint_files import read_config_json
from hf_tiny_transformer.conversion_bert import config_from_stock, load_stock_bert, read_stock_config
from hf_tiny_transformer.runs import UserError

from .recipe import CONFIG_CLASSES, OBJECTIVES, Recipe

STOCK = "bert"  # model_type of the stock checkpoints that are converted on the way
# decided by the tokenizer, in runs that train one; here they come along with the config
_TOKENIZER_FIELDS = ("vocab_size", "decoder_start_token_id")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialModel:
    """A model directory to begin with; `config` is one of ours, also where the directory is a stock one. Code that its
    files name is run only with `trust_remote_code`, and never passed on."""

    directory: Path
    family: str
    config: PreTrainedConfig
    is_stock: bool
    trust_remote_code: bool = False

    def tokenizer(self, *, quiet: bool = True) -> PreTrainedTokenizerFast:
        """Opened anew each time: packing changes its settings. A line says what was removed from it, unless `quiet`."""
        tokenizer = AutoTokenizer.from_pretrained(self.directory, trust_remote_code=self.trust_remote_code)
        foreign_code.strip_loaded(self.directory, tokenizer=tokenizer, quiet=quiet)
        return tokenizer

    def tokenizer_fingerprint(self) -> str:
        """Of what decides a text's ids; how it pads and truncates is no part of it."""
        content = json.loads(self.tokenizer().backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def load(self, model_class: type[PreTrainedModel]) -> PreTrainedModel:
        """Its weights in fp32, ready for training. A head that it lacks is new, and a line says so.

        Raises:
            UserError: unreadable weights, or some of the trunk missing.
        """
        if self.is_stock:
            return load_stock_bert(self.directory, model_class).float().train()
        try:
            model, loading = model_class.from_pretrained(
                self.directory, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # safetensors, torch and transformers each raise their own kind for a damaged file
            raise UserError(f"--init {self.directory}: cannot be opened ({type(error).__name__}: {error})") from None
        missing = sorted(loading["missing_keys"])
        if in_trunk := [name for name in missing if name.startswith("model.") and "pooler" not in name]:
            raise UserError(f"--init {self.directory}: weight {in_trunk[0]} ({len(in_trunk)} such) is missing")
        if missing:
            logger.warning("%s lacks these weights, newly initialised: %s", self.directory, ", ".join(missing))
        foreign_code.strip_loaded(self.directory, model=model, quiet=True)
        return model.train()


def open_initial(directory: str | Path, *, trust_remote_code: bool = False) -> InitialModel:
    """Reads what a run must know beforehand; the weights come later.

    Raises:
        UserError: no such directory, neither a model of ours nor a stock bert, or no tokenizer to train it with.
    """
    directory = Path(directory)
    model_type = read_config_json(directory).get("model_type")
    families = {config_class.model_type: family for family, config_class in CONFIG_CLASSES.items()}
    if model_type == STOCK:
        config = config_from_stock(read_stock_config(directory), source=directory / "config.json")
        initial = InitialModel(directory, "bert", config, True, trust_remote_code)
    elif model_type in families:
        family = families[model_type]
        try:
            config = CONFIG_CLASSES[family].from_pretrained(directory)
        except Exception as error:  # strict dataclasses wrap each validator's error in a type of their own
            raise UserError(f"{directory / 'config.json'}: {error.__cause__ or error}") from None
        foreign_code.strip_loaded(directory, config=config)
        initial = InitialModel(directory, family, config, False, trust_remote_code)
    else:
        known = ", ".join([*families, STOCK])
        raise UserError(f"{directory / 'config.json'}: model_type is {model_type!r}; --init takes one of {known}")
    _check_tokenizer(initial)
    return initial


def adapt_recipe(recipe: Recipe, initial: InitialModel) -> Recipe:
    """The recipe with the initial model's family and shape in place of its own.

    Raises:
        UserError: it trains in a way that this family does not know.
    """
    if recipe.objective not in OBJECTIVES[initial.family]:
        raise UserError(
            f"--init {initial.directory}: is of family {initial.family}, which the recipe's {recipe.objective} does "
            f"not train; name a recipe with {' or '.join(OBJECTIVES[initial.family])} (--recipe)"
        )
    tokenizer = initial.tokenizer()
    own = {f.name for f in fields(initial.config)} - {f.name for f in fields(PreTrainedConfig)}
    kept = sorted(name for name in own if name not in _TOKENIZER_FIELDS and not name.endswith("_token_id"))
    return replace(
        recipe,
        family=initial.family,
        model={name: getattr(initial.config, name) for name in kept},
        vocab_size=len(tokenizer),
        lowercase=getattr(tokenizer.backend_tokenizer.normalizer, "lowercase", recipe.lowercase),
        embedding_init="random",  # neither: they are the initial model's
        position_init="random",
    )


def _check_tokenizer(initial: InitialModel) -> None:
    where = f"--init {initial.directory}"
    try:
        tokenizer = initial.tokenizer(quiet=False)
        vocabulary = tokenizer.get_vocab()
        needed = ["pad_token", "cls_token", "sep_token"]
        needed += ["bos_token", "eos_token"] if initial.family in ("decoder", "seq2seq") else ["mask_token"]
        missing = [name for name in needed if getattr(tokenizer, name) is None]
    except Exception as error:  # tokenizers raises bare exceptions
        raise UserError(f"{where}: its tokenizer can't be read ({error}); save it there again") from None
    if not getattr(tokenizer, "is_fast", False) or len(vocabulary) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{where}: holds no tokenizer.json; save the model's (fast) tokenizer there")
    if missing:
        raise UserError(f"{where}: its tokenizer has no {', '.join(missing)}; set it in tokenizer_config.json")
    if max(vocabulary.values()) >= initial.config.vocab_size:
        raise UserError(
            f"{where}: the tokenizer's highest id is {max(vocabulary.values())}, but config.json's vocab_size is "
            f"{initial.config.vocab_size}; save the tokenizer that belongs to the model"
        )
