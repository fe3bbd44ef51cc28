"""Transformer models for Hugging Face's stack. Importing this package registers them with the Auto classes."""
# ruff: noqa: F403

from importlib import import_module
from typing import TYPE_CHECKING

from .families import FAMILIES as FAMILIES
from .families import MODULES, register

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` imports a class when it is first used
    from .configuration_bert import *
    from .configuration_decoder import *
    from .configuration_encoder import *
    from .configuration_image import *
    from .configuration_seq2seq import *
    from .modeling_bert import *
    from .modeling_decoder import *
    from .modeling_encoder import *
    from .modeling_image import *
    from .modeling_seq2seq import *
else:

    def __getattr__(name: str) -> type:
        """Import the file of a class and return the class."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(MODULES[name]), name)

    def __dir__() -> list[str]:
        """List the classes that are not imported yet, too."""
        return sorted({*globals(), *MODULES})


__version__ = "0.1.0"

register()
