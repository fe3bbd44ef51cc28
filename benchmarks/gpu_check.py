"""The measurements of `benchmarks.gpu --part check`: equal computations on CPU and GPU, and speed next to stock BERT.

python -m benchmarks.gpu_check --what equality
python -m benchmarks.gpu_check --what speed
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from hf_tiny_transformer import TinyTransformerBertConfig, TinyTransformerDecoderConfig, TinyTransformerEncoderConfig
from hf_tiny_transformer.common.environment import supports_bf16
from hf_tiny_transformer.common.errors import RunError, run_command
from pretrain import varlen
from pretrain.data.packed import positions_since

from .command import parse
from .throughput import ThroughputSettings, measure

# Allowed relative distance of a gradient from the CPU's, for rounding; fixed before the first measurement.
LIMITS = {"fp32": 1e-3, "bf16": 5e-2}
FAMILIES = {
    "encoder": (AutoModelForMaskedLM, TinyTransformerEncoderConfig),
    "bert": (AutoModelForMaskedLM, TinyTransformerBertConfig),
    "decoder": (AutoModelForCausalLM, TinyTransformerDecoderConfig),
}
# Shape, rows, tokens per row: equal on both sides, and no more than stock's logits leave room for on 80 GB.
SPEED = [("2x128", 512, 128), ("4x256", 512, 128), ("7x256", 128, 512), ("12x768", 64, 512)]
VOCABULARY, CLS = 1000, 2


@dataclass(frozen=True)
class CheckSettings:
    """What to measure.

    Args:
        what: equality or speed.
        results: File to append to, besides printing.
        seconds: Seconds after which no measurement begins.
        small: Use tiny shapes.
    """

    what: Literal["equality", "speed"]
    results: Path | None = None
    seconds: float = 500.0
    small: bool = False


@dataclass(frozen=True)
class Variant:
    """A way to compute the same loss; `layout` is packed or padded."""

    device: str
    precision: str
    attention: str
    layout: str = "packed"
    compiled: bool = False

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        return f"{self.device}, {self.precision}, {self.attention}, {self.layout}{compiled}"


REFERENCE = Variant("cpu", "fp32", "sdpa")


def main() -> None:
    """Measure, and print Markdown."""
    settings = parse("gpu_check", __doc__, CheckSettings)
    lines = equality(settings) if settings.what == "equality" else speed(settings)
    for line in lines:
        print(line, flush=True)
        if settings.results is not None:
            with settings.results.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")


def equality(settings: CheckSettings) -> Iterator[str]:
    """Compare loss and gradients of all variants with those of the CPU in fp32.

    Raises:
        RunError: One is further away than its limit.
    """
    yield "\n| family | variant | loss | gradient's distance from the CPU's | limit |"
    yield "| --- | --- | ---: | ---: | ---: |"
    too_far = []
    for family in ("encoder",) if settings.small else FAMILIES:
        model, packed = _model(family), _packed_batch(family)
        _, reference = _loss_and_gradient(model, packed, REFERENCE)
        for variant in [REFERENCE, *_variants(family)]:
            batch = packed if variant.layout == "packed" else _padded(packed)
            loss, gradient = _loss_and_gradient(model, batch, variant)
            distance = float((gradient - reference).norm() / reference.norm())
            limit = LIMITS[variant.precision]
            yield f"| {family} | {variant} | {loss:.4f} | {distance:.1e} | {limit:.0e} |"
            if not distance <= limit:
                too_far.append(f"{family}, {variant}")
    if too_far:
        raise RunError(f"gradients differ: {'; '.join(too_far)}")
    yield ""


def speed(settings: CheckSettings) -> Iterator[str]:
    """Measure both sides, as they are and compiled, at four shapes."""
    yield "\n| shape | rows x tokens | | tokens/s | of stock | matrix rate | peak GiB | kernels | busy | attention |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    end, small = time.monotonic() + settings.seconds, settings.small
    for shape, rows, length in [("2x128", 4, 32)] if small else SPEED:
        best_stock = 0.0
        for side in ("stock", "ours"):
            for compiled in (False,) if small else (False, True):
                if time.monotonic() > end - 30:
                    yield "\nno time left for the rest"
                    return
                size = 1000 if small else 30522
                done = _speed(ThroughputSettings(shape, size, rows, length=length, compile=compiled, side=side), small)
                best_stock = max(best_stock, done["rate"]) if side == "stock" else best_stock
                name = f"{side}{', compiled' if compiled else ''}"
                for busy, count, kernel in done["longest"]:
                    print(f"    {1e3 * busy:8.3f} ms {count:5d} x {kernel}", flush=True)
                share = f"{100 * done['flops'] / done['matrix_rate']:.0f} %"
                yield (
                    f"| {shape} | {rows} x {length} | {name} | {done['rate']:,.0f} | {done['rate'] / best_stock:.2f} | "
                    f"{share} | {done['memory'] / 2**30:.1f} | {done['kernels']} | "
                    f"{100 * done['busy']:.0f} % | {done['attention']} |"
                )
    yield f"\nmatrix product {done['matrix_rate'] / 1e12:.1f} TFLOP/s"


def _speed(settings: ThroughputSettings, small: bool) -> dict[str, Any]:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return measure(replace(settings, threads=torch.get_num_threads(), optimizer="muon", seconds=0.1 if small else 3.0))


def _variants(family: str) -> list[Variant]:
    """Return what this machine can compute."""
    if not torch.cuda.is_available():
        return [Variant("cpu", "fp32", "sdpa", "padded"), Variant("cpu", "fp32", "eager")]
    found = [Variant("cuda", "fp32", "sdpa"), Variant("cuda", "fp32", "sdpa", compiled=True)]
    if supports_bf16():
        found += [Variant("cuda", "bf16", "sdpa", layout) for layout in ("packed", "padded")]
        for attention in ("sdpa", "varlen"):
            found += [Variant("cuda", "bf16", attention, compiled=compiled) for compiled in (False, True)][
                attention == "sdpa" :
            ]
        found.append(Variant("cuda", "bf16", "flex_attention", compiled=True))
    return found


def _model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    auto_class, config_class = FAMILIES[family]
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if family == "bert" else {}
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    return auto_class.from_config(config_class(vocab_size=VOCABULARY, **shape, **dropout)).train()


def _packed_batch(family: str) -> dict[str, torch.Tensor]:
    """Return 8 rows of 128 tokens with two or three documents each; every fifth token is a target."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, size=(8, 128))
    ids[:, [0, 50]], ids[::2, 90] = CLS, CLS
    positions = positions_since(ids == CLS)
    targets = np.flatnonzero(positions.reshape(-1) % 5 == 3)
    labels = ids.reshape(-1)[targets + 1 if family == "decoder" else targets]
    arrays = {"input_ids": ids, "position_ids": positions, "target_positions": targets, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _padded(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same documents, one per row, padded to the longest."""
    ids, positions = packed["input_ids"].flatten(), packed["position_ids"].flatten()
    document, longest = (positions == 0).cumsum(0) - 1, int(positions.max()) + 1
    place = document * longest + positions  # of each token in the flattened rows
    rows = torch.zeros(int(document[-1]) + 1, longest, dtype=ids.dtype)
    mask = torch.zeros_like(rows)
    rows.view(-1)[place], mask.view(-1)[place] = ids, 1
    targets = place[packed["target_positions"]]
    return {"input_ids": rows, "attention_mask": mask, "target_positions": targets, "labels": packed["labels"]}


def _loss_and_gradient(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], variant: Variant
) -> tuple[float, torch.Tensor]:
    """Return the loss and the gradient of all parameters, flattened."""
    torch._dynamo.reset()
    device = torch.device(variant.device)
    model.to(device).zero_grad()
    model.set_attn_implementation(variant.attention)
    model._compiled_call_impl = None
    if variant.compiled:
        model.compile(dynamic=False)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    if variant.attention == varlen.NAME:
        bounds = varlen.document_bounds(batch["position_ids"].cpu().numpy())
        batch["cu_seq_lens_q"] = torch.from_numpy(bounds).to(device)
    bf16 = torch.autocast(variant.device, dtype=torch.bfloat16) if variant.precision == "bf16" else nullcontext()
    with bf16:
        loss = model(**batch, skip_logits=True).loss
    loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    return loss.item(), gradient


if __name__ == "__main__":
    sys.exit(run_command(main))
