"""Protects the pictures of attention: what a page and a figure show is what the model computed, of any family."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import fails, run
from families import VOCAB, every_family, language_model, tiny_model, tiny_tokenizer
from matplotlib.image import imread
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from hf_tiny_transformer.attend.figure import draw_attention
from hf_tiny_transformer.attend.page import attention_page
from hf_tiny_transformer.attend.read import AttentionMap, load, read_attention
from hf_tiny_transformer.common.errors import UserError

TEXT, PAIR = "word5 word6 word7 word8", "word9 word10 word11"
SMALL = {"vocab_size": VOCAB, "pad_token_id": 0}


def stock(name: str) -> PreTrainedModel:
    """Stock models of each shape: one that reads, one that writes, one that does both."""
    torch.manual_seed(0)
    if name == "bert":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        return BertForMaskedLM(BertConfig(**SMALL, **shape)).eval()
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()
    halves = {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 2), ("ffn_dim", 48))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    ids = {"decoder_start_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "forced_eos_token_id": 3}
    return BartForConditionalGeneration(BartConfig(**SMALL, **halves, **heads, **ids, d_model=32)).eval()


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)
    return folder


def ours(family: str) -> PreTrainedModel:
    token_ids = {"decoder_start_token_id": 2, "eos_token_id": 3} if family == "Seq2Seq" else {}
    return language_model(family, **token_ids)


def page_data(page: str) -> dict:
    """What a browser reads out of the page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


def unpacked(one: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(one["weights"]), dtype="<u2").reshape(one["shape"]) / 65535


@every_family
def test_a_page_holds_the_models_own_weights(family: str, tmp_path):
    """To one part in 65535, which is how they are written down; of three kinds where there are two sides."""
    model = ours(family)
    folder = saved(model, tmp_path / "model")
    model.set_attn_implementation("eager")
    output, words = tmp_path / "page.html", ["[CLS]", *TEXT.split(), "[SEP]"]
    two_sides = family == "Seq2Seq"
    flags = ["--pair", PAIR] if two_sides else []
    assert run("attend", "--model", folder, "--text", TEXT, *flags, "--output", output) == 0
    shown = page_data(output.read_text(encoding="utf-8"))["maps"]

    inputs = tiny_tokenizer(model_input_names=["input_ids", "attention_mask"])(TEXT, return_tensors="pt")
    names = ["attentions"]
    if two_sides:
        inputs["decoder_input_ids"] = torch.tensor([[2, 9, 10, 11]])
        names = ["cross_attentions", "encoder_attentions", "decoder_attentions"]
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    assert len(shown) == len(names)
    for one, name in zip(shown, names, strict=True):
        np.testing.assert_allclose(unpacked(one), torch.cat(outputs[name]).numpy(), atol=1 / 65535)
    assert shown[0]["keys"] == words if two_sides else shown[0]["queries"] == words
    if two_sides:
        assert shown[0]["queries"] == ["[CLS]", *PAIR.split()]


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_stock_models_too(name: str, tmp_path):
    """Whatever AutoModel opens; Bart's halves even differ in their number of heads."""
    folder = saved(stock(name), tmp_path / "model")
    model, tokenizer = load(folder)
    maps = read_attention(model, tokenizer, TEXT)
    heads = [tuple(one.weights.shape[:2]) for one in maps]
    assert heads == ([(2, 4), (2, 2), (2, 4)] if name == "bart" else [(2, 2)])
    for one in maps:
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(one.weights.shape[:3]))
    if name == "gpt2":
        assert maps[0].weights.triu(1).max() == 0
    png, page = tmp_path / "attention.png", tmp_path / "page.html"
    assert run("attend", "--model", folder, "--text", TEXT, "--output", page, "--png", png, "--layer=0") == 0
    assert page_data(page.read_text(encoding="utf-8"))["layer"] == 0
    assert imread(png).std() > 0.05  # not one colour


def test_two_segments_stand_in_one_map():
    one = read_one("Bert", pair=PAIR)
    assert one.queries == ["[CLS]", *TEXT.split(), "[SEP]", *PAIR.split(), "[SEP]"]


