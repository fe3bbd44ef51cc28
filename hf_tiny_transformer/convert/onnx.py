"""Export a checkpoint as an ONNX graph in the layout of transformers.js, after comparing its outputs with torch.

This needs the extra `export` (onnx, onnxscript, onnxruntime).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx  # noqa: F401  (a missing package must show before the work, not after it)
import onnxscript  # noqa: F401
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..common.checkpoints import copy_tokenizer_files
from ..common.errors import UserError, first_line
from ..common.files import atomic_directory, require_free_output
from ..modeling_bert import TinyTransformerBertPreTrainedModel
from ..modeling_seq2seq import TinyTransformerSeq2SeqPreTrainedModel
from .stock import open_ours, stock_config

MODEL_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"  # where transformers.js looks
TOLERANCE = 1e-4  # largest difference of any output, fp32
LONGEST_CHECK = 512  # tokens


class Graph(nn.Module):
    """A model with its inputs by position and its outputs as a tuple, as the exporter requires.

    A model that generates also takes the keys and values of the previous tokens (none at first) and returns them with
    those of the new ones, named as transformers.js does: `past_key_values.0.key` and `present.0.key`, (B, H, P, D).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.several_choices = type(model).__name__.endswith("MultipleChoice")
        self.layers = model.config.num_hidden_layers if model.can_generate() else 0
        caches = [f"{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]
        self.input_names = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in caches)]
        if isinstance(model, TinyTransformerBertPreTrainedModel):
            self.input_names.append("token_type_ids")
        with torch.no_grad():
            outputs = self.run(self.example(2, 5))
        self.output_names = [name for name, value in outputs.items() if isinstance(value, torch.Tensor)]
        self.output_names += [f"present.{name}" for name in caches]

    def run(self, inputs: dict[str, torch.Tensor]) -> ModelOutput:
        """Return the model's outputs, with the cache if it generates."""
        if not self.layers:
            return self.model(**inputs, **{"use_cache": False} if hasattr(self.model.config, "use_cache") else {})
        ids, mask, *past = inputs.values()
        cache = DynamicCache(zip(past[::2], past[1::2], strict=True), config=self.model.config)
        return self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return outputs in the order of `output_names` for inputs in the order of `input_names`."""
        outputs = self.run(dict(zip(self.input_names, inputs, strict=True)))
        cached = outputs["past_key_values"].layers if self.layers else []
        present = [tensor for layer in cached for tensor in (layer.keys, layer.values)]
        return (*(outputs[name] for name in self.output_names if not name.startswith("present.")), *present)

    @property
    def axes(self) -> list[dict[int, torch.export.Dim]]:
        """Return the dynamic axes of each input; transformers.js makes its first cache of `batch_size`."""
        names = ("batch_size", "choices", "length") if self.several_choices else ("batch_size", "length")
        tokens = {axis: torch.export.Dim(name) for axis, name in enumerate(names)}
        if not self.layers:
            return [tokens] * len(self.input_names)
        mask = {0: tokens[0], 1: torch.export.Dim.DYNAMIC}  # past and new tokens
        return [tokens, mask, *[{0: tokens[0], 2: torch.export.Dim("past")}] * (2 * self.layers)]

    def example(self, batch_size: int, length: int, past: int = 0) -> dict[str, torch.Tensor]:
        """Return random texts; if there are several, the last one is padded, in its `past` tokens if it has any."""
        config = self.model.config
        shape = (batch_size, 3, length) if self.several_choices else (batch_size, length)
        generator = torch.Generator().manual_seed(batch_size * 1000 + length)
        ids = torch.randint(0, config.vocab_size, shape, generator=generator)
        mask = torch.ones(*shape[:-1], past + length, dtype=torch.long)
        if batch_size > 1:
            window = getattr(config, "sliding_window", None) or length  # padding that sees only padding is undefined
            hidden = slice(0, past // 3) if past else slice(length - min(length // 3, window), None)
            mask[-1, ..., hidden] = 0
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": (torch.arange(length) > 1).long().expand(shape).contiguous(),
        }
        heads = (batch_size, config.num_attention_heads, past, config.hidden_size // config.num_attention_heads)
        return {
            name: inputs[name] if name in inputs else torch.randn(heads, generator=generator)
            for name in self.input_names
        }


def export_onnx(source: Path, output: Path, *, int8: bool = False) -> tuple[PreTrainedModel, float]:
    """Write one of our checkpoints as ONNX (fp32, any batch size and length), with its tokenizer and config.json.

    config.json is that of the stock architecture with the same function, if there is one. With `int8`, there is also a
    file with 8-bit weights (onnxruntime's dynamic quantization).

    Returns:
        Our model, and the largest difference between onnxruntime and torch.

    Raises:
        UserError: The family or a setting cannot be exported, or outputs differ from torch's by more than `TOLERANCE`.
    """
    require_free_output(output)
    model = open_ours(source).float()
    if isinstance(model, TinyTransformerSeq2SeqPreTrainedModel) or model.main_input_name != "input_ids":
        raise UserError(f"{source}: --format onnx supports the families Bert, Encoder and Decoder, without images")
    if model.can_generate() and model.config.sliding_window:
        raise UserError(f"{source}: --format onnx cannot export a Decoder with sliding_attention layers")
    graph = Graph(model).eval()
    with atomic_directory(output) as staging:
        file = staging / MODEL_FILE
        file.parent.mkdir()
        with _quiet():
            _write_graph(graph, file, source)
            if int8:
                quantize_dynamic(str(file), str(staging / INT8_FILE), weight_type=QuantType.QInt8, per_channel=True)
        difference = compare(graph, file)
        if not difference <= TOLERANCE:  # also if it is NaN
            problem = f"onnxruntime's outputs differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}"
            raise UserError(f"{source}: {problem}; nothing was written")
        try:
            config: PreTrainedConfig = stock_config(model)  # which transformers.js knows
        except UserError:
            config = model.config
            vars(config).pop("auto_map", None)  # its code is not stored there
        config.to_json_file(staging / "config.json")
        if model.can_generate():
            model.generation_config.save_pretrained(staging)
        copy_tokenizer_files(source, staging)
    return model, difference


def compare(graph: Graph, file: Path) -> float:
    """Return the largest difference between onnxruntime and torch on random texts of several shapes."""
    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    longest = min(graph.model.config.max_position_embeddings, LONGEST_CHECK)
    differences = []
    shapes = [(1, 1, 0), (1, 2, 0), (2, 7, 0), (3, min(longest, 33), 0), (1, longest, 0)]
    for shape in [*shapes, *([(1, 1, 1), (2, 1, 9), (2, 4, 3)] if graph.layers else [])]:
        inputs = graph.example(*shape)
        with torch.no_grad():
            expected = graph(*inputs.values())
        got = session.run(graph.output_names, {name: tensor.numpy() for name, tensor in inputs.items()})
        differences += [np.abs(mine.numpy() - theirs).max() for mine, theirs in zip(expected, got, strict=True)]
    return float(np.max(differences))  # keeps a NaN


def _write_graph(graph: Graph, file: Path, source: Path) -> None:
    inputs = graph.example(2, 7, past=5 if graph.layers else 0)
    try:
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=(tuple(graph.axes),),
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # it is with dynamo=True
        program.save(str(file), external_data=False)
    except Exception as error:  # torch raises many types for what it cannot trace
        raise UserError(f"{source}: torch cannot export this model ({first_line(error.__cause__ or error)})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' notices about packages and operators that are not used here."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
