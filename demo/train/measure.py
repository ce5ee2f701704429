"""Measure the demo cascade: the acceptance figures of `demo/README.md`.

    python measure.py [--cascade FOLDER] [--only labels video upsampler decoder] [--seeds 2] [--look FOLDER]

Everything rendered here uses seeds from 900 000 on, which training never sees.  Frames are in -1..1 unless said otherwise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import scenes
from sample import Cascade, sheet

UNSEEN = 900_000
RED = 0.08                                                 # how far red must lead green and blue, of 0..1
CROWD_LABELS, KEYS = range(4), 8
RENDERED = 24                                              # clips to compare motion with: speed and scenery differ much between drives


def real(seed, frames, fps, height=64, width=96, **condition):
    """Rendered frames `t 3 h w`."""
    clip, _, _ = scenes.clip(UNSEEN + seed, frames, fps, height, width, **condition)
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1


def luma(frames):
    """Mean luma, 0..1 (BT.601 weights)."""
    return float(((frames.clamp(-1, 1) + 1) / 2 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).mean())


def blobs(mask):
    """Number of 8-connected groups in a boolean `h w`."""
    left, count = {tuple(p) for p in np.argwhere(mask)}, 0
    while left:
        count, todo = count + 1, [left.pop()]
        while todo:
            y, x = todo.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
    return count


def red_blobs(frames):
    """Mean count of red spots a frame in the road half, where tail lights are."""
    rgb = ((frames.clamp(-1, 1) + 1) / 2)[:, :, frames.shape[-2] // 3:]
    red = rgb[:, 0] - torch.maximum(rgb[:, 1], rgb[:, 2])
    return float(np.mean([blobs(m) for m in (red > RED).numpy()]))


def psnr(a, b):
    return float(10 * torch.log10(4 / F.mse_loss(a, b)))


def ssim(a, b):
    """Structural similarity (Wang et al. 2004) of luma, 8x8 box windows."""
    y = [x.mean(1, keepdim=True) / 2 + 0.5 for x in (a, b)]
    box = lambda x: F.avg_pool2d(x, 8, stride=4)
    m = [box(x) for x in y]
    var, cov = [box(x * x) - k * k for x, k in zip(y, m)], box(y[0] * y[1]) - m[0] * m[1]
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    return float(((2 * m[0] * m[1] + c1) * (2 * cov + c2) / ((m[0] ** 2 + m[1] ** 2 + c1) * (var[0] + var[1] + c2))).mean())


def steps_between(frames):
    """Mean absolute difference of neighbours, `[t - 1]`."""
    return torch.diff(frames, dim=0).abs().mean((1, 2, 3))


def labels(cascade, seeds, look):
    """(a) night and day, (b) crowdedness, on keyframe windows."""
    light, red, true_red = {0: [], 1: []}, {c: [] for c in CROWD_LABELS}, {c: [] for c in CROWD_LABELS}
    rows = []
    for seed in range(seeds):
        for night in (0, 1):
            for crowd in CROWD_LABELS:
                frames = cascade.decode(cascade.keyframes(seed, (night, crowd), KEYS, (4, 16, 24), 0)).clamp(-1, 1)
                light[night].append(luma(frames))
                red[crowd].append(red_blobs(frames))
                true_red[crowd].append(red_blobs(real(seed, KEYS, 2.0, night=night, crowd=crowd)))
                rows.append(frames)
    sheet(torch.cat(rows), KEYS).save(look / "labels.png")
    mean = lambda d: [round(float(np.mean(v)), 2) for v in d.values()]
    return {"luma_day_minus_night": round(np.mean(light[0]) - np.mean(light[1]), 3), "red_blobs_by_crowd": mean(red), "red_blobs_by_crowd_rendered": mean(true_red)}


def video(cascade, seeds, look):
    """(c) a full 113-frame drive: differences of neighbours against rendered clips, and at the borders of the windows."""
    made, true, borders, quarters = [], [], [], []
    for seed in range(seeds):
        z = cascade.keyframes(seed, (seed % 2, 2), KEYS, (4, 16, 24), 0)
        for level in range(2):
            z = cascade.interpolate(z, seed, (seed % 2, 2), level)
        frames = cascade.decode(z)
        d = steps_between(frames)
        at = lambda period: torch.cat([d[period - 1:-1:period], d[period::period]])
        made.append(float(d.mean()))
        borders.append(float(at(16).median() / d.median()))
        quarters.append(float(at(4).median() / d.median()))
        true.append(np.mean([float(steps_between(real(k, 17, 32.0, night=seed % 2, crowd=2)).mean()) for k in range(RENDERED)]))
        sheet(frames[40:72:2], 8).save(look / f"video-{seed}.png")
        sheet(cascade.upsample(frames[48:64:4], seed), 2).save(look / f"video-{seed}-big.png")
        np.savetxt(look / f"steps-{seed}.txt", d.numpy(), fmt="%.5f")
    return {"difference_ratio_to_rendered": [round(a / b, 2) for a, b in zip(made, true)], "median_at_16_over_median": [round(x, 2) for x in borders],
            "median_at_4_over_median": [round(x, 2) for x in quarters]}


@torch.no_grad()
def upsampler(cascade, seeds, look):
    """Upsampled real low-resolution frames against the rendered 256x384 truth, and the same through the autoencoder first."""
    rows, table = [], {}
    for seed in range(seeds):
        truth = real(seed, 4, 32.0, 256, 384, night=seed % 2, crowd=3)
        low = F.avg_pool2d(truth, 4)
        soft = cascade.vae.decode(cascade.vae.encode(low).latent_dist.mean).sample
        cubic = lambda x: F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
        made = {"bicubic": cubic(low), "upsampler": cascade.upsample(low, seed), "autoencoder+bicubic": cubic(soft),
                "autoencoder+upsampler": cascade.upsample(soft, seed)}
        for name, y in made.items():
            edge = torch.ones_like(y, dtype=torch.bool)
            edge[..., 8:-8, 8:-8] = False
            flicker = float((torch.diff(y, dim=0) - torch.diff(truth, dim=0)).abs().mean())
            table.setdefault(name, []).append([psnr(y, truth), ssim(y, truth), psnr(y[edge], truth[edge]), flicker])
        rows += [truth[:1], *(made[k][:1] for k in ("bicubic", "upsampler", "autoencoder+upsampler"))]
    sheet(torch.cat(rows), 4).save(look / "upsampler.png")
    return {name: dict(zip(("psnr", "ssim", "psnr_border", "flicker"), np.round(np.mean(v, 0), 4).tolist())) for name, v in table.items()}


@torch.no_grad()
def decoder(cascade, seeds, look):
    """Flicker that the decoder adds to real motion, per frame and with temporal layers."""
    rows, table = [], {}
    for seed in range(2 * seeds):
        truth = real(seed, 16, 32.0, night=seed % 2, crowd=3)
        z = cascade.vae.encode(truth).latent_dist.mean * cascade.vae.config.scaling_factor
        for name, temporal in (("image", False), ("temporal", True)):
            y = cascade.decode(z, temporal)
            flicker = float((torch.diff(y, dim=0) - torch.diff(truth, dim=0)).abs().mean())
            table.setdefault(name, []).append([psnr(y, truth), flicker, red_blobs(y)])
            rows += [y[::4]]
        rows += [truth[::4]]
        table.setdefault("rendered", []).append([99.0, 0.0, red_blobs(truth)])
    sheet(torch.cat(rows), 4).save(look / "decoder.png")
    return {name: dict(zip(("psnr", "flicker", "red_blobs"), np.round(np.mean(v, 0), 4).tolist())) for name, v in table.items()}


if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("--cascade", type=Path, default=Path(__file__).parent.parent)
    args.add_argument("--only", nargs="*", default=["labels", "video", "upsampler", "decoder"])
    args.add_argument("--seeds", type=int, default=2)
    args.add_argument("--look", type=Path, default=Path("look"), help="where the picture sheets go")
    args = args.parse_args()
    args.look.mkdir(parents=True, exist_ok=True)
    cascade = Cascade(args.cascade)
    for name in args.only:
        print(json.dumps({name: {"labels": labels, "video": video, "upsampler": upsampler, "decoder": decoder}[name](cascade, args.seeds, args.look)}), flush=True)
