# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""What all configurations share: validated fields, and checkpoints that carry their family's code.

The package imports all configurations when it is imported, so these files import only what transformers' Auto classes
have loaded already. `transformers.utils.type_validators` would load half of transformers.
"""

import shutil
from os import PathLike
from pathlib import Path

from huggingface_hub.dataclasses import as_validated_field
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

# Config class -> the `auto_map` of its checkpoints. `families.py` fills it. In the copy of this file in a checkpoint it
# stays empty: there transformers itself copies the code to the next checkpoint.
AUTO_MAPS: dict[type[PreTrainedConfig], dict[str, str]] = {}


class TinyTransformerConfig(PreTrainedConfig):
    """Base class of the configurations."""

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: object) -> None:
        """Save config.json and the source files of the family.

        `auto_map` in config.json names all classes of the family, so that a Python without this package opens the
        directory with `trust_remote_code=True`. `register_for_auto_class` of transformers names the saved class only,
        fails if FSDP has replaced that class, and is inherited by subclasses that no Auto class opens.

        Args:
            save_directory: Created if missing.
            push_to_hub: Whether to upload the directory to the Hub.
            kwargs: For `PreTrainedConfig.save_pretrained`.
        """
        auto_map = AUTO_MAPS.get(type(self))  # none for a subclass defined elsewhere
        if auto_map is not None:
            self.auto_map = dict(auto_map)
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            for module in {reference.partition(".")[0] for reference in auto_map.values()}:
                source = Path(__file__).with_name(f"{module}.py")
                for file in (source, *map(Path, get_relative_import_files(source))):
                    shutil.copyfile(file, Path(save_directory, file.name))
        super().save_pretrained(save_directory, push_to_hub, **kwargs)


@as_validated_field
def positive_field(value: int | float) -> None:
    """Require a value above zero."""
    if not value > 0:
        raise ValueError(f"must be positive, got {value}")


@as_validated_field
def probability_field(value: int | float) -> None:
    """Require a value from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"must be between 0 and 1, got {value}")


@as_validated_field
def activation_field(value: str) -> None:
    """Require the name of an activation function of transformers."""
    from transformers.activations import ACT2FN

    if value not in ACT2FN:
        raise ValueError(f"must be one of {', '.join(ACT2FN)}; got {value}")
