"""Looking at attention: who attends to whom, read out of any model that the Auto classes open."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .runs import UserError

NEW_TOKENS = 40  # that an encoder-decoder writes where nobody says what it should have written
UNREAD = ("pooler", "classifier")  # what may be missing from a checkpoint: no attention is computed from it


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one kind of attention in one text, all layers and heads.

    Args:
        kind: what asks what, as it is shown to a reader.
        queries, keys: the T tokens that ask, and the S that are asked.
        weights: (layers, heads, T, S); a row sums to one.
        grid: rows and columns, where the tokens are patches of an image.
    """

    kind: str
    queries: list[str]
    keys: list[str]
    weights: torch.Tensor
    grid: tuple[int, int] | None = None

    def head(self, layer: int = -1, head: int | None = None) -> torch.Tensor:
        """(T, S) of one layer and head, both counted from 0 (from the end where negative); None: the heads' mean.

        Raises:
            ValueError: there is no such layer or head.
        """
        for name, number, count in (("layer", layer, len(self.weights)), ("head", head, self.weights.shape[1])):
            if number is not None and not -count <= number < count:
                raise ValueError(f"{name} {number}: {self.kind} has {name}s 0 to {count - 1}")
        weights = self.weights[layer]
        return weights.mean(dim=0) if head is None else weights[head]

    def query(self, word: str | int | None) -> int:
        """Which query is meant: a number, a token as it is shown, or None for one worth a first look.

        Raises:
            ValueError: no such query.
        """
        if word is None:
            return self.queries.index("it") if "it" in self.queries else len(self.queries) // 2
        if isinstance(word, int) and 0 <= word < len(self.queries):
            return word
        if isinstance(word, str) and word in self.queries:
            return self.queries.index(word)
        raise ValueError(f"word {word!r}: is none of the tokens: {' '.join(self.queries)}")


def load(
    directory: str | Path, *, image: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | BaseImageProcessor]:
    """A model directory as attention is read from it (eager, in float), and its tokenizer or image processor.

    Raises:
        UserError: it cannot be opened, reads the other kind of input, or lacks weights.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise UserError(f"--model {directory}: no config.json there; name a model directory")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        sees = hasattr(config, "patch_size") and hasattr(config, "image_size")
        if sees != image:
            raise UserError(f"--{'image' if image else 'text'}: {directory} reads {'images' if sees else 'text'}")
        model, loading = _auto_class(config, image).from_pretrained(
            directory,
            attn_implementation="eager",
            dtype=torch.float,
            output_loading_info=True,
            trust_remote_code=False,
        )
        reader = (AutoImageProcessor if image else AutoTokenizer).from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"--model {directory}: cannot be opened ({error})") from error
    missing = sorted(key for key in loading["missing_keys"] if not any(part in key for part in UNREAD))
    if missing:
        raise UserError(f"--model {directory}: weights are missing: {', '.join(missing[:5])}")
    return model.eval(), reader


def _auto_class(config: PreTrainedConfig, image: bool) -> type:
    if image:
        return AutoModelForImageClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModel


@torch.no_grad()
def read_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None = None
) -> list[AttentionMap]:
    """One map for an encoder or a decoder; three for an encoder-decoder: reading, writing, and asking what was read.

    Args:
        model: opened with `attn_implementation="eager"`: other backends never hold the weights.
        pair: an encoder's second segment; or what an encoder-decoder writes, otherwise its own greedy choice.

    Raises:
        UserError: an empty or too long text, or a model that has no such weights to show.
    """
    two_sides = model.config.is_encoder_decoder
    inputs = tokenizer(text, None if two_sides else pair, return_tensors="pt")
    if not text.strip() or inputs["input_ids"].shape[1] == 0:
        raise UserError("--text: is empty")
    _require_room(model, inputs["input_ids"].shape[1], "text")
    names = {"attentions": ("self-attention", "input_ids", "input_ids")}
    if two_sides:
        inputs["decoder_input_ids"] = _written(model, tokenizer, inputs, pair)
        _require_room(model, inputs["decoder_input_ids"].shape[1], "pair")
        names = {
            "cross_attentions": ("the decoder asks the encoder", "decoder_input_ids", "input_ids"),
            "encoder_attentions": ("the encoder, to itself", "input_ids", "input_ids"),
            "decoder_attentions": ("the decoder, to itself", "decoder_input_ids", "decoder_input_ids"),
        }
    outputs = model(**inputs, output_attentions=True)
    return [
        AttentionMap(kind, _labels(tokenizer, inputs[rows]), _labels(tokenizer, inputs[columns]), stacked)
        for name, (kind, rows, columns) in names.items()
        for stacked in [_stack(outputs.get(name), name, inputs[rows], inputs[columns])]
    ]


@torch.no_grad()
def read_image_attention(model: PreTrainedModel, processor: BaseImageProcessor, image) -> AttentionMap:
    """Who attends to whom among the patches of an image (PIL, or an array of pixels).

    Raises:
        UserError: the patches do not cover a square grid one to one.
    """
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    attentions = model(pixels, output_attentions=True).attentions
    side = model.config.image_size // model.config.patch_size
    extra = attentions[0].shape[-1] - side * side  # what stands before the patches, such as [CLS]
    if extra < 0:
        raise UserError("--image: this model's tokens are not the patches of one square grid")
    weights = torch.cat(attentions)[..., extra:, extra:]
    patches = [f"{row},{column}" for row in range(side) for column in range(side)]  # as matrices are read
    return AttentionMap("the patches, to each other", patches, patches, weights, grid=(side, side))


def _require_room(model: PreTrainedModel, length: int, flag: str) -> None:
    room = _positions(model)
    if length > room:
        raise UserError(f"--{flag}: {length} tokens, and the model has {room:,} positions; shorten it")


def _positions(model: PreTrainedModel) -> int:
    """How many tokens it was made for; where its config does not say (T5), as many as anybody would draw."""
    return getattr(model.config, "max_position_embeddings", None) or 2**20


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor], pair: str | None
) -> torch.LongTensor:
    """(1, T) what the decoder reads: its start token and what was written, but for the last token."""
    if pair is None:
        room = min(NEW_TOKENS, _positions(model) - 1)
        written = model.generate(**inputs, max_new_tokens=room, do_sample=False, num_beams=1)
        return written[:, :-1] if written.shape[1] > 1 else written
    labels = tokenizer(text_target=pair, return_tensors="pt")["input_ids"]
    start = model.config.decoder_start_token_id
    if labels[0, 0] == start:  # this tokenizer puts it there itself
        return labels[:, :-1]
    return torch.cat((labels.new_full((1, 1), start), labels[:, :-1]), dim=1)


def _labels(tokenizer: PreTrainedTokenizerBase, ids: torch.LongTensor) -> list[str]:
    """Tokens as a reader knows them: byte-level pieces decoded, the mark of a word's later pieces kept."""
    return [tokenizer.decode([i]).strip() or tokenizer.convert_ids_to_tokens(i) for i in ids[0].tolist()]


def _stack(
    layers: tuple[torch.Tensor, ...] | None, name: str, rows: torch.LongTensor, columns: torch.LongTensor
) -> torch.Tensor:
    shape = (rows.shape[1], columns.shape[1])
    if not layers or any(weights is None or weights.shape[-2:] != shape for weights in layers):
        raise UserError(f"--model: it gives no {name} of {shape[0]} x {shape[1]} tokens; nothing can be drawn")
    return torch.cat(layers).float().cpu()
