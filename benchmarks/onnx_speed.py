"""Speed of an ONNX export compared with torch, on one thread.

    python -m benchmarks.onnx_speed --model DIR --onnx EXPORTED_DIR

torch, ONNX Runtime in fp32 and in int8 run in turns. Times are this process' CPU time, so that other work on the
machine matters little.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from onnxruntime import InferenceSession, SessionOptions

from hf_tiny_transformer.common.errors import UserError, run_command
from hf_tiny_transformer.convert.onnx import INT8_FILE, MODEL_FILE, Graph
from hf_tiny_transformer.convert.stock import open_ours

from .command import parse

SHAPES = ((1, 16), (1, 128), (16, 128))
ROUNDS, WARM_UP = 15, 3


@dataclass(frozen=True)
class OnnxSettings:
    """What to measure.

    Args:
        model: Model directory.
        onnx: Directory of its export with --format onnx --int8.
    """

    model: Path
    onnx: Path


def main() -> None:
    settings = parse("onnx_speed", __doc__, OnnxSettings)
    torch.set_num_threads(1)
    graph = Graph(open_ours(settings.model).float()).eval()
    sessions = [_session(settings.onnx / file) for file in (MODEL_FILE, INT8_FILE)]
    name = type(graph.model).__name__
    print(f"{name}, {graph.model.num_parameters():,} parameters; milliseconds per batch, one thread\n")
    print("| batch x length | torch | onnxruntime | onnxruntime, int8 | speed-up, fp32 | speed-up, int8 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for batch_size, length in SHAPES:
        inputs = graph.example(batch_size, length)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        in_torch = torch.no_grad()(partial(graph, *inputs.values()))
        torch_ms, fp32_ms, int8_ms = _medians(
            [in_torch, *(partial(session.run, graph.output_names, arrays) for session in sessions)]
        )
        print(
            f"| {batch_size} x {length} | {torch_ms:.2f} | {fp32_ms:.2f} | {int8_ms:.2f} "
            f"| {torch_ms / fp32_ms:.2f} | {torch_ms / int8_ms:.2f} |"
        )


def _session(file: Path) -> InferenceSession:
    if not file.is_file():
        raise UserError(f"{file}: no such file; export with --format onnx --int8")
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _medians(runs: list[Callable]) -> list[float]:
    """Return the CPU milliseconds of each; they run in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(WARM_UP + ROUNDS):
        for seconds, run in zip(times, runs, strict=True):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    return [1000 * statistics.median(seconds[WARM_UP:]) for seconds in times]


if __name__ == "__main__":
    sys.exit(run_command(main))
