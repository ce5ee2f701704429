"""What `torch.save` writes: `tests/golden/torch/state.ckpt`, a training's state of all types that state dicts have.

    python tests/golden/torch_file.py
"""

from __future__ import annotations

import collections
import random
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def state() -> collections.OrderedDict:
    whole = torch.arange(12, dtype=torch.float32).view(3, 4)
    return collections.OrderedDict(
        whole=whole, row=whole[1], scalar=torch.tensor(2.5), parameter=torch.nn.Parameter(torch.tensor([1.0, -2.0])),
        half=torch.tensor([0.5, -0.25], dtype=torch.float16), bfloat=torch.tensor([3.0, -1.5], dtype=torch.bfloat16),
        double=torch.tensor([1e-3], dtype=torch.float64), count=torch.tensor(7), flags=torch.tensor([True, False]), empty=torch.zeros(0, 3))


if __name__ == "__main__":
    torch.manual_seed(0)
    random.seed(0)
    (HERE / "torch").mkdir(exist_ok=True)
    torch.save({"epoch": 3, "lr": 1e-4, "notes": [None, ("a", 1)], "state_dict": state()}, HERE / "torch" / "state.ckpt")
