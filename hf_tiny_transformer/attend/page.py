"""The command `attend`: a model's attention in a text or image, as an HTML page and as a picture."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor

from ..common.arguments import CommandParser
from ..common.errors import UserError, plural
from ..common.files import atomic_file, atomic_write_text
from ..common.pages import render_page, require_file_name
from .read import AttentionMap, load, read_attention, read_image_attention

TEMPLATE = Path(__file__).parent / "attention.html"
MAX_WEIGHTS = 12_000_000  # a page of 32 MB; larger ones are slow in browsers


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = CommandParser("hf-tiny-transformer attend", "Show a model's attention as an HTML page or a picture.")
    parser.add_argument("--model", type=str, required=True, help="Model directory or Hub model, ours or stock.")
    parser.add_argument("--text", type=str, help="Text that the model reads.")
    parser.add_argument("--image", type=Path, help="Image file, for an image model.")
    target = "for an encoder-decoder, the target text (default: what the model generates)."
    parser.add_argument("--pair", type=str, help=f"Second segment; {target}")
    layer = "Layer that is shown first, from 0; negative counts from the end."
    parser.add_argument("--layer", type=int, default=-1, help=layer)
    parser.add_argument("--head", type=int, help="Head that is shown first, from 0 (default: the mean of the heads).")
    parser.add_argument("--word", type=str, help="Token whose attention is shown first.")
    parser.add_argument("--output", type=Path, help="HTML page to write; an existing file is replaced.")
    parser.add_argument("--png", type=Path, help="Picture to write; an existing file is replaced.")
    live = (
        "Write a page that holds the model and computes attention and predictions while you type; --text is optional."
    )
    parser.add_argument("--live", action="store_true", help=live)
    parser.add_argument(
        "--fp32", action="store_true", help="With --live, keep full precision (default: 8-bit weights)."
    )
    settings = parser.parse(argv)
    if settings.live:
        return _write_live(settings)
    if settings.fp32:
        raise UserError("--fp32 requires --live")
    if (settings.text is None) == (settings.image is None):
        raise UserError("exactly one of --text and --image is required")
    if settings.pair is not None and settings.text is None:
        raise UserError("--pair requires --text")
    if settings.output is None and settings.png is None:
        raise UserError("nothing to write; give --output PAGE.html, --png FILE.png, or both")
    for flag, path, suffix in (("--output", settings.output, ".html"), ("--png", settings.png, ".png")):
        if path is not None:
            require_file_name(flag, path, suffix)
    image = None if settings.image is None else _open_image(settings.image)
    model, reader = load(settings.model, image=image is not None)
    if isinstance(reader, BaseImageProcessor):
        maps = [read_image_attention(model, reader, image)]
    else:
        maps = read_attention(model, reader, settings.text or "", settings.pair)
    layer, head = settings.layer, settings.head
    try:
        maps[0].head(layer, head)
        word = maps[0].query(settings.word)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    if settings.output is not None:
        page = attention_page(maps, Path(settings.model).resolve().name, layer, head, word, image)
        atomic_write_text(settings.output, page)
        drawn = [
            f"{one.kind} ({plural(len(one.weights), 'layer')}, {plural(one.weights.shape[1], 'head')})" for one in maps
        ]
        print(f"{settings.output}: {len(page) / 1e6:.1f} MB, {' and '.join(drawn)}")
    if settings.png is not None:
        from .figure import draw_attention, draw_over_image  # needs matplotlib

        figure = draw_attention(maps[0], layer, head, word)
        if image is not None:
            figure = draw_over_image(maps[0], image, layer, head, word)
        with atomic_file(settings.png) as stream:
            figure.savefig(stream, format="png", dpi=120)
        print(f"{settings.png}: {maps[0].kind}")


def _write_live(settings: Any) -> None:
    from .live import live_page

    others = {name: getattr(settings, name) for name in ("image", "pair", "head", "word", "png")}
    if given := [f"--{name}" for name, value in others.items() if value is not None]:
        raise UserError(
            f"{given[0]} cannot be used with --live: the page itself offers the choice, or does not have it"
        )
    if settings.output is None:
        raise UserError("--live requires --output PAGE.html")
    require_file_name("--output", settings.output, ".html")
    page = live_page(settings.model, text=settings.text, fp32=settings.fp32)
    atomic_write_text(settings.output, page)
    print(f"{settings.output}: {len(page.encode()) / 1e6:.1f} MB, open it in a browser")


def attention_page(
    maps: list[AttentionMap], name: str, layer: int = -1, head: int | None = None, word: int = 0, image: Any = None
) -> str:
    """Return a page about the maps of one text or `image` (PIL); `layer`, `head` and query `word` are shown first."""
    count = sum(one.weights.numel() for one in maps)
    if count > MAX_WEIGHTS:
        raise UserError(f"--text: {count:,} weights are too many for a page (at most {MAX_WEIGHTS:,}); shorten it")
    layers, heads = maps[0].weights.shape[:2]
    png = io.BytesIO()
    if image is not None:
        image.save(png, format="PNG")
    data = {
        "name": name,
        "layer": layer % layers,
        "head": heads if head is None else head % heads,  # one past the last is the mean
        "word": word,
        "image": None if image is None else f"data:image/png;base64,{b64encode(png.getvalue()).decode()}",
        "maps": [
            {
                "kind": one.kind,
                "queries": one.queries,
                "keys": one.keys if one.keys != one.queries else None,
                "shape": list(one.weights.shape),
                "grid": one.grid,
                "weights": b64encode((one.weights * 65535).round().numpy().astype("<u2").tobytes()).decode(),
            }
            for one in maps
        ],
    }
    return render_page(TEMPLATE, f"Attention: {name}", data)


def _open_image(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.copy()
    except OSError as error:
        raise UserError(f"--image {path}: cannot be read as an image ({error})") from None
