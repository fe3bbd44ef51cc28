"""Self-contained HTML pages: one style (`page.css`), data as JSON, nothing from a network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

STYLE = Path(__file__).parent / "page.css"


def render_page(template: Path, title: str, data: Any, scripts: Sequence[Path] = ()) -> str:
    """Fill in {{title}}, {{style}}, {{NAME}} of each script file and, as JSON for a script element, {{data}}.

    "<" is escaped in the data, so that no text can end the element.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = template.read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(title)).replace("{{style}}", STYLE.read_text(encoding="utf-8"))
    for script in scripts:
        page = page.replace("{{" + script.name + "}}", script.read_text(encoding="utf-8"))
    return page.replace("{{data}}", text)  # last, because the data may contain {{title}}


def require_file_name(flag: str, path: Path, suffix: str) -> None:
    """Raise a UserError if the name of a file to write has another suffix, or is a directory."""
    if path.suffix.lower() != suffix or path.is_dir():
        raise UserError(f"{flag} {path}: expected the name of a {suffix} file")
