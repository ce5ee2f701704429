"""The whole cascade in small: what `sample.py` makes of the tiny checkpoint, frame by frame."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from sample import Cascade

SETTINGS = dict(seed=7, labels=(1, 3), window=4, size=(4, 6, 10), predictions=1)


@torch.no_grad()
def record(checkpoint: Path, folder: Path) -> None:
    """`short.safetensors`: latents after each stage and the final frames as the 8-bit pictures a sink receives."""
    cascade, s = Cascade(checkpoint), SETTINGS
    keys = cascade.keyframes(s["seed"], s["labels"], s["window"], s["size"], s["predictions"], steps=3, guidance=2.0, context_guidance=1.5)
    once = cascade.interpolate(keys, s["seed"], s["labels"], 0, steps=2, guidance=1.5, replace="spread")
    frames = cascade.upsample(cascade.decode(once, window=8, halo=2), s["seed"], steps=2, level=20, window=8)
    pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous()
    save_file({"keyframes": keys.contiguous(), "interpolated": once.contiguous(), "frames": pixels}, folder / "short.safetensors")
    print(f"short: {len(keys)} key frames, {len(pixels)} frames of {pixels.shape[2]}x{pixels.shape[1]}, mean {pixels.float().mean():.1f}, deviation {pixels.float().std():.1f}")
