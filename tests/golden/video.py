"""The reference's answer to `demo/plans/drive.json`: 113 frames, as raw numbers.

    python tests/golden/video.py /tmp/reference.npy [--seed 0] [--night 0] [--crowd 2]

Writes float32 `[frames, 3, height, width]` in -1..1; minutes on two cores. Not part of the test suite:
`tests/golden/README.md` says how the two videos are compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "demo" / "train"))

from sample import Cascade  # noqa: E402


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("out", type=Path)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--night", type=int, default=0)
    args.add_argument("--crowd", type=int, default=2)
    args.add_argument("--predict", type=int, default=0)
    args.add_argument("--guidance", type=float, default=2.0)
    args = args.parse_args()
    cascade, labels = Cascade(ROOT / "demo"), (args.night, args.crowd)
    latents = cascade.keyframes(args.seed, labels, 8, (4, 16, 24), args.predict, guidance=args.guidance)
    for level in range(2):
        latents = cascade.interpolate(latents, args.seed, labels, level)
    frames = cascade.upsample(cascade.decode(latents), args.seed)
    np.save(args.out, frames.numpy())
    print(f"{len(frames)} frames of {frames.shape[3]}x{frames.shape[2]} in {args.out}")


if __name__ == "__main__":
    main()
