"""Protects the live page: its tokenizer and forward pass give the numbers of Python, and its views show them."""

import copy
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import fits, opened
from commands import fails, run
from families import tiny_model, tiny_tokenizer
from tokenizers import normalizers
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerFast

from hf_tiny_transformer.attend import live
from hf_tiny_transformer.attend.live import live_page
from pretrain.data.tokenizer import train_tokenizer

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node (Debian: apt-get install nodejs)")
RUNNER = Path(__file__).parent / "live_runner.js"
PIECES = 160
SENTENCE = "the old film surprises this audience , and a director moves because every actor in each scene is good ."
TEXTS = [" ".join(random.Random(seed).choices(SENTENCE.split(), k=4 + seed % 12)) for seed in range(50)]
STRANGE = [
    "Café NAÏVE Åse İstanbul ΟΔΟΣ straße",
    "a\u00a0b\u200bc\u0000d\ufffd e\tf\r\ng\u2028h\u0085i\u3000j",
    "中文 mixed中text 日本語テキスト 한국어",
    "don't!stop-now... (really?) $5 a+b=c `x` ~y~ ^z | «q» “r” … ·",
    "[MASK] film[MASK]s [CLS] [SEP] [UNK] [mask]",
    "x" * 101 + " 😀 👩\u200d👩 é e\u0301 ﬁ",
    "",
]
TASKS = {"Encoder": "ForMaskedLM", "Bert": "ForMaskedLM", "Decoder": "ForCausalLM"}


def tokenizer_of(family: str, lowercase: bool = True) -> PreTrainedTokenizerFast:
    documents = [*TEXTS, *STRANGE]
    return train_tokenizer(
        lambda: documents, vocab_size=PIECES, lowercase=lowercase, max_length=128, family=family.lower(), progress=False
    )


def saved(folder: Path, family: str, task: str | None = None, **settings: Any) -> tuple[Path, PreTrainedModel]:
    shape = {"vocab_size": PIECES, "max_position_embeddings": 128, "pad_token_id": 0}
    model = tiny_model(family, task or TASKS[family], **(shape | settings))
    with torch.no_grad():  # biases and norms other than zeros and ones
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer_of(family).save_pretrained(folder)
    return folder, model


