"""Protects that importing the package costs next to nothing, and that the Auto classes know the families anyway."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from families import tiny_model, tiny_tokenizer

import hf_tiny_transformer as ours

ROOT = Path(__file__).parents[1]
ORDERS = {  # in each, an Auto class or one of ours is used at the end; sys.argv[1] is a model directory
    "the package first": """
import hf_tiny_transformer
from transformers import AutoModelForMaskedLM
AutoModelForMaskedLM.from_pretrained(sys.argv[1])""",
    "the Auto classes first": """
from transformers import AutoModelForMaskedLM
before = set(sys.modules)
import hf_tiny_transformer  # registers the configurations, for which that must be enough that is loaded already
assert all(name.startswith("hf_tiny_transformer") for name in set(sys.modules) - before), set(sys.modules) - before
AutoModelForMaskedLM.from_pretrained(sys.argv[1])""",
    "a stock model in between": """
import hf_tiny_transformer
from transformers.models.bert import modeling_bert
from transformers import AutoConfig, AutoModel
AutoModel.from_config(AutoConfig.for_model("tiny_transformer_bert"))""",
    "one of our classes": "from hf_tiny_transformer import TinyTransformerBertModel",
    "a configuration by its file": """
from hf_tiny_transformer.configuration_seq2seq import TinyTransformerSeq2SeqConfig
config = TinyTransformerSeq2SeqConfig()
from transformers import AutoModel
AutoModel.from_config(config)""",
    "a pickled configuration": """
import pathlib, pickle
config = pickle.loads(pathlib.Path(sys.argv[1], "config.pickle").read_bytes())
from transformers import AutoModel
AutoModel.from_config(config)""",
    "imported twice and reloaded": """
import importlib
import hf_tiny_transformer
from transformers.models.auto import configuration_auto
assert "tiny_transformer_bert" in configuration_auto.CONFIG_MAPPING
importlib.reload(hf_tiny_transformer)
importlib.reload(configuration_auto)  # comes with an empty table
assert "tiny_transformer_bert" in configuration_auto.CONFIG_MAPPING
for name in [name for name in sys.modules if name.startswith("hf_tiny_transformer")]:
    del sys.modules[name]
import hf_tiny_transformer
from transformers import pipeline
pipeline("fill-mask", sys.argv[1])""",
    "many threads": """
import threading, time, transformers  # its own first import is not for several threads at once
def work(number):
    time.sleep(number / 20)
    try:
        if number % 3 == 0:
            from transformers import AutoConfig
        import hf_tiny_transformer
        if number % 3 == 1:
            hf_tiny_transformer.TinyTransformerEncoderModel
        transformers.AutoConfig.from_pretrained(sys.argv[1])
    except BaseException as error:
        failed.append(error)
