"""Protects the page that compares pretraining runs in a real browser."""

from browser import fits, opened
from test_pretrain_report import leave_run

from pretrain.report import report


def test_runs_are_drawn_compared_and_hidden(look, tmp_path):
    """A curve for each run over tokens and over minutes; its name takes it away; the pointer reads it."""
    names = [leave_run(tmp_path / "first", learning_rate=0.01), leave_run(tmp_path / "second", level=3.0)]
    page = opened(look, report(names), tmp_path)
    assert page.locator("#tokens .smoothed").count() == page.locator("#seconds .smoothed").count() == 2
    before = page.locator("#tokens .smoothed").last.get_attribute("d")
    assert "NaN" not in page.inner_html(".charts")
    page.hover("#tokens", position={"x": 150, "y": 150})
    told = page.inner_text("#tip").splitlines()
    assert "M tokens" in told[0] and [line.split(": ")[0] for line in told[1:]] == [str(name) for name in names]
    page.click(".legend button >> nth=0")
    assert page.locator("#tokens .smoothed").count() == 1
    assert page.locator("#tokens .smoothed").last.get_attribute("d") != before  # it has the room to itself
    assert page.inner_text("#differing tbody").split() == ["learning_rate", "0.01", "0.002"]
    page.click(".legend button >> nth=1")
    assert page.locator("#tokens path").count() == 0
    assert fits(page)
