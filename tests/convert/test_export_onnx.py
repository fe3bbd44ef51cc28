"""Protects `export --format onnx`: the graph computes what torch does at any size, or nothing is written."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import fails, run
from families import model_class, tiny_config, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
from hf_tiny_transformer.convert import onnx as onnx_export  # noqa: E402  (needs the packages above)


def write_ours(directory: Path, family: str, task: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class(family, task)(tiny_config(family, **settings)).eval()
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return model


def command(source: Path, output: Path) -> list[object]:
    return ["export", "--format", "onnx", "--model", source, "--output", output]


def export(source: Path, output: Path, *flags: str) -> int:
    return run(*command(source, output), *flags)


def assert_same_as_torch(directory: Path, model: PreTrainedModel, outputs: list[str], shapes, atol: float) -> None:
    """Held against torch here once more: other shapes than the command's own check has, and padding on the left."""
    session = onnxruntime.InferenceSession(str(directory), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == outputs
    for shape in shapes:
        inputs = {"input_ids": torch.randint(1, 53, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
        if shape[0] > 2:
            inputs["attention_mask"][1, ..., :2] = 0
        if any(given.name == "token_type_ids" for given in session.get_inputs()):
            inputs["token_type_ids"] = torch.randint(0, 2, shape)
        got = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs)
        seen = inputs["attention_mask"].bool().numpy()
        for name, value in zip(outputs, got, strict=True):
            mine, real = expected[name].numpy(), seen if value.shape[: seen.ndim] == seen.shape else slice(None)
            np.testing.assert_allclose(value[real], mine[real], atol=atol)


def test_an_encoder_in_fp32_and_int8_as_transformers_js_wants_it(tmp_path: Path, capsys):
    model = write_ours(tmp_path / "ours", "Encoder", "ForMaskedLM")
    capsys.readouterr()
    assert export(tmp_path / "ours", tmp_path / "onnx", "--int8") == 0
    printed = capsys.readouterr()
    assert "largest difference between onnxruntime and torch: " in printed.out and not printed.err
    assert {str(file.relative_to(tmp_path / "onnx")) for file in (tmp_path / "onnx").rglob("*") if file.is_file()} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json", "SHA256SUMS"),
        *("onnx/model.onnx", "onnx/model_quantized.onnx"),
    }
    shapes = [(1, 3), (5, 4), (3, 32), (1, 100)]  # rotary positions know no last one
    assert_same_as_torch(tmp_path / "onnx" / "onnx" / "model.onnx", model, ["logits"], shapes, atol=1e-5)
    spread = model(input_ids=torch.arange(1, 53)[None]).logits.std().item()
    quantised = tmp_path / "onnx" / "onnx" / "model_quantized.onnx"
    assert_same_as_torch(quantised, model, ["logits"], shapes[:3], atol=spread)
    assert AutoConfig.from_pretrained(tmp_path / "onnx").architectures == ["ModernBertForMaskedLM"]
    assert AutoTokenizer.from_pretrained(tmp_path / "onnx")("word7")["input_ids"] == [2, 7, 3]


@pytest.mark.parametrize(
    ("family", "task", "settings", "outputs", "model_type"),
    [
        ("Bert", "ForQuestionAnswering", {}, ["start_logits", "end_logits"], "bert"),
        (
            "Encoder",
            "ForMultipleChoice",
            {"position_embedding_type": "learned"},
            ["logits"],
            "tiny_transformer_encoder",
        ),
        ("Decoder", "ForSequenceClassification", {}, ["logits"], "modernbert-decoder"),
    ],
)
def test_other_families_and_heads(family, task, settings, outputs, model_type, tmp_path: Path):
    """Where stock has no such function, config.json is our own, without the code."""
    model = write_ours(tmp_path / "ours", family, task, num_hidden_layers=1, **settings)
    assert export(tmp_path / "ours", tmp_path / "onnx") == 0
    shapes = [(1, 2, 3), (4, 5, 6)] if task == "ForMultipleChoice" else [(1, 3), (4, 30)]
    file = tmp_path / "onnx" / "onnx" / "model.onnx"
    assert_same_as_torch(file, model, outputs, shapes, atol=1e-5)
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["model_type"] == model_type
    assert not list((tmp_path / "onnx").rglob("*.py"))


def test_a_decoder_goes_on_from_its_cache_as_transformers_js_drives_it(tmp_path: Path):
    """The first cache is empty, of the sizes that the file states; then one token at a time: what `generate` writes."""
    model = write_ours(tmp_path / "ours", "Decoder", "ForCausalLM")
    assert export(tmp_path / "ours", tmp_path / "onnx") == 0
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["model_type"] == "modernbert-decoder"
    file = tmp_path / "onnx" / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    sizes = {given.name: given.shape for given in session.get_inputs() if given.name.startswith("past_key_values.")}
    assert len(sizes) == 4
    empty = {name: [{"batch_size": 2}.get(n, 0) if isinstance(n, str) else n for n in sizes[name]] for name in sizes}
    cache = {name: np.zeros(shape, dtype=np.float32) for name, shape in empty.items()}
    outputs = [output.name for output in session.get_outputs()]
    ids = new = written = torch.randint(1, 53, (2, 4))
    for _ in range(6):
        inputs = {"input_ids": new.numpy(), "attention_mask": torch.ones_like(written).numpy(), **cache}
        got = dict(zip(outputs, session.run(outputs, inputs), strict=True))
        cache = {name: got[name.replace("past_key_values", "present")] for name in cache}
        new = torch.from_numpy(got["logits"][:, -1:].argmax(-1))
        written = torch.cat((written, new), dim=1)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert torch.equal(written, expected)


def refused(source: Path, output: Path, capsys) -> str:
    error = fails(capsys, *command(source, output))
    assert not output.exists()
    return error


def test_what_does_not_compute_the_same_is_not_written(tmp_path: Path, capsys, monkeypatch):
    write_ours(tmp_path / "ours", "Encoder", "Model")
    monkeypatch.setattr(onnx_export, "_write_graph", lambda graph, file, source: file.touch())
    for difference in (2e-4, float("nan")):
        monkeypatch.setattr(onnx_export, "compare", lambda graph, file, found=difference: found)
        assert "differ from torch's by" in refused(tmp_path / "ours", tmp_path / "onnx", capsys)
    assert [place.name for place in tmp_path.iterdir()] == ["ours"]


def test_bad_input_gets_one_line(tmp_path: Path, capsys, monkeypatch):
    write_ours(tmp_path / "ours", "Seq2Seq", "ForConditionalGeneration")
    assert "supports the families Bert, Encoder and Decoder" in refused(tmp_path / "ours", tmp_path / "onnx", capsys)
    assert "no such directory" in refused(tmp_path / "nowhere", tmp_path / "onnx", capsys)
    stock = ["export", "--format", "stock", "--int8", "--model", tmp_path / "ours", "--output", tmp_path / "x"]
    assert "--int8 requires --format onnx" in fails(capsys, *stock)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "hf_tiny_transformer.convert.onnx")
    error = refused(tmp_path / "ours", tmp_path / "onnx", capsys)
    assert "requires onnxscript" in error and "pip install 'hf-tiny-transformer[export]'" in error
