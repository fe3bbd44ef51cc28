"""Protects the one opener of checkpoints: every weight comes from the file, or the error names what is wrong."""

import json
import logging

import pytest
import torch
from families import language_model, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from hf_tiny_transformer.common.checkpoints import (
    load_model,
    read_config,
    read_tokenizer,
    saved_class,
    usable_length,
)
from hf_tiny_transformer.common.errors import UserError


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "model"
    language_model("Encoder").save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def edit(file, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_weights(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_what_was_saved_is_opened(source):
    config = read_config(source, classifier_dropout=0.3, some_new_field=5)
    assert (config.classifier_dropout, config.some_new_field) == (0.3, 5)
    model = load_model(source, AutoModelForMaskedLM, config)
    assert type(model) is saved_class(source, config) and not model.training and model.dtype == torch.float32
    for name, tensor in load_file(source / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)
    tokenizer = read_tokenizer(source, config)
    assert usable_length(None, config, tokenizer) == 32 and usable_length(None, config, tokenizer, default=8) == 8
    with pytest.raises(UserError, match=r"--max-length 33: .* at most 32"):
        usable_length(33, config, tokenizer)


def test_the_dtype_of_the_file_is_kept_on_request(source):
    language_model("Encoder").to(torch.bfloat16).save_pretrained(source)
    config = read_config(source)
    assert load_model(source, AutoModelForMaskedLM, config, dtype="auto").dtype == torch.bfloat16
    assert load_model(source, AutoModelForMaskedLM, config).dtype == torch.float32


def test_a_new_head_comes_from_the_seed_and_is_named(source, caplog):
    config = read_config(source, num_labels=3)
    with caplog.at_level(logging.WARNING, logger="hf_tiny_transformer.common.checkpoints"):
        first, again, other = (
            load_model(source, AutoModelForSequenceClassification, config, new_head=True, seed=seed)
            for seed in (1, 1, 2)
        )
    assert "newly initialised: classifier.bias, classifier.weight" in caplog.text
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    with pytest.raises(UserError, match=r"weights of .*ForSequenceClassification are missing \(first: classifier"):
        load_model(source, AutoModelForSequenceClassification, config)
    scratch = load_model(source, AutoModelForMaskedLM, config, from_scratch=True, seed=1)
    assert not torch.equal(scratch.lm_head.weight, load_model(source, AutoModelForMaskedLM, config).lm_head.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"1 weights of .* are missing \(first: model.layers.1"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(3)}),
            r"model.norm.weight is \(3,\) in the file and \(32,\)",
        ),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(3)}), "a layer that config.json does not"),
        (lambda t: t.update({"extra": torch.ones(3)}), r"1 weights that .*ForMaskedLM lacks \(first: extra\)"),
    ],
)
def test_weights_must_fit_the_config(change, message, source):
    change_weights(source, change)
    with pytest.raises(UserError, match=message):
        load_model(source, AutoModelForMaskedLM, read_config(source), exact=True)


def test_broken_files_are_named(source):
    config, file = read_config(source), source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated or corrupt"):
        load_model(source, AutoModel, config)
    file.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file; save the model there again"):
        load_model(source, AutoModel, config)
    torch.save({}, source / "pytorch_model.bin")  # a pickle is never opened
    with pytest.raises(UserError, match=r"only safetensors are read; convert the \.bin weights"):
        load_model(source, AutoModel, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "no_such_type"},
            r"config\.json: auto_map names code without which this model cannot be opened",
        ),
        ({"model_type": 7}, "no field model_type"),
        ({"hidden_size": "32"}, "config.json: hidden_size"),
        ({"num_attention_heads": 5}, "config.json: .*num_attention_heads"),
    ],
)
def test_bad_configs_name_the_field(fields, message, source):
    edit(source / "config.json", **fields)
    with pytest.raises(UserError, match=message):
        read_config(source)


def test_what_is_no_model_is_named(source, tmp_path):
    for place, message in (
        (tmp_path / "none", "--model .*none: no such directory"),
        (source / "config.json", "is a file; name the directory"),
        (tmp_path, r"config\.json: no such file"),
        ("no/such-model", "--model no/such-model: neither a directory nor a readable Hub model"),
    ):
        with pytest.raises(UserError, match=message):
            read_config(place)


def test_architectures_must_name_a_class_of_the_family(source, tmp_path):
    BertForMaskedLM(
        BertConfig(vocab_size=53, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "stock")
    assert saved_class(tmp_path / "stock", read_config(tmp_path / "stock")) is BertForMaskedLM
    for names in ([], ["BertForMaskedLM"], ["set_seed"], ["TinyTransformerEncoderModel", "BertModel"]):
        edit(source / "config.json", architectures=names)
        with pytest.raises(UserError, match=r"architectures in config\.json is"):
            saved_class(source, read_config(source))


def test_tokenizers_must_belong_to_the_model(source):
    config = read_config(source)
    config.pad_token_id = None
    assert read_tokenizer(source, config).pad_token_id == config.pad_token_id == 0
    config.vocab_size = 50
    with pytest.raises(UserError, match=r"highest id is 52, but vocab_size in config\.json is 50"):
        read_tokenizer(source, config)
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        read_tokenizer(source, config)
    tiny_model("Encoder").save_pretrained(source)
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        read_tokenizer(source, config)