def test_what_is_written_is_the_models_own_where_nobody_says():
    """The decoder's tokens are what `generate` writes into its 32 positions; its last one asks nothing any more."""
    model, tokenizer = ours("Seq2Seq"), tiny_tokenizer()
    model.set_attn_implementation("eager")
    maps = read_attention(model, tokenizer, TEXT)
    inputs = tokenizer(TEXT, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=31, do_sample=False)[0].tolist()
    assert maps[0].queries == tokenizer.convert_ids_to_tokens(written[:-1])


def read_one(family: str, pair: str | None = None) -> AttentionMap:
    model = tiny_model(family, attn_implementation="eager")
    return read_attention(model, tiny_tokenizer(), TEXT, pair)[0]


def test_figures_show_the_weights():
    """The heat map's pixels are the matrix; the word's thickest line ends where its largest weight is."""
    one = read_one("Encoder")
    mean = one.weights[1].mean(0)
    image = draw_attention(one, parts=["map"]).axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), mean)
    image = draw_attention(one, 0, 1, parts=["map"]).axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), one.weights[0, 1])

    axes = draw_attention(one, word="word7", parts=["lines"]).axes[0]
    thickest = max(axes.patches, key=lambda patch: patch.get_linewidth())
    start, end = thickest.get_path().vertices[[0, -1], 1]
    assert (start, end) == (3, int(mean[3].argmax()))
    assert len(draw_attention(one).axes) == 3  # map, colour bar, lines


def test_the_word_it_is_shown_first():
    one = read_one("Encoder")
    assert one.query(None) == 3
    assert AttentionMap("", ["see", "it"], ["see", "it"], one.weights).query(None) == 1
    with pytest.raises(ValueError, match="layer 2"):
        one.head(2)
    with pytest.raises(ValueError, match="head -3"):
        one.head(0, -3)


def test_no_text_can_break_out_of_the_page():
    """A token that ends a script element stays data; nothing is loaded from anywhere."""
    tokens = ["</script><script>alert(1)</script>", "{{title}}", "<!--"]
    weights = torch.full((1, 1, 3, 3), 1 / 3)
    page = attention_page([AttentionMap("x", tokens, tokens, weights)], "<b>model</b>")
    assert page_data(page)["maps"][0]["queries"] == tokens
    assert page.count("</script>") == 2 and "<b>model" not in page
    assert not re.search(r"(src|href)=|url\(|@import|fetch\(", page)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--text", TEXT], "--output"),
        (["--text", TEXT, "--output", "page.txt"], ".html"),
        (["--text", TEXT, "--image", "none.png", "--output", "page.html"], "exactly one of"),
        (["--text", TEXT, "--png", "page.html"], ".png"),
        (["--text", " ", "--output", "page.html"], "--text: is empty"),
        (["--text", "word5 " * 40, "--output", "page.html"], "32 positions"),
        (["--text", TEXT, "--output", "page.html", "--layer", "2"], "layer 2"),
        (["--text", TEXT, "--output", "page.html", "--head", "7"], "head 7"),
        (["--text", TEXT, "--output", "page.html", "--word", "nobody"], "word 'nobody'"),
        (["--image", "none.png", "--output", "page.html"], "none.png"),
        (["--output", "page.html"], "--text"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, complaint, tmp_path, monkeypatch, capsys):
    folder = saved(ours("Encoder"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert complaint in fails(capsys, "attend", "--model", folder, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load(tmp_path)
    folder = saved(ours("Encoder"), tmp_path)
    with pytest.raises(UserError, match="reads text"):
        load(folder, image=True)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="truncated or corrupt"):
        load(folder)


def test_weights_that_are_missing_are_named(tmp_path):
    """A trunk of fewer layers than its config says would be drawn at random."""
    model = tiny_model("Encoder")
    model.config.num_hidden_layers, model.config.layer_types = 3, ["full_attention"] * 3
    with pytest.raises(UserError, match=r"weights of .* are missing \(first: layers\.2"):
        load(saved(model, tmp_path))
