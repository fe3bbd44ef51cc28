"""Read attention weights from any model that the Auto classes open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    BaseImageProcessor,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..common.checkpoints import UNLIMITED, load_model, read_config, read_tokenizer
from ..common.errors import UserError, one_line

NEW_TOKENS = 40  # that an encoder-decoder generates if no target is given


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one kind of attention in one text, for all layers and heads."""

    kind: str  # which tokens attend to which
    queries: list[str]  # T tokens
    keys: list[str]  # S tokens
    weights: torch.Tensor  # (layers, heads, T, S); each row sums to one
    grid: tuple[int, int] | None = None  # rows and columns, if the tokens are patches of an image

    def head(self, layer: int = -1, head: int | None = None) -> torch.Tensor:
        """Return the weights (T, S) of a layer and head, from 0 or, if negative, from the end; None averages the heads.

        Raises:
            ValueError: There is no such layer or head.
        """
        for name, number, count in (("layer", layer, len(self.weights)), ("head", head, self.weights.shape[1])):
            if number is not None and not -count <= number < count:
                raise ValueError(f"{name} {number}: the model has {name}s 0 to {count - 1} ({self.kind})")
        weights = self.weights[layer]
        return weights.mean(dim=0) if head is None else weights[head]

    def query(self, word: str | int | None) -> int:
        """Return the position of a query given by number or token; None is "it", or else the middle of the text.

        Raises:
            ValueError: There is no such query.
        """
        if word is None:
            return self.queries.index("it") if "it" in self.queries else len(self.queries) // 2
        if isinstance(word, int) and 0 <= word < len(self.queries):
            return word
        if isinstance(word, str) and word in self.queries:
            return self.queries.index(word)
        raise ValueError(f"word {word!r}: not among the tokens {' '.join(self.queries)}")


Reader = PreTrainedTokenizerBase | BaseImageProcessor


def load(source: str | Path, *, image: bool = False) -> tuple[PreTrainedModel, Reader]:
    """Load a model with eager attention in fp32, and its tokenizer or, for a model of images, its image processor."""
    config = read_config(source)
    reads_images = hasattr(config, "patch_size") and hasattr(config, "image_size")
    if reads_images != image:
        raise UserError(f"--{'image' if image else 'text'}: {source} reads {'images' if reads_images else 'text'}")
    two_sides = config.is_encoder_decoder
    auto_class = AutoModelForImageClassification if image else AutoModelForSeq2SeqLM if two_sides else AutoModel
    # no attention depends on a pooler or classifier
    model = load_model(source, auto_class, config, new_head=not two_sides, attn_implementation="eager")
    if not image:
        return model, read_tokenizer(source, config)
    try:
        return model, AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers and huggingface_hub have their own types
        raise UserError(f"--model {source}: its image processor cannot be read ({one_line(error, 200)})") from None


@torch.no_grad()
def read_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None = None
) -> list[AttentionMap]:
    """Return the attention in a text: one map of an encoder or decoder, three of an encoder-decoder.

    The model must have `attn_implementation="eager"`; other backends do not compute the weights. `pair` is a second
    segment or, for an encoder-decoder, the target (None: generate it greedily).

    Raises:
        UserError: The text is empty or too long, or the model returns no weights.
    """
    two_sides = model.config.is_encoder_decoder
    inputs = tokenizer(text, None if two_sides else pair, return_tensors="pt")
    if not text.strip() or inputs["input_ids"].shape[1] == 0:
        raise UserError("--text: is empty")
    _require_room(model, inputs["input_ids"].shape[1], "text")
    names = {"attentions": ("self-attention", "input_ids", "input_ids")}
    if two_sides:
        inputs["decoder_input_ids"] = _target(model, tokenizer, inputs, pair)
        _require_room(model, inputs["decoder_input_ids"].shape[1], "pair")
        names = {
            "cross_attentions": ("cross-attention, decoder to encoder", "decoder_input_ids", "input_ids"),
            "encoder_attentions": ("self-attention of the encoder", "input_ids", "input_ids"),
            "decoder_attentions": ("self-attention of the decoder", "decoder_input_ids", "decoder_input_ids"),
        }
    outputs, maps = model(**inputs, output_attentions=True), []
    for name, (kind, rows, columns) in names.items():
        queries, keys = _labels(tokenizer, inputs[rows]), _labels(tokenizer, inputs[columns])
        layers, shape = outputs.get(name), (len(queries), len(keys))
        if not layers or any(weights is None or weights.shape[-2:] != shape for weights in layers):
            raise UserError(f"--model: it returns no {name} of {shape[0]} x {shape[1]} tokens, so nothing can be drawn")
        maps.append(AttentionMap(kind, queries, keys, torch.cat(layers).float().cpu()))
    return maps


@torch.no_grad()
def read_image_attention(model: PreTrainedModel, processor: BaseImageProcessor, image: Any) -> AttentionMap:
    """Return the attention among the patches of an image, a PIL image or an array of pixels.

    Raises:
        UserError: The tokens are not the patches of one square grid.
    """
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    attentions = model(pixels, output_attentions=True).attentions
    side = model.config.image_size // model.config.patch_size
    extra = attentions[0].shape[-1] - side * side  # tokens before the patches, such as [CLS]
    if extra < 0:
        raise UserError("--image: the tokens of this model are not the patches of one square grid")
    weights = torch.cat(attentions)[..., extra:, extra:]
    patches = [f"{row},{column}" for row in range(side) for column in range(side)]
    return AttentionMap("self-attention of the patches", patches, patches, weights, grid=(side, side))


def _require_room(model: PreTrainedModel, length: int, flag: str) -> None:
    if length > (positions := _positions(model)):
        raise UserError(f"--{flag}: {length} tokens, but the model has {positions:,} positions; shorten it")


def _positions(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_position_embeddings", None) or UNLIMITED  # T5's config has no limit


def _target(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: BatchEncoding, pair: str | None
) -> torch.Tensor:
    """Return the decoder's input (1, T): its start token and the target without its last token."""
    if pair is None:
        room = min(NEW_TOKENS, _positions(model) - 1)
        generate = cast("Callable[..., torch.Tensor]", model.generate)
        generated = generate(**inputs, max_new_tokens=room, do_sample=False, num_beams=1)
        return generated[:, :-1] if generated.shape[1] > 1 else generated
    labels = tokenizer(text_target=pair, return_tensors="pt")["input_ids"]
    start = model.config.decoder_start_token_id
    if labels[0, 0] == start:  # this tokenizer adds it
        return labels[:, :-1]
    return torch.cat((labels.new_full((1, 1), start), labels[:, :-1]), dim=1)


def _labels(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> list[str]:
    """Return readable tokens: byte-level tokens are decoded, and the mark of a continued word is kept."""
    return [str(tokenizer.decode([i])).strip() or str(tokenizer.convert_ids_to_tokens(i)) for i in ids[0].tolist()]
