# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""What the configurations of all families share: where one is saved, the family's code goes along."""

import sys
from os import PathLike
from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save


class TinyTransformerConfig(PreTrainedConfig):
    """No model is built from it alone."""

    def __new__(cls, *args, **kwargs):
        """Where there is a configuration, copied and unpickled ones included, the Auto classes know its models."""
        cls._model_classes()
        return super().__new__(cls)

    @classmethod
    def _model_classes(cls) -> dict[str, type]:
        """Auto class -> model class, from the package's table, which registers all of them when it is first read.

        Empty for a subclass elsewhere, and in a copy of this file that travelled with a checkpoint: transformers itself
        copies that code on, and registers nothing.
        """
        families = getattr(sys.modules.get(__package__), "FAMILIES", {})
        return {auto_class.__name__: model_class for auto_class, model_class in families.get(cls, {}).items()}

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As transformers does it. The family's source files then lie beside config.json, and its `auto_map` names all
        classes of the family, so that a Python without this package opens the directory with `trust_remote_code=True`.

        transformers' own way (`register_for_auto_class`) names the one class that was saved, fails where FSDP has put
        a class of its own in its place, and is inherited by classes that no Auto class stands for.
        """
        model_classes = self._model_classes()
        if model_classes:
            opened = {"AutoConfig": type(self), **model_classes}
            self.auto_map = {name: f"{c.__module__.rpartition('.')[2]}.{c.__name__}" for name, c in opened.items()}
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            for model_class in model_classes.values():
                custom_object_save(model_class, save_directory)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
