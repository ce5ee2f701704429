#!/usr/bin/env python3
"""Compile ONNX graphs with NVIDIA's TensorRT-RTX compiler, without a GPU, and tell what became of them.

    python tests/tensorrt/compile.py MODEL.onnx ... [--set frames=8 --set height=32] [--dynamic] [--sm 86] [--json OUT] [--kernels]
    python tests/tensorrt/compile.py --job JOB.json [--json OUT]

Needs numpy, onnx and, on Linux x86-64, `pip install --no-deps tensorrt-rtx-cu12-libs==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116`.
The compiler runs on the CPU and prints its final list of kernels; they are counted here, and the bytes that each reads and
writes are added up: the traffic that bounds the time on a GPU. Engines are thrown away: without a driver nothing can run them.

Sizes that the graph leaves open are symbols (`batch`, `frames`, `height` ...); each gets a value from `--set`, else from
SIZES below, and the graph is compiled for exactly these. With `--dynamic` they stay open between 1 (or the first number
of `--set frames=2:8:16`) and twice the value (or the third).

A job is `[{"name": ..., "file": ..., "sizes": {...}, "dynamic": false, "sm": 86}, ...]`; only `file` is required. The report is a
list of objects, one a model:

    name, sm, dynamic   as asked for
    error               why it does not parse or compile; nothing below is there then
    seconds             parsing and compiling
    kernels             launches, without synchronisation between streams
    kinds               launches by the compiler's kind: gemm, kgen, conv, ...
    fused_attention     attentions that are one kernel
    softmax_outside     softmaxes that are not part of one
    layout_only         kernels that only move data
    layout_bytes        what these read and write
    traffic_bytes       what all kernels read and write, weights included; null with open sizes, which the compiler does not print
    activation_bytes    memory between kernels
    weight_bytes        weights in the engine

Exit status: 0 when all compile, 1 when one does not, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
import sys
import time
from pathlib import Path

# What an open size is when nothing else is said.
SIZES = {"batch": 1, "frames": 8, "height": 32, "width": 32, "length": 8, "windows": 2, "tokens": 77, "temporal_tokens": 77, "texts": 1}
BYTES = {"Half": 2, "BFloat16": 2, "Float": 4, "Int32": 4, "Int64": 8, "Int8": 1, "FP8": 1, "Bool": 1, "UInt8": 1, "FP4": 0.5, "INT4": 0.5}
TENSOR = re.compile(r"\{ Name: [^,]*, Dimensions: \[([-\d,]*)\][^{}]*?Datatype: (\w+)")
KERNEL = re.compile(r"Name: (.+?), LayerType: (\w+), Inputs: \[(.*)\], Constants: \[(.*)\], Outputs: \[(.*?)\](?:, TacticName: (.*))?$")
# A generated kernel's name lists what it does; these do nothing to the numbers.
LAYOUT_ONLY = re.compile(r"__myl_(?:Resh|Tran|Move|Copy|Slic|Conc)+")
SOFTMAX = re.compile(r"softm|MaxrSubExpSum|ExpSum", re.IGNORECASE)


def bytes_of(text: str) -> float | None:
    """Bytes of all tensors in one field of the log; None where a size is open."""
    total = 0
    for dims, dtype in TENSOR.findall(text):
        sizes = [int(d) for d in dims.split(",") if d]
        if any(d < 0 for d in sizes):
            return None
        total += math.prod(sizes) * BYTES.get(dtype, 4)
    return total


def kernels_of(log: list[str]) -> list[dict]:
    found = []
    for line in log:
        if (m := KERNEL.match(line)) and m[2] not in ("signal", "wait"):
            moved = [bytes_of(m[i]) for i in (3, 4, 5)]
            stem = re.sub(r"_myl\d+_\d+$", "", m[1])
            layout = bool(LAYOUT_ONLY.fullmatch(stem)) or m[2].lower() in ("shuffle", "reformat")
            attention = "mha" in m[1] or "mha" in (m[6] or "")
            found.append(dict(name=m[1], kind=m[2], moved=None if None in moved else int(sum(moved)), layout=layout, attention=attention))
    return found


def summary(kernels: list[dict], log: list[str]) -> dict:
    def total(some):
        moved = [k["moved"] for k in some]
        return None if None in moved else sum(moved)

    def memory(what):
        return next((int(m[1]) for line in log if (m := re.search(rf"Total {what} Memory: (\d+)", line))), None)

    layout = [k for k in kernels if k["layout"]]
    return dict(
        kernels=len(kernels), kinds=dict(collections.Counter(k["kind"] for k in kernels)),
        fused_attention=sum(k["attention"] for k in kernels),
        softmax_outside=sum(bool(SOFTMAX.search(k["name"])) and not k["attention"] for k in kernels),
        layout_only=len(layout), layout_bytes=total(layout), traffic_bytes=total(kernels),
        activation_bytes=memory("Activation"), weight_bytes=memory("Weights"))


def evaluate(dim: str, sizes: dict[str, int]) -> int:
    """A size as the graphs write it: a product of symbols, numbers, `ceil(s/n)` and `floor(s/n)`."""
    product = 1
    for factor in dim.split("*"):
        if m := re.fullmatch(r"(ceil|floor)\((\w+)/(\d+)\)", factor):
            product *= getattr(math, m[1])(evaluate(m[2], sizes) / int(m[3]))
        elif factor.isdigit():
            product *= int(factor)
        elif factor in sizes:
            product *= sizes[factor]
        else:
            raise ValueError(f"size `{factor}` has no value; give one with --set {factor}=N")
    return product


def shapes_of(value, sizes: dict[str, tuple[int, int, int]]) -> list[tuple[int, ...]]:
    """Least, usual and greatest shape of an input."""
    dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    at = [{name: three[i] for name, three in sizes.items()} for i in range(3)]
    return [tuple(d if isinstance(d, int) else evaluate(d, one) for d in dims) for one in at]


def compile_model(file: str, sizes: dict[str, tuple[int, int, int]], dynamic: bool, sm: int) -> tuple[dict, list[dict]]:
    import onnx
    import tensorrt_rtx_bindings as trt

    log, errors = [], []

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)
            log.extend(message.splitlines())

    started, logger = time.time(), Logger()
    model = onnx.load(file, load_external_data=False)
    constants = {i.name for i in model.graph.initializer}
    inputs = [(v, shapes_of(v, sizes)) for v in model.graph.input if v.name not in constants]
    if not dynamic:
        for value, (_, usual, _) in inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, usual):
                dim.dim_value = size
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString(), str(Path(file).resolve())):
        raise ValueError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    if dynamic:
        profile = builder.create_optimization_profile()
        known = {network.get_input(i).name for i in range(network.num_inputs)}
        for value, shapes in inputs:
            if value.name in known and any(d.dim_param for d in value.type.tensor_type.shape.dim):
                profile.set_shape(value.name, *shapes)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("; ".join(errors) or "the compiler gives no reason")
    kernels = kernels_of(log)
    return dict(seconds=round(time.time() - started, 2), engine_bytes=engine.nbytes, **summary(kernels, log)), kernels


def sizes_of(given: dict[str, str | int], dynamic: bool) -> dict[str, tuple[int, int, int]]:
    sizes = {}
    for name, text in {**SIZES, **given}.items():
        parts = [int(n) for n in str(text).split(":")]
        if len(parts) not in (1, 3) or parts != sorted(parts) or parts[0] < 1:
            raise ValueError(f"size `{name}` is `{text}`, expected N or LEAST:USUAL:GREATEST")
        sizes[name] = tuple(parts) if len(parts) == 3 else ((1, parts[0], 2 * parts[0]) if dynamic else tuple(parts * 3))
    return sizes


def report(job: dict, show_kernels: bool = False) -> dict:
    known = {"name", "file", "sizes", "dynamic", "sm"}
    if unknown := set(job) - known:
        raise ValueError(f"unknown key `{sorted(unknown)[0]}` in a job; known are {', '.join(sorted(known))}")
    dynamic, sm = job.get("dynamic", False), int(job.get("sm", 86))
    head = dict(name=job.get("name", job["file"]), sm=sm, dynamic=dynamic)
    try:
        result, kernels = compile_model(job["file"], sizes_of(job.get("sizes", {}), dynamic), dynamic, sm)
    except (ValueError, OSError) as e:
        return dict(head, error=str(e))
    if show_kernels:
        for k in kernels:
            moved = "       open" if k["moved"] is None else f"{k['moved'] / 1e6:8.2f} MB"
            print(f"{k['kind']:<10} {moved}  {k['name']}", file=sys.stderr)
    return dict(head, **result)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("models", nargs="*")
    args.add_argument("--job", help="a file that lists what to compile")
    args.add_argument("--set", action="append", default=[], metavar="SYMBOL=N")
    args.add_argument("--dynamic", action="store_true", help="leave the sizes open")
    args.add_argument("--sm", default="86", help="75, 80, 86, 89, 120 or 121; several with commas")
    args.add_argument("--json", help="write the report there instead of printing it")
    args.add_argument("--kernels", action="store_true", help="list every kernel on stderr")
    args = args.parse_args()
    try:
        sizes = dict(item.split("=", 1) for item in args.set)
        jobs = json.loads(Path(args.job).read_text()) if args.job else []
        jobs += [dict(file=m, sizes=sizes, dynamic=args.dynamic, sm=sm) for m in args.models for sm in args.sm.split(",")]
        if not jobs:
            raise ValueError("nothing to compile: name models or give --job")
        reports = [report(job, args.kernels) for job in jobs]
    except (ValueError, KeyError, TypeError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    text = json.dumps(reports, indent=2) + "\n"
    if args.json:
        Path(args.json).write_text(text)
    else:
        print(text, end="")
    for r in reports:
        if "error" in r:
            print(f"{r['name']} (SM {r['sm']}): {r['error']}", file=sys.stderr)
    return int(any("error" in r for r in reports))


if __name__ == "__main__":
    sys.exit(main())
