"""PSNR of a folder of PNG frames against the reference's raw frames.

    python tests/golden/compare.py REFERENCE.npy FRAMES/ [--least 45]

Both are compared as 8-bit pictures, the form in which a video encoder receives them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255.0**2 / error)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("reference", type=Path)
    args.add_argument("frames", type=Path)
    args.add_argument("--least", type=float, default=45.0, help="dB that every frame must reach")
    args = args.parse_args()
    reference = np.round((np.clip(np.load(args.reference), -1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    frames = sorted(args.frames.glob("*.png"))
    if len(frames) != len(reference):
        print(f"{args.frames}: {len(frames)} frames, the reference has {len(reference)}", file=sys.stderr)
        return 1
    values = [psnr(np.asarray(Image.open(f).convert("RGB")), r) for f, r in zip(frames, reference)]
    worst = int(np.argmin(values))
    print(f"{len(values)} frames: worst {values[worst]:.2f} dB (frame {worst}), median {np.median(values):.2f} dB")
    return 0 if min(values) >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
