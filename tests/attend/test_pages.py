"""Protects the page of attention in a real browser: what is selected is drawn, and nothing is fetched."""

from typing import Any

import pytest
import torch
from browser import fits, opened

from hf_tiny_transformer.attend.page import attention_page
from hf_tiny_transformer.attend.read import AttentionMap


def random_map(queries: int, keys: int, kind: str = "self-attention", **settings) -> AttentionMap:
    weights = torch.randn(2, 3, queries, keys).mul(3).softmax(-1)
    rows, columns = ([f"{side}{i}" for i in range(count)] for side, count in (("ask", queries), ("say", keys)))
    return AttentionMap(kind, rows, columns, weights, **settings)


def drawing(page: Any) -> tuple[str, list[str]]:
    """The heat map's pixels, and the lines' widths."""
    widths = page.eval_on_selector_all(".words path", "paths => paths.map(p => p.getAttribute('stroke-width'))")
    return page.evaluate("document.querySelector('#map').toDataURL()"), widths


def test_selecting_a_head_or_a_layer_changes_the_picture(look, tmp_path):
    one = random_map(7, 7)
    page = opened(look, attention_page([one], "model", layer=0, word=3), tmp_path)
    seen = [drawing(page)]
    for select, value in (("#head", "0"), ("#head", "2"), ("#layer", "1")):
        page.select_option(select, value)
        seen.append(drawing(page))
    assert len({pixels for pixels, _ in seen}) == 4 and len({tuple(widths) for _, widths in seen}) == 4
    weights = one.weights[1, 2, 3]
    shown = page.eval_on_selector_all("#keys li", "items => items.map(item => item.dataset.weight)")
    assert [float(weight) for weight in shown if "<" not in weight] == pytest.approx(
        [round(weight, 3) for weight in weights.tolist() if weight >= 0.0005], abs=1.01e-3
    )
    page.select_option("#head", "3")  # the mean of the three
    best = int(one.weights[1].mean(0)[3].argmax())
    assert page.inner_text("#strongest").startswith(f"Most: say{best} {one.weights[1].mean(0)[3, best]:.3f}")
    assert fits(page)


def test_pointing_at_a_cell_says_its_weight_and_choosing_it_draws_its_lines(look, tmp_path):
    one = random_map(5, 8)
    page = opened(look, attention_page([one], "model", layer=1, head=1), tmp_path)
    box = page.locator("#map").bounding_box()
    x, y = box["width"] / 8 * 2.5, box["height"] / 5 * 3.5
    page.hover("#map", position={"x": x, "y": y})
    said = page.inner_text("#tip")
    assert said.startswith("ask3 → say2: ")
    assert said.split(": ")[1] in (f"{one.weights[1, 1, 3, 2]:.3f}", "< 0.001")
    page.click("#map", position={"x": x, "y": y})
    assert page.inner_text("#asking") == "“ask3” attends to"
    assert page.inner_text("#queries [aria-selected=true]") == "ask3"


def test_the_keyboard_is_enough(look, tmp_path):
    """Tab reaches the selects, the map and the words; arrows move there."""
    page = opened(look, attention_page([random_map(5, 5)], "model"), tmp_path)
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('role')"))
    assert reached == ["layer", "head", "scale", "map", "option"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#asking") == "“ask2” attends to"
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#tip").startswith("ask1 → say1: ") and page.inner_text("#asking").startswith("“ask1”")


@pytest.mark.parametrize("count", [5, 128])
def test_few_and_many_tokens_are_legible(look, tmp_path, count: int):
    """Labels of at least nine pixels, cells of twelve, every word on the page."""
    page = opened(look, attention_page([random_map(count, count)], "model"), tmp_path)
    sizes = page.eval_on_selector_all(
        ".rows span, #keys li", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert len(sizes) == 2 * count and min(sizes) >= 9
    assert page.locator("#map").bounding_box()["width"] >= 12 * count
    assert fits(page)


def test_an_encoder_decoders_three_kinds(look, tmp_path):
    """The select of kinds changes map and words; an unequal number of layers and heads does no harm."""
    maps = [random_map(3, 6, "cross"), random_map(6, 6, "encoder")]
    maps.append(AttentionMap("few", ["a", "b"], ["a", "b"], torch.full((1, 1, 2, 2), 0.5)))
    page = opened(look, attention_page(maps, "model", word=2), tmp_path)
    before = drawing(page)
    page.select_option("#kind", label="encoder")
    assert drawing(page)[0] != before[0] and page.locator("#queries li").count() == 6
    page.select_option("#kind", label="few")
    assert page.inner_text("#asking") == "“b” attends to" and page.locator("#layer option").count() == 1