def answers(page: str, requests: list[dict], folder: Path) -> list[dict]:
    """What the page's own code computes, in node."""
    files = [folder / "page.html", folder / "requests.json"]
    files[0].write_text(page, encoding="utf-8")
    files[1].write_text(json.dumps(requests), encoding="utf-8")
    done = subprocess.run([NODE, RUNNER, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the 8-bit weights of a page."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                scale = (parameter.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-30)
                parameter.copy_((parameter / scale).round() * scale)
    return model


@torch.no_grad()
def expected(model: PreTrainedModel, ids: list[int], place: int | None) -> tuple[np.ndarray, list[torch.Tensor]]:
    model.set_attn_implementation("eager")
    outputs = model(torch.tensor([ids]), output_attentions=True)
    logits = outputs.logits[0] if place is None else outputs.logits[0, place]
    return logits.softmax(-1).numpy(), outputs.attentions


def differences(model: PreTrainedModel, got: list[dict], places: list[int | None]) -> tuple[float, float]:
    """The largest difference of a probability, and of an attention weight."""
    shares = weights = 0.0
    for answer, place in zip(got, places, strict=True):
        probabilities, attentions = expected(model, answer["ids"], place)
        shares = max(shares, np.abs(probabilities - answer["shares"]).max())
        heads = torch.cat(attentions).flatten(2).numpy()
        weights = max(weights, np.abs(heads - np.array(answer["weights"])).max())
    return shares, weights


def masked(tokenizer: PreTrainedTokenizerFast) -> tuple[list[dict], list[int]]:
    """Requests with one masked token in each of the texts, and where it is."""
    requests, places = [], []
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        places.append(1 + number % (len(ids) - 2))
        ids[places[-1]] = tokenizer.mask_token_id
        requests.append({"ids": ids, "place": places[-1]})
    return requests, places


@needs_node
@pytest.mark.parametrize("lowercase", [True, False])
def test_texts_have_the_same_tokens(lowercase: bool, tmp_path):
    folder, _ = saved(tmp_path / "model", "Encoder")
    tokenizer = tokenizer_of("Encoder", lowercase)
    tokenizer.save_pretrained(folder)
    texts = [*TEXTS, *STRANGE]
    for got, text in zip(answers(live_page(folder), [{"text": text} for text in texts], tmp_path), texts, strict=True):
        assert got["ids"] == tokenizer(text)["input_ids"], text


@needs_node
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Encoder", {}),
        ("Encoder", {"position_embedding_type": "sinusoidal", "hidden_act": "silu"}),
        ("Encoder", {"position_embedding_type": "learned", "tie_word_embeddings": False}),
        ("Encoder", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
        ("Bert", {}),
        ("Bert", {"hidden_act": "gelu_new"}),
        ("Decoder", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("fp32", [False, True], ids=["8-bit", "fp32"])
def test_probabilities_of_50_texts_are_those_of_python(family: str, settings: dict, fp32: bool, tmp_path):
    folder, model = saved(tmp_path / "model", family, **settings)
    requests, places = masked(tokenizer_of(family))
    got = answers(live_page(folder, fp32=fp32), requests, tmp_path)
    assert max(differences(model if fp32 else rounded(model), got, places)) < (1e-4 if fp32 else 1e-3)
    if not fp32:  # the price of 8 bits, for weights much larger than those of a trained model
        assert 0 < differences(model, got, places)[0] < 0.1


@needs_node
@pytest.mark.parametrize(
    ("family", "settings"),
    [("Encoder", {}), ("Encoder", {"classifier_pooling": "cls"}), ("Bert", {}), ("Decoder", {})],
    ids=str,
)
def test_labels_are_those_of_python(family: str, settings: dict, tmp_path):
    folder, model = saved(tmp_path / "model", family, "ForSequenceClassification", num_labels=3, **settings)
    got = answers(live_page(folder, fp32=True), [{"text": text, "place": 0} for text in TEXTS], tmp_path)
    assert max(differences(model, got, [None] * len(got))) < 1e-4


@needs_node
def test_a_head_and_positions_can_be_switched_off(tmp_path):
    """Without a head: as with zeros in its columns of the output matrix. Without positions: order does not matter."""
    folder, model = saved(tmp_path / "model", "Encoder")
    ids = tokenizer_of("Encoder")(TEXTS[0])["input_ids"]
    ids[2] = 4
    swapped = [*ids[:3], *reversed(ids[3:])]
    requests = [{"ids": ids, "off": ["0.1"]}, {"ids": ids, "positions": False}, {"ids": swapped, "positions": False}]
    requests = [request | {"place": 2} for request in [*requests, {"ids": ids}, {"ids": swapped}]]
    off, unordered, reordered, whole, reversed_whole = answers(live_page(folder, fp32=True), requests, tmp_path)
    np.testing.assert_allclose(unordered["shares"], reordered["shares"], atol=1e-6)
    assert np.abs(np.subtract(whole["shares"], reversed_whole["shares"])).max() > 1e-3
    with torch.no_grad():
        model.model.layers[0].attention.o_proj.weight[:, 16:] = 0
    assert max(differences(model, [off], [2])) < 1e-4 < np.abs(np.subtract(whole["shares"], off["shares"])).max()


def test_a_page_is_one_file_and_8_bits_are_a_quarter(tmp_path):
    folder, _ = saved(tmp_path / "model", "Encoder", hidden_size=128)
    pages = [tmp_path / "small.html", tmp_path / "large.html"]
    assert run("attend", "--model", folder, "--live", "--output", pages[0], "--text", "</script>{{title}}") == 0
    assert run("attend", "--model", folder, "--live", "--fp32", "--output", pages[1]) == 0
    small, large = (path.read_text(encoding="utf-8") for path in pages)
    assert not re.search(r"(src|href)=|url\(|@import|fetch\(|import\(", small)
    assert small.count("</script>") == 2 and "<title>Live: model</title>" in small and "{{live" not in small
    weights = [len(page) - len(page.split('"tensors"')[0]) for page in (small, large)]
    assert weights[0] < 0.45 * weights[1]  # the page's own code is in both


def test_a_stock_model_is_refused_with_the_way_out(tmp_path, capsys):
    BertConfig(vocab_size=PIECES, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    error = fails(capsys, "attend", "--model", tmp_path, "--live", "--output", tmp_path / "page.html")
    assert "model_type is bert" in error and "hf-tiny-transformer import" in error


def refusals() -> list[tuple[str, str | None, dict, str]]:
    return [
        ("Seq2Seq", "ForConditionalGeneration", {}, "model_type is tiny_transformer_seq2seq"),
        ("Encoder", "ForTokenClassification", {}, "it is a TinyTransformerEncoderForTokenClassification"),
        ("Encoder", "ForSequenceClassification", {"num_labels": 1}, "it predicts a number"),
        ("Encoder", None, {"hidden_act": "relu2"}, "hidden_act is relu2"),
        ("Encoder", None, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
    ]


@pytest.mark.parametrize(("family", "task", "settings", "reason"), refusals())
def test_other_models_are_refused(family: str, task: str | None, settings: dict, reason: str, tmp_path, capsys):
    folder, _ = saved(tmp_path / "model", family, task, **settings)
    assert reason in fails(capsys, "attend", "--model", folder, "--live", "--output", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_large_models_and_other_tokenizers_are_refused(tmp_path, monkeypatch, capsys):
    folder, model = saved(tmp_path / "model", "Encoder")
    command = ("attend", "--model", folder, "--live", "--output", tmp_path / "page.html")
    with monkeypatch.context() as patch:
        patch.setattr(live, "MAX_PARAMETERS", 1000)
        assert f"it has {model.num_parameters():,} parameters; a live page supports at most 1,000" in fails(
            capsys, *command
        )
    tokenizer = tokenizer_of("Encoder")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(folder)
    assert "the normalizer of its tokenizer is NFC; a live page supports BertNormalizer" in fails(capsys, *command)
    tokenizer = tokenizer_of("Encoder")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    assert "its tokenizer has no mask_token" in fails(capsys, *command)
    tiny_tokenizer().save_pretrained(folder)
    assert "the normalizer of its tokenizer is None" in fails(capsys, *command)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--live"], "--live requires --output"),
        (["--live", "--output", "page.txt"], ".html"),
        (["--live", "--output", "page.html", "--head", "0"], "--head cannot be used with --live"),
        (["--fp32", "--output", "page.html", "--text", "a"], "--fp32 requires --live"),
    ],
)
def test_flags_that_do_not_fit_together(flags: list[str], complaint: str, capsys):
    assert complaint in fails(capsys, "attend", "--model", "none", *flags)


def test_the_page_in_a_browser(look, tmp_path):
    """50 texts have Python's probabilities there, too; and each view follows what is selected."""
    folder, model = saved(tmp_path / "model", "Encoder")
    page = opened(look, live_page(folder, text=TEXTS[0]), tmp_path)
    requests, places = masked(tokenizer_of("Encoder"))
    script = """requests => requests.map(({ ids, place }) => {
      const { layers, hidden } = live.model.run(ids);
      const weights = layers.map((layer) => layer.weights.map((map) => [...map]));
      return { ids, shares: [...live.model.words(hidden, place)], weights };
    })"""
    assert max(differences(rounded(model), page.evaluate(script, requests), places)) < 1e-3

    assert page.locator("#bars li").count() == 10 and page.locator("#tokens [aria-pressed=true]").count() == 1
    page.fill("#text", "the old film moves the audience")
    page.click("#tokens button:nth-child(4)")
    bars, said = page.inner_text("#bars"), page.inner_text("#answer")
    assert "The hidden word is" in said or page.locator("#tokens [aria-pressed=true]").count() == 1
    picture = page.evaluate("document.querySelector('#map').toDataURL()")
    page.click("[aria-label='Show layer 0, head 1']")
    assert page.inner_text("#which") == "Attention of layer 0, head 1"
    assert page.evaluate("document.querySelector('#map').toDataURL()") != picture
    for table, rows in (("#product", 3), ("#softmax", page.locator("#tokens button").count())):
        assert page.locator(f"{table} tbody tr").count() == rows
    shown = page.eval_on_selector_all("#softmax tbody td:nth-child(4)", "cells => cells.map((c) => c.textContent)")
    lines = page.eval_on_selector_all("#keys li", "items => items.map((item) => item.dataset.weight)")
    assert shown == lines  # from q and k there, from the forward pass here
    page.check("#textbook")
    assert "0.881" in page.inner_text("#softmax") and "112.00" in page.inner_text("#softmax")
    page.uncheck("#textbook")

    page.uncheck("[aria-label='layer 0, head 1']")
    assert page.inner_text("#bars") != bars and "was" in page.inner_text("#bars")
    page.click("#reset")
    assert page.inner_text("#bars") == bars
    page.uncheck("#positions")
    assert page.inner_text("#bars") != bars
    page.focus("#map")
    page.keyboard.press("ArrowDown")
    assert "→" in page.inner_text("#tip")
    page.focus("#queries [tabindex='0']")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.parentElement.id") == "queries"
    page.focus("#tokens button:nth-child(3)")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement === document.querySelector('#tokens').children[2]")
    assert fits(page)


@pytest.mark.parametrize("family", ["Decoder", "Encoder"])
def test_next_words_and_labels_in_a_browser(family: str, look, tmp_path):
    task = "ForCausalLM" if family == "Decoder" else "ForSequenceClassification"
    labels = {} if family == "Decoder" else {"id2label": {0: "bad", 1: "good"}}
    folder, _ = saved(tmp_path / "model", family, task, **labels)
    page = opened(look, live_page(folder, text="the old film"), tmp_path)
    if family == "Decoder":
        flat = page.inner_text("#bars .number >> nth=0")
        page.locator("#temperature").fill("0.1")
        assert page.inner_text("#bars .number >> nth=0") != flat
        count = page.locator("#tokens button").count()
        page.click("#more")
        assert page.locator("#tokens button").count() >= count and page.input_value("#text") != "the old film"
    else:
        assert page.inner_text("#bars").count("%") == 2
        page.wait_for_selector("#effects li")
        assert page.locator("#effects li").count() == 3
    assert fits(page)
