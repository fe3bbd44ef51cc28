"""A model directory whose every file names a payload, as an attacker would publish it."""

import json
from pathlib import Path

import torch
from families import language_model, tiny_tokenizer
from transformers import BertConfig, BertForMaskedLM

from hf_tiny_transformer.common.foreign_code import find

PAYLOAD = """
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM, FillMaskPipeline, PreTrainedTokenizerFast

Path({marker!r}).touch()
class Tokenizer(PreTrainedTokenizerFast): pass
class Config(BertConfig): model_type = {model_type!r}
class Model(BertForMaskedLM): config_class = Config
class Pipeline(FillMaskPipeline): pass
"""
# {repository} stands for a name on the Hub: transformers also takes a path, and reads the code from there
FORMS = {"local": "payload.", "hub": "{repository}--payload."}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def make_attack(
    folder: Path,
    marker: Path,
    kind: str,
    form: str = "local",
    model_type: str = "bert",
    fields: tuple[str, ...] = ("auto_map", "custom"),
) -> Path:
    """Write a model directory with the payload, which creates `marker` when it runs.

    Args:
        folder: Where the directory, and the repository for the form "hub", are written.
        marker: The file.
        kind: "stock", or one of our families.
        form: A key of `FORMS`.
        model_type: Of the payload's config.
        fields: Which references to write.
    """
    directory = folder / f"{kind}-{form}"
    if kind == "stock":
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(vocab_size=53, max_position_embeddings=32, **SHAPE)).save_pretrained(directory)
    else:
        language_model(kind).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    repository = folder / "org" / "repo"
    prefix = FORMS[form].format(repository=repository)
    code = PAYLOAD.format(marker=str(marker), model_type=model_type)
    for place in (directory, repository):
        place.mkdir(parents=True, exist_ok=True)
        (place / "payload.py").write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code + "def generate(*_, **__): ...\n")
    tasks = {"fill-mask": "AutoModelForMaskedLM", "text-classification": "AutoModelForSequenceClassification"}
    pipelines = {task: {"impl": f"{prefix}Pipeline", "pt": [auto], "type": "text"} for task, auto in tasks.items()}
    autos = {auto: f"{prefix}Model" for auto in tasks.values()} | {"AutoConfig": f"{prefix}Config"}
    tokenizer = {"AutoTokenizer": [None, f"{prefix}Tokenizer"]}
    named = {"config.json": {"auto_map": autos}, "tokenizer_config.json": {"auto_map": tokenizer}}
    named |= {"processor_config.json": {"auto_map": {"AutoProcessor": f"{prefix}Pipeline"}}}
    named |= {"preprocessor_config.json": {"auto_map": {"AutoImageProcessor": f"{prefix}Pipeline"}}}
    named = named if "auto_map" in fields else {"config.json": {}}
    if "custom" in fields:
        named["config.json"]["custom_pipelines"] = pipelines
        named["generation_config.json"] = {"custom_generate": "org/repo"}
    for name, content in named.items():
        edit(directory / name, **content)
    return directory


def edit(file: Path, **fields) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | fields))


def assert_clean(directory: Path) -> None:
    """Nothing there is or names foreign code, checkpoints included."""
    assert find(directory) is None and all(find(checkpoint) is None for checkpoint in directory.glob("checkpoints/*"))
    assert not [file for file in directory.rglob("*") if "payload" in file.name or "custom_generate" in str(file)]
    for file in directory.rglob("*.json"):
        assert not any(word in file.read_text() for word in ("payload", "custom_pipelines", "org/repo")), file
