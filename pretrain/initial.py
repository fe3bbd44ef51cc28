"""--init: a run that starts with the weights, the config and the tokenizer of another model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from hf_tiny_transformer.common.checkpoints import load_model, read_config, read_config_json, read_tokenizer
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.convert.stock import STOCK_FAMILIES, config_from_stock, load_stock

from .data.tokenizer import GENERATES
from .recipe import CONFIG_CLASSES, OBJECTIVES, Family, Recipe

FLAG = "--init"
# set by the tokenizer in runs that train one; here they are part of the config
_TOKENIZER_FIELDS = ("vocab_size", "decoder_start_token_id")


@dataclass(frozen=True)
class InitialModel:
    """A model directory to start from; `config` is of one of our families, also for a stock checkpoint."""

    directory: Path
    family: Family
    config: PreTrainedConfig
    is_stock: bool
    trust_remote_code: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return a new copy of its tokenizer, which packing changes."""
        tokenizer = read_tokenizer(self.directory, self.config, flag=FLAG, trust_remote_code=self.trust_remote_code)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"--init {self.directory}: has no tokenizer.json; save the model's fast tokenizer there")
        return tokenizer

    def tokenizer_fingerprint(self) -> str:
        """Return a hash of everything that decides the ids of a text; padding and truncation do not."""
        content = json.loads(self.tokenizer().backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def load(self, model_class: type[PreTrainedModel], seed: int) -> PreTrainedModel:
        """Return its weights in fp32, ready for training; a missing head is initialised from `seed` and logged.

        Raises:
            UserError: Weights are unreadable, or some of the trunk are missing.
        """
        if self.is_stock:
            return load_stock(self.directory, model_class, flag=FLAG, seed=seed).float().train()
        return load_model(self.directory, model_class, self.config, flag=FLAG, new_head=True, seed=seed).train()


def open_initial(directory: str | Path, *, trust_remote_code: bool = False) -> InitialModel:
    """Read the config and the tokenizer of a model directory; the weights are loaded later.

    Raises:
        UserError: There is no such directory, it is neither one of our models nor a stock one that we convert, or it
            has no usable tokenizer.
    """
    directory = Path(directory)
    model_type = read_config_json(directory, FLAG)["model_type"]
    families = {config_class.model_type: family for family, config_class in CONFIG_CLASSES.items()}
    stock = {config_class.model_type: families[ours.model_type] for config_class, ours in STOCK_FAMILIES.items()}
    if model_type not in families | stock:
        known = ", ".join(families | stock)
        raise UserError(f"{directory / 'config.json'}: model_type is {model_type!r}; --init takes one of {known}")
    config = read_config(directory, flag=FLAG)
    if model_type in stock:
        config = config_from_stock(config, source=directory / "config.json")
    initial = InitialModel(directory, (families | stock)[model_type], config, model_type in stock, trust_remote_code)
    where, tokenizer = f"--init {directory}", initial.tokenizer()
    needed = ("bos_token", "eos_token") if initial.family in GENERATES else ("mask_token",)
    missing = [name for name in ("pad_token", "cls_token", "sep_token", *needed) if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(f"{where}: its tokenizer has no {', '.join(missing)}; set it in tokenizer_config.json")
    return initial


def adapt_recipe(recipe: Recipe, initial: InitialModel) -> Recipe:
    """Return the recipe with the family and shape of the initial model.

    Raises:
        UserError: The family does not have the recipe's objective.
    """
    if recipe.objective not in OBJECTIVES[initial.family]:
        raise UserError(
            f"--init {initial.directory}: family {initial.family} cannot be trained with objective {recipe.objective}; "
            f"choose a recipe with {' or '.join(OBJECTIVES[initial.family])} (--recipe)"
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
        embedding_init="random",  # unused: both are the initial model's
        position_init="random",
    )
