"""OpenVINO on a graph, such as one that export.py made with torch; f32, as all others."""

from __future__ import annotations

from pathlib import Path

import openvino

from peer import arguments, race

args = arguments(__doc__, ("model", {"type": Path}))
core = openvino.Core()
settings = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
model = core.compile_model(str(args.model), "CPU", settings)
# A port has every name that its value has in the graph.
OUTPUTS = ["out_sample"]


def answer(inputs):
    found = model([next(inputs[name] for name in inputs if name in port.names) for port in model.inputs])
    return {next(name for name in OUTPUTS if name in port.names): value for port, value in found.items()}


race(f"openvino {openvino.__version__.split('-')[0]} {args.model.stem}", args, answer)
