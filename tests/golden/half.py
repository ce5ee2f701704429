"""What half precision does to VideoCrafter's small networks in PyTorch itself: the proof that their error is not of our graphs.

    cargo test --release --workspace --test suite -- python::       # fills target/test-bundles
    python tests/golden/half.py

Prints, for every recorded case, the error relative to the largest value of the answer in single precision: of single
precision given inputs rounded to half, and of PyTorch's own half precision.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "demo" / "train"))

import fill  # noqa: E402
from families import videocrafter  # noqa: E402


def tensor(given: dict) -> torch.Tensor:
    if "seed" in given:
        numbers = fill.uniform(int(given["seed"], 16), int(np.prod(given["shape"])))
        return torch.from_numpy(numbers.reshape(given["shape"]))
    return torch.tensor(given["values"]).reshape(given["shape"])


@torch.no_grad()
def answer(network, given: dict, rounded, dtype) -> torch.Tensor:
    exact = videocrafter.sinusoid
    videocrafter.sinusoid = lambda t, width: exact(t, width).to(dtype)
    try:
        return network(rounded(given["sample"]), given["timestep"], rounded(given["encoder_hidden_states"]), given["fps"]).float()
    finally:
        videocrafter.sinusoid = exact


def main() -> None:
    for name in ("videocrafter1", "videocrafter2"):
        network = videocrafter.Network(name == "videocrafter1").eval()
        weights = load_file(ROOT / "target/test-bundles" / name / "checkpoint/unet" / videocrafter.networks.UNET)
        network.load_state_dict({key: weights[videocrafter.renamed(key)].float() for key in network.state_dict()})
        half = copy.deepcopy(network).half()
        for case in json.loads((HERE / name / "cases.json").read_text()):
            if case["part"] != "keyframes":
                continue
            given = {i["name"]: tensor(i) for i in case["inputs"]}
            expected = answer(network, given, lambda x: x, torch.float32)
            inputs = answer(network, given, lambda x: x.half().float(), torch.float32)
            all_half = answer(half, given, torch.Tensor.half, torch.float16)
            error = lambda got: float((got - expected).abs().max() / expected.abs().max())
            print(f"{name} {case['case']}: inputs {error(inputs):.2e}, all {error(all_half):.2e}")


if __name__ == "__main__":
    main()
