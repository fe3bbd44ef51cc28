"""HTML pages that hold everything they need: one look (`page.css`), their data as JSON, nothing from a network."""

import html
import json
from pathlib import Path
from typing import Any

STYLE = Path(__file__).parent / "page.css"


def render_page(template: Path, title: str, data: Any) -> str:
    """Fills in a template's {{title}}, {{style}} and {{data}}.

    The data lies in a script element of its own; "<" is escaped there, so that no text can end the element.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = template.read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(title)).replace("{{style}}", STYLE.read_text(encoding="utf-8"))
    return page.replace("{{data}}", text)  # last: what it holds is not looked into
