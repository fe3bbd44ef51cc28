"""Draw the pictures of the tour: of the code itself, and of trained models if they exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from hf_tiny_transformer.attend.figure import HEAT, draw_attention, draw_over_image
from hf_tiny_transformer.attend.read import AttentionMap, load, read_attention, read_image_attention
from hf_tiny_transformer.layers import sinusoidal_positions

from .numbers import HEAD_DIM, SCORES, STUDENT, attend_to, encoder_parts, masked_weights

IT = "i saw the film twice because it was so good ."
SPANS = "the [SPAN0] is great and i [SPAN1] it ."
BLANK = "this movie is a complete [MASK] of time ."
DPI = 90


def draw_all(folder: Path, encoder: Path, seq2seq: Path, digits: Path) -> Iterator[str]:
    """Draw what can be drawn into `folder`; yield a line for each group of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = {None: of_the_code, encoder: of_an_encoder, seq2seq: of_a_seq2seq, digits: of_digits}
    for model, draw in groups.items():
        if model is not None and not (model / "config.json").is_file():
            yield f"{model}: no such model; its pictures are unchanged"
            continue
        figures = draw() if model is None else draw(model)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)
        yield f"{folder}: {', '.join(figures)}"


def of_the_code() -> dict[str, Figure]:
    """Draw the pictures that need no trained model."""
    student = AttentionMap("all scores equal", list(STUDENT), list(STUDENT), masked_weights()[None, None])
    return {
        "computing": scores_and_weights(),
        "positions": sinusoids(),
        "encoder": parameters(),
        "mask": draw_attention(student, head=0, parts=["map"]),
    }


def of_an_encoder(directory: Path) -> dict[str, Figure]:
    """Draw the attention of the model from `make pretrain`, and its guesses for a blank."""
    model, tokenizer = load(directory)
    (it,) = read_attention(model, tokenizer, IT)
    return {
        "why": draw_attention(it, word="it", parts=["lines"]),
        "self-attention": draw_attention(it, parts=["map"]),
        "heads": heads(it),
        "bert": guesses(directory),
    }


def of_a_seq2seq(directory: Path) -> dict[str, Figure]:
    """Draw the cross-attention of an encoder-decoder."""
    cross = read_attention(*load(directory), SPANS)[0]
    return {"decoder": draw_attention(cross, parts=["map"])}


def of_digits(directory: Path) -> dict[str, Figure]:
    """Draw the attention over an image."""
    model, processor = load(directory, image=True)
    image = Image.open(directory / "example.png")
    return {"digits": draw_over_image(read_image_attention(model, processor, image), image)}


def heads(one: AttentionMap) -> Figure:
    """Draw every layer (top to bottom) and head (left to right), each scaled to its own largest weight."""
    layers, count = one.weights.shape[:2]
    figure = Figure(figsize=(2.2 * count + 0.3, 2.2 * layers * 1.12), layout="constrained")
    for layer, row in enumerate(figure.subplots(layers, count, squeeze=False)):
        for head, axes in enumerate(row):
            axes.imshow(one.head(layer, head), cmap=HEAT, vmin=0, aspect="auto")
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
            axes.set(xticks=[], yticks=[])
    return figure


def scores_and_weights() -> Figure:
    """Draw how two scores become two weights."""
    weights, _ = attend_to(SCORES)
    steps = {
        "q · k": SCORES,
        f"divided by √{HEAD_DIM}": [score / HEAD_DIM**0.5 for score in SCORES],
        "softmax": weights.tolist(),
    }
    figure = Figure(figsize=(7, 1.6), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(steps)), steps.items(), strict=True):
        bars(
            axes, title, dict(zip(("word 1", "word 2"), values, strict=True)), "{:.2f}" if sum(values) < 2 else "{:.0f}"
        )
    return figure


def sinusoids() -> Figure:
    """Draw the position vectors of 64 positions."""
    vectors = sinusoidal_positions(torch.arange(64)[None], 128, torch.float)[0]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    shades = axes.imshow(vectors, cmap=HEAT, aspect="auto")
    axes.set(xlabel="feature", ylabel="position")
    figure.colorbar(shades, ax=axes)
    return figure


def parameters() -> Figure:
    """Draw the number of parameters in each part of the sample recipe's model."""
    figure = Figure(figsize=(7, 1.9), layout="constrained")
    bars(figure.subplots(), "parameters", encoder_parts(), "{:,}")
    return figure


def guesses(directory: Path) -> Figure:
    """Draw the most likely tokens for the blank."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")(BLANK, top_k=6)
    figure = Figure(figsize=(7, 2.3), layout="constrained")
    bars(figure.subplots(), BLANK, {one["token_str"].strip(): one["score"] for one in found}, "{:.2f}")
    return figure


def bars(axes: Axes, title: str, values: dict[str, float], written: str) -> None:
    """Draw a bar for each value, the first at the top, with its number formatted by `written`."""
    drawn = axes.barh(list(values), list(values.values()), color="#74aed4")
    axes.bar_label(drawn, [written.format(value) for value in values.values()], padding=3)
    axes.set(title=title, xticks=[], xlim=(0, 1.3 * max(values.values())))
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
