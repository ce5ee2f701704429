"""The reference's answer to `demo/plans/drive.json`: 113 frames, as raw numbers.

    python tests/golden/video.py /tmp/reference.npy [PLAN]

Seed, labels, steps, guidance, windows and prediction chunks (without changes of labels) are those of the plan. Writes
float32 `[frames, 3, height, width]` in -1..1; minutes on two cores. Not part of the test suite:
`tests/golden/README.md` says how the two videos are compared.
"""

from __future__ import annotations

import argparse
import json
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
    args.add_argument("plan", type=Path, nargs="?", default=ROOT / "demo" / "plans" / "drive.json")
    args = args.parse_args()
    plan = json.loads(args.plan.read_text())
    stage = lambda op: [s for s in plan["stages"] if s["op"] == op]
    (conditions,), (keys,), predict = stage("conditions"), stage("keyframes"), stage("predict")
    (decode,), (upsample,) = stage("decode"), stage("upsample")
    cascade, seed, labels = Cascade(ROOT / "demo"), plan["seed"], (conditions["labels"]["night"], conditions["labels"]["crowd"])
    height, width = (n // 4 for n in plan["size"])
    chunks = len(predict[0]["chunks"]) if predict else 0
    latents = cascade.keyframes(seed, labels, keys["frames"], (4, height, width), chunks, keys["steps"], keys["guidance"])
    for level, s in enumerate(stage("interpolate")):
        latents = cascade.interpolate(latents, seed, labels, level, s["steps"], s["guidance"])
    frames = cascade.decode(latents, window=decode["window"], halo=decode["halo"])
    frames = cascade.upsample(frames, seed, upsample["steps"], upsample["noise_level"], upsample["window"])
    np.save(args.out, frames.numpy())
    print(f"{len(frames)} frames of {frames.shape[3]}x{frames.shape[2]} in {args.out}")


if __name__ == "__main__":
    main()
