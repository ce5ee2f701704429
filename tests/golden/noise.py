"""Writes noise.json: start noise of torch's CPU generator, for runtime/src/noise.

    python noise.py            (torch 2.15.0; no other input)

Long draws are recorded by their ends and a double-precision sum.
"""

import json

import torch

STAGES = ("keyframes", "predict", "interpolate-1", "interpolate-2", "upsample")


def segment(seed, stage, index):
    return ((seed * 1_000_003 + STAGES.index(stage)) * 1_000_003 + index) % (1 << 63)


def record(x):
    x = x.flatten()
    if len(x) <= 48:
        return {"len": len(x), "all": x.tolist()}
    return {"len": len(x), "head": x[:20].tolist(), "tail": x[-20:].tolist(), "sum": x.double().sum().item()}


sequences = []
for seed in (0, 42, 2**33 + 5, 2**63 - 1):
    g = torch.Generator().manual_seed(seed)
    sizes = [1, 3, 15, 16, 17, 5, 31, 40, 1000, 1, 16384] if seed < 2**40 else [17, 2]
    sequences.append({"seed": seed, "draws": [record(torch.randn(n, generator=g)) for n in sizes]})

segments = []
for seed, stage, index, shape in [
    (0, "keyframes", 0, (1, 8, 4, 16, 24)),
    (7, "predict", 3, (1, 8, 4, 16, 24)),
    (123456789012, "interpolate-2", 27, (1, 5, 4, 6, 9)),
    (3, "upsample", 225, (1, 48, 5, 7)),
]:
    g = torch.Generator().manual_seed(segment(seed, stage, index))
    segments.append({"seed": seed, "stage": stage, "index": index, "shape": shape, "noise": record(torch.randn(shape, generator=g))})

half = []
for dtype in (torch.float16, torch.bfloat16):
    g = torch.Generator().manual_seed(5)
    draws = [torch.randn(n, generator=g, dtype=dtype).float() for n in (3, 16, 17, 40, 5, 48)]
    half.append({"dtype": str(dtype).split(".")[1], "draws": [{"len": len(x), "all": x.tolist()} for x in draws]})

permutations = []
for seed in (0, 42):
    g = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=g).tolist() for n in (1, 2, 16, 25)]
    permutations.append({"seed": seed, "orders": orders, "rand": torch.rand(9, generator=g).tolist()})

with open("noise.json", "w") as f:
    json.dump({"torch": torch.__version__, "sequences": sequences, "segments": segments, "half": half, "permutations": permutations}, f, indent=None, separators=(",", ":"))
