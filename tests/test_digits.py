"""Protects the digits benchmark: the Encoder learns from images on Trainer, and its attention is drawn on them."""

import json

import numpy as np
import pytest
from commands import fails, run
from PIL import Image

from benchmarks import digits
from hf_tiny_transformer.attend.figure import draw_over_image
from hf_tiny_transformer.attend.read import load, read_image_attention
from hf_tiny_transformer.common.errors import UserError


def test_digits_are_learned_and_attention_is_drawn_over_the_picture(tmp_path, capsys):
    """A sixth of the epochs; benchmarks/LOG.md has the result of a full run."""
    output = tmp_path / "digits"
    results = digits.train(output, epochs=10)
    assert results["validation accuracy"] > 0.8
    assert json.loads((output / "results.json").read_text()) == results
    model, processor = load(output, image=True)
    image = Image.open(output / "example.png")
    one = read_image_attention(model, processor, image)
    assert one.grid == (4, 4) and one.weights.shape == (3, 4, 16, 16)
    drawn = draw_over_image(one, image).axes[1].images[1].get_array()
    np.testing.assert_allclose(drawn, one.weights[-1].mean(0).mean(0).reshape(4, 4), atol=1e-6)
    drawn = draw_over_image(one, image, layer=0, head=1, patch=5).axes[1].images[1].get_array()
    np.testing.assert_array_equal(drawn, one.weights[0, 1, 5].reshape(4, 4))

    page, png = tmp_path / "page.html", tmp_path / "over.png"
    flags = ["--image", output / "example.png", "--output", page, "--png", png, "--word", "1,2"]
    assert run("attend", "--model", output, *flags) == 0
    assert "data:image/png;base64," in page.read_text() and png.stat().st_size > 1000
    assert "reads images" in fails(capsys, "attend", "--model", output, "--text", "seven", "--png", png)
    with pytest.raises(UserError, match="not empty"):
        digits.train(output)


def test_the_split_is_fixed_and_disjoint():
    first, second = digits.splits(), digits.splits()
    assert [len(first[name][1]) for name in ("train", "validation", "held out")] == [1077, 360, 360]
    for name, (pictures, _) in first.items():
        assert np.array_equal(pictures, second[name][0])
        assert len(set(second[name][1])) == 10