failed, threads = [], [threading.Thread(target=work, args=[number]) for number in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed""",
}
FORK = """
import json, os, sys, traceback
import accelerate, PIL.Image, torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor  # once for all
assert not any(name.startswith(("transformers", "hf_tiny_transformer")) for name in sys.modules)

def report():
    import transformers
    from transformers.models.auto import configuration_auto, image_processing_auto
    mappings = {name: getattr(getattr(transformers, name), "_model_mapping", None)
                for name in dir(transformers) if name.startswith("AutoModel")}
    return {
        "configs": [(key, c.__name__) for key, c in configuration_auto.CONFIG_MAPPING._extra_content.items()],
        "image processors": [c.__name__ for c in image_processing_auto.IMAGE_PROCESSOR_MAPPING._extra_content],
        "models": [(name, config.__name__, model.__name__) for name, mapping in mappings.items() if mapping is not None
                   for config, model in mapping._extra_content.items()],
    }

for order, code in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        try:
            exec(code, {"sys": sys})
            found = report()
        except BaseException:
            found = traceback.format_exc()
        with open(os.path.join(sys.argv[2], order), "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.waitpid(child, 0)
"""


def python(code: str, *arguments: object, given: str = "") -> str:
    """What `code` prints in a Python of its own, where warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    """A file for each order of imports: what is registered after it. Each is run in a fork of a Python that has neither
    transformers nor this package, but torch, which would take most of the time."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    root = tmp_path_factory.mktemp("registration")
    tiny_model("Encoder", "ForMaskedLM").save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    (root / "model" / "config.pickle").write_bytes(pickle.dumps(ours.TinyTransformerBertConfig()))
    (root / "reports").mkdir()
    python(FORK, root / "model", root / "reports", given=json.dumps(ORDERS))
    return root / "reports"


@pytest.mark.parametrize("order", ORDERS)
def test_whatever_is_imported_first_everything_is_registered_in_the_end(order: str, reports: Path):
    found = json.loads((reports / order).read_text())
    assert isinstance(found, dict), found
    assert sorted(map(tuple, found["configs"])) == sorted((c.model_type, c.__name__) for c in ours.FAMILIES)
    assert "TinyTransformerEncoderImageConfig" in found["image processors"]
    assert set(map(tuple, found["models"])) == {
        (auto.__name__, c.__name__, model.__name__)
        for c, table in ours.FAMILIES.items()
        for auto, model in table.items()
    }


def test_importing_it_imports_nothing_yet():
    """Torch and transformers come with the first class; where these fail, that says so, each time."""
    code = """
import sys
before = set(sys.modules)
import hf_tiny_transformer
added = {name.partition(".")[0] for name in set(sys.modules) - before}
assert added - sys.stdlib_module_names == {"hf_tiny_transformer"}, added
assert "TinyTransformerBertModel" in dir(hf_tiny_transformer) and hf_tiny_transformer.__version__
assert not hasattr(hf_tiny_transformer, "TinyTransformerNothing")
sys.modules["torch"] = None  # cannot be imported
for attempt in range(2):
    try:
        from hf_tiny_transformer import TinyTransformerBertModel
    except ImportError as error:
        print(error)
import transformers
assert transformers.AutoConfig.for_model("bert").model_type == "bert"
"""
    assert python(code).count("torch") == 2


def test_it_adds_under_a_tenth_of_a_second_to_importing_transformers():
    """Processor time, best of three: a machine that does other things tells the same."""
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    both, alone = "transformers, hf_tiny_transformer", "transformers"
    seconds = {modules: min(float(python(code.format(modules))) for _ in range(3)) for modules in (both, alone)}
    assert seconds[both] - seconds[alone] < max(0.1, 0.15 * seconds[alone])


def test_every_name_is_there_and_nothing_is_missing_from_the_list():
    """`__init__.py` spells out for type checkers and editors what `families.py` holds."""
    classes = {c for config, table in ours.FAMILIES.items() for c in (config, *table.values())}
    assert {name for name in ours.__all__ if name.startswith("TinyTransformer")} == {c.__name__ for c in classes}
    assert all(getattr(ours, c.__name__) is c for c in classes) and set(ours.__all__) <= set(dir(ours))
    imported = re.findall(r"TinyTransformer\w+", Path(ours.__file__).read_text().partition("__all__")[0])
    assert sorted(imported) == sorted(c.__name__ for c in classes)


def test_what_someone_registered_before_stays():
    """An Auto class told of another class for one of our configurations, before ours came, keeps it."""
    code = """
from hf_tiny_transformer.configuration_encoder import TinyTransformerEncoderConfig
from hf_tiny_transformer.modeling_encoder import TinyTransformerEncoderModel
from transformers import AutoModel
class Own(TinyTransformerEncoderModel):
    pass
AutoModel.register(TinyTransformerEncoderConfig, Own)
print(type(AutoModel.from_config(TinyTransformerEncoderConfig(num_hidden_layers=1))).__name__)
"""
    assert python(code) == "Own\n"
