# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Fields of a configuration that refuse a value out of range; the type is the annotation's business.

transformers' own (`transformers.utils.type_validators`) import half of transformers. Configurations are imported while
its Auto classes are being loaded, and so may need nothing that these do not need themselves (`registration.py`).
"""

from huggingface_hub.dataclasses import as_validated_field


@as_validated_field
def positive_field(value: int | float) -> None:
    """Above zero."""
    if not value > 0:
        raise ValueError(f"must be positive, got {value}")


@as_validated_field
def probability_field(value: int | float) -> None:
    """From zero to one."""
    if not 0 <= value <= 1:
        raise ValueError(f"must lie between 0 and 1, got {value}")


@as_validated_field
def activation_field(value: str) -> None:
    """A function that transformers has by this name."""
    from transformers.activations import ACT2FN

    if value not in ACT2FN:
        raise ValueError(f"must be one of {', '.join(ACT2FN)}; got {value}")
