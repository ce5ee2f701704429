"""ONNX Runtime on a graph, such as one that export.py made with torch."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from peer import arguments, race

args = arguments(__doc__, ("model", {"type": Path}))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = args.threads
session = onnxruntime.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
wanted, outputs = {port.name for port in session.get_inputs()}, [port.name for port in session.get_outputs()]


def answer(inputs):
    return dict(zip(outputs, session.run(outputs, {name: value for name, value in inputs.items() if name in wanted})))


race(f"onnxruntime {onnxruntime.__version__} {args.model.stem}", args, answer)
