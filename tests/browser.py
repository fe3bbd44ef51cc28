"""Helpers for tests of HTML pages; the fixture `look` in conftest.py opens the browser."""

from pathlib import Path
from typing import Any


def opened(page: Any, text: str, folder: Path) -> Any:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    page.goto(path.as_uri())
    return page


def fits(page: Any) -> bool:
    """Nothing exceeds the width of the window (a wide map scrolls in its own frame)."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
