"""`python -m hf_tiny_transformer attend`: attention as a page and as a picture."""

import argparse
import base64
import io
import os
import tempfile
from pathlib import Path
from typing import Any

from .attend import AttentionMap, load, read_attention, read_image_attention
from .page import render_page
from .runs import UserError, atomic_write_text

TEMPLATE = Path(__file__).parent / "attend.html"
MAX_WEIGHTS = 12_000_000  # a page of 32 MB; beyond that browsers make one wait


def add_attend_command(commands: argparse._SubParsersAction) -> None:
    """Registers the sub-command."""
    command = commands.add_parser("attend", help="draw a model's attention in a text", allow_abbrev=False)
    command.add_argument("--model", type=Path, required=True, help="model directory, ours or stock")
    given = command.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="what the model reads")
    given.add_argument("--image", type=Path, help="what a model of images sees")
    command.add_argument("--pair", help="second segment; of an encoder-decoder: what it writes (default: its own)")
    command.add_argument("--layer", type=int, default=-1, help="shown first, from 0 (default: the last)")
    command.add_argument("--head", type=int, help="shown first, from 0 (default: the mean of the heads)")
    command.add_argument("--word", help="token whose lines are shown first")
    command.add_argument("--output", type=Path, metavar="PAGE.html", help="page to write; replaced if it is there")
    command.add_argument("--png", type=Path, metavar="FILE.png", help="picture to write; replaced if it is there")
    command.set_defaults(run=attend)


def attend(given: argparse.Namespace) -> None:
    """Reads the weights, writes the page and the picture.

    Raises:
        UserError: as `load` and `read_attention`; or no such layer, head, word or place to write to.
    """
    _require_places(given)
    image = None if given.image is None else _open_image(given.image)
    model, reader = load(given.model, image=image is not None)
    if image is not None:
        maps = [read_image_attention(model, reader, image)]
    else:
        maps = read_attention(model, reader, given.text, given.pair)
    try:
        maps[0].head(given.layer, given.head)
        word = maps[0].query(given.word)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if given.output is not None:
        page = attention_page(maps, given.model.resolve().name, given.layer, given.head, word, image)
        atomic_write_text(given.output, page)
        print(f"{given.output}: {len(page) / 1e6:.1f} MB, {' and '.join(_describe(one) for one in maps)}")
    if given.png is not None:
        _write_png(given.png, maps[0], given.layer, given.head, word, image)
        print(f"{given.png}: {maps[0].kind}")


def attention_page(
    maps: list[AttentionMap], name: str, layer: int = -1, head: int | None = None, word: int = 0, image: Any = None
) -> str:
    """The page as text.

    Args:
        maps: of one text; all have the same number of layers and heads.
        name: the model's.
        layer, head, word: what is shown first, of the first map; as in `AttentionMap.head`.
        image: PIL, what the patches of the maps were cut from.

    Raises:
        UserError: more weights than a page should hold.
    """
    count = sum(one.weights.numel() for one in maps)
    if count > MAX_WEIGHTS:
        raise UserError(f"--text: {count:,} weights are too many for a page (at most {MAX_WEIGHTS:,}); shorten it")
    layers, heads = maps[0].weights.shape[:2]
    data = {
        "name": name,
        "layer": layer % layers,
        "head": heads if head is None else head % heads,  # one past the last stands for the mean
        "word": word,
        "image": None if image is None else _data_uri(image),
        "maps": [
            {
                "kind": one.kind,
                "queries": one.queries,
                "keys": one.keys if one.keys != one.queries else None,
                "shape": list(one.weights.shape),
                "grid": one.grid,
                "weights": _packed(one),
            }
            for one in maps
        ],
    }
    return render_page(TEMPLATE, f"Attention: {name}", data)


def _packed(one: AttentionMap) -> str:
    """Base64 of little-endian 16-bit numbers, 65535 for a weight of one: a quarter of the same numbers as text."""
    return base64.b64encode((one.weights * 65535).round().numpy().astype("<u2").tobytes()).decode("ascii")


def _require_places(given: argparse.Namespace) -> None:
    if given.output is None and given.png is None:
        raise UserError("attend: name what to write: --output PAGE.html, --png FILE.png, or both")
    for flag, path in (("output", given.output), ("png", given.png)):
        suffix = ".png" if flag == "png" else ".html"
        if path is not None and (path.suffix.lower() != suffix or path.is_dir()):
            raise UserError(f"--{flag} {path}: name a file that ends in {suffix}")
    if given.image is not None and given.pair is not None:
        raise UserError("--pair: goes with --text, not with --image")


def _open_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.copy()
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"--image {path}: cannot be read as an image ({error})") from error


def _data_uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _write_png(path: Path, one: AttentionMap, layer: int, head: int | None, word: int, image: Any) -> None:
    try:
        from .attend_figure import draw_attention, draw_over_image
    except ImportError as error:
        raise UserError(f"--png: drawing needs matplotlib, which is not installed ({error})") from error
    figure = draw_attention(one, layer, head, word) if image is None else draw_over_image(one, image, layer, head, word)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as staging:
        figure.savefig(Path(staging) / path.name, dpi=120)
        os.replace(Path(staging) / path.name, path)


def _describe(one: AttentionMap) -> str:
    layers, heads, queries, keys = one.weights.shape
    return f"{one.kind} ({layers} layers, {heads} heads, {queries} x {keys} tokens)"
