"""When the families become known to the Auto classes: not when this package is imported, which would import torch, but
before anyone can ask an Auto class for them.

1. transformers' table of configurations gets ours (`register_configs`) as soon as its module is loaded: at once where
   it is already, else by a finder in `sys.meta_path` that waits for this one module.
2. The models follow (`families.py`) when the first configuration of ours is made (`configuration_base.py`), which no
   Auto class can do without, or when the first of our classes is asked for (`__init__.py`). They cannot come along with
   1: transformers loads its Auto classes while modules that every model imports are half loaded themselves.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register_configs() -> None:
    """Makes the families' configurations known to `AutoConfig`; again is the same as once.

    It runs while its caller is being loaded: the configurations import nothing that `AUTO_CONFIG` has not imported.
    """
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration_bert import TinyTransformerBertConfig
    from .configuration_decoder import TinyTransformerDecoderConfig
    from .configuration_encoder import TinyTransformerEncoderConfig
    from .configuration_image import TinyTransformerEncoderImageConfig
    from .configuration_seq2seq import TinyTransformerSeq2SeqConfig

    for config_class in (
        TinyTransformerBertConfig,
        TinyTransformerEncoderConfig,
        TinyTransformerEncoderImageConfig,
        TinyTransformerDecoderConfig,
        TinyTransformerSeq2SeqConfig,
    ):
        AutoConfig.register(config_class.model_type, config_class)


class _ThenRegister:
    """The loader that the module has anyway, and `register_configs` after it."""

    def __init__(self, loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader  # who reads its source later on finds no trace of us
        self.loader.exec_module(module)
        register_configs()


class _AutoConfigFinder:
    """Finds the one module by the finders after it. It stays: a module that is reloaded comes with an empty table."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AUTO_CONFIG:
            return None
        for finder in sys.meta_path[sys.meta_path.index(cls) + 1 :]:
            if not hasattr(finder, "find_spec"):  # of the kind that Python has given up
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _ThenRegister(spec.loader)
                return spec
        return None


def register_when_loaded() -> None:
    """Called by the package whenever it is imported; nothing of transformers is imported by it."""
    if _AutoConfigFinder not in sys.meta_path:
        sys.meta_path.insert(0, _AutoConfigFinder)
    # After that, or a thread that loads it right now would slip through; import_module waits for such a one.
    if AUTO_CONFIG in sys.modules or not _will_be_loaded():
        importlib.import_module(AUTO_CONFIG)
        register_configs()


def _will_be_loaded() -> bool:
    """Whether this transformers keeps its table of configurations where the finder waits."""
    transformers = importlib.util.find_spec("transformers")  # a look at the disk
    if transformers is None or not transformers.submodule_search_locations:
        return True  # nothing to wait for
    file = Path(*AUTO_CONFIG.split(".")[1:]).with_suffix(".py")
    return any(Path(place, file).is_file() for place in transformers.submodule_search_locations)
