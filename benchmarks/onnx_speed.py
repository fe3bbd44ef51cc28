"""Speed of an ONNX export beside torch, one thread: `python -m benchmarks.onnx_speed --model DIR --onnx EXPORTED_DIR`.

The three take turns, and what counts is this process' CPU time, so that other work on the machine does not matter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from onnxruntime import InferenceSession, SessionOptions

from hf_tiny_transformer.common.errors import UserError, run_command
from hf_tiny_transformer.convert.onnx import INT8_FILE, MODEL_FILE, Graph
from hf_tiny_transformer.convert.stock import open_ours

SHAPES = ((1, 16), (1, 128), (16, 128))
ROUNDS, WARM_UP = 15, 3


def main() -> None:
    """Prints a table of medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="our model directory")
    parser.add_argument("--onnx", type=Path, required=True, help="what export --format onnx made of it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    graph = Graph(open_ours(arguments.model).float()).eval()
    sessions = {"torch": None, "onnxruntime": MODEL_FILE, "onnxruntime, int8": INT8_FILE}
    files = {name: arguments.onnx / file for name, file in sessions.items() if file}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"{file}: no such file; export with --format onnx --int8")
    opened = {name: _session(file) for name, file in files.items()}
    print(
        f"{type(graph.model).__name__}, {graph.model.num_parameters():,} parameters; milliseconds a batch, one thread\n"
    )
    print("| batch x length | torch | onnxruntime | onnxruntime, int8 | fp32 times faster | int8 times faster |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for batch_size, length in SHAPES:
        inputs = graph.example(batch_size, length)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        runs: dict[str, Callable] = {"torch": torch.no_grad()(lambda inputs=inputs: graph(*inputs.values()))}
        for name, session in opened.items():
            runs[name] = lambda session=session, arrays=arrays: session.run(graph.output_names, arrays)
        torch_ms, fp32_ms, int8_ms = _medians(runs).values()
        print(
            f"| {batch_size} x {length} | {torch_ms:.2f} | {fp32_ms:.2f} | {int8_ms:.2f} "
            f"| {torch_ms / fp32_ms:.2f} | {torch_ms / int8_ms:.2f} |"
        )


def _session(file: Path) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _medians(runs: dict[str, Callable]) -> dict[str, float]:
    """CPU milliseconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number >= WARM_UP:
                times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    sys.exit(run_command(main))
