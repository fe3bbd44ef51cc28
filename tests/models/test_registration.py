"""Protects registration: after importing the package, every Auto class opens every family, in any order of imports."""

import os
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from transformers import AutoModel, PreTrainedModel

import hf_tiny_transformer as ours
from hf_tiny_transformer.families import MODULES

ROOT = Path(__file__).parents[2]
OPEN_ALL = """
import transformers
import hf_tiny_transformer
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
for config_class, names in hf_tiny_transformer.FAMILIES.items():
    config = transformers.AutoConfig.for_model(config_class.model_type, **sizes)
    assert type(config) is config_class
    for auto_class, name in names.items():
        model = getattr(transformers, auto_class).from_config(config)
        assert type(model) is getattr(hf_tiny_transformer, name), (auto_class, type(model))
"""
ORDERS = {
    "package first": "import hf_tiny_transformer\nfrom transformers import AutoModelForMaskedLM",
    "Auto classes first": "from transformers import AutoModelForMaskedLM\nimport hf_tiny_transformer",
    "file of a model": "from hf_tiny_transformer.modeling_seq2seq import TinyTransformerSeq2SeqModel",
    "pickled config": f"import pickle\npickle.loads({pickle.dumps(ours.TinyTransformerBertConfig())!r})",
}


def python(code: str) -> str:
    """Run code in a new process, with warnings as errors, and return what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
def test_every_auto_class_opens_every_family(order: str):
    python(ORDERS[order] + OPEN_ALL)


def test_import_is_fast_after_the_auto_classes():
    """The target is 0.2 s; the limit here leaves room for a slow machine. Model files are imported at first use."""
    code = """
from transformers import AutoModelForMaskedLM
import sys, time
start = time.process_time()
import hf_tiny_transformer
print(time.process_time() - start)
assert "transformers.modeling_utils" not in sys.modules
"""
    assert float(python(code)) < 0.4


def test_names_of_the_package():
    """Every class of the table is an attribute of the package, and a type checker finds the file of each."""
    for name, module in MODULES.items():
        assert getattr(ours, name) is getattr(import_module(module), name)
    assert set(MODULES) <= set(dir(ours))
    with pytest.raises(AttributeError, match="TinyTransformerNothing"):
        ours.TinyTransformerNothing  # noqa: B018
    starred = re.findall(r"from \.(\w+) import \*", Path(ours.__file__).read_text())
    assert {f"{ours.__name__}.{module}" for module in starred} == set(MODULES.values())


def test_no_model_class_is_missing_from_the_table():
    for module in set(MODULES.values()):
        for name, value in vars(import_module(module)).items():
            is_public = re.fullmatch(r"TinyTransformer\w+(Model|For[A-Z]\w+)", name) and not name.endswith(
                "TrainedModel"
            )
            if is_public and isinstance(value, type) and issubclass(value, PreTrainedModel):
                assert name in MODULES


def test_a_user_can_register_a_subclass():
    """Replacing a class requires `exist_ok=True`."""

    class Own(ours.TinyTransformerEncoderModel):
        pass

    config_class = ours.TinyTransformerEncoderConfig
    with pytest.raises(ValueError, match="already used"):
        AutoModel.register(config_class, Own)
    AutoModel.register(config_class, Own, exist_ok=True)
    try:
        assert type(AutoModel.from_config(config_class(num_hidden_layers=1))) is Own
    finally:
        del AutoModel._model_mapping._extra_content[config_class]
    assert type(AutoModel.from_config(config_class(num_hidden_layers=1))) is ours.TinyTransformerEncoderModel
