"""Run the whole cascade in PyTorch: the slow, plain answer that every engine is compared with.

    python sample.py --keyframes 8 --predict 1 --seed 0 --night 1 --crowd 2 --out preview.png

Noise for every segment is `noise(seed, stage, segment, shape)`, so any part can be recomputed alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from model import Conditions, Graft, masked_context

STAGES = ("keyframes", "predict", "interpolate-1", "interpolate-2", "upsample")


def noise(seed: int, stage: str, segment: int, shape) -> torch.Tensor:
    """Standard normal noise from torch's CPU generator, seeded by the segment it belongs to."""
    key = (seed * 1_000_003 + STAGES.index(stage)) * 1_000_003 + segment
    return torch.randn(shape, generator=torch.Generator().manual_seed(key % (1 << 63)))


def enlarge(frames):
    """Frames `t 3 h w` -> `t 3 4h 4w`, bicubic."""
    return F.interpolate(frames, scale_factor=4, mode="bicubic", align_corners=False)


def spread(lack, seen):
    """What given frames lack, `b t c h w`, shared by the frames between them: linear, and zero one frame beyond the window."""
    out, frames = torch.zeros_like(lack), lack.shape[1]
    for b in range(len(seen)):
        given = seen[b].nonzero().flatten().tolist()
        for k, g in enumerate(given):
            knots = [-1, *given, frames]
            hat = np.interp(range(frames), knots, np.eye(len(knots))[k + 1])
            out[b] += torch.tensor(hat, dtype=lack.dtype)[:, None, None, None] * lack[b, g]
    return out


class Cascade:
    def __init__(self, folder):
        folder = Path(folder)
        unet = lambda name="unet": UNet2DConditionModel.from_pretrained(folder / name, torch_dtype=torch.float32).eval()
        vae = lambda: AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.keyframe_model = Graft.load(unet(), folder / "keyframes").eval()
        self.interpolation_model = Graft.load(unet(), folder / "interpolate").eval()
        self.vae = vae()
        self.decoder = Graft.load(vae(), folder / "decoder", "decoder.").eval() if (folder / "decoder").exists() else None
        self.upsampler, self.residual_scale = None, json.loads((folder / "model_index.json").read_text()).get("upsampler_residual_scale")
        if (folder / "upsampler-temporal").exists():
            self.upsampler = Graft.load(unet("upsampler"), folder / "upsampler-temporal").eval()
        self.conditions = Conditions(self.keyframe_model.spatial.config.cross_attention_dim).eval()
        self.conditions.load_state_dict(load_file(folder / "conditions" / "model.safetensors"))
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.upsampler_scheduler = DDIMScheduler.from_config(self.scheduler.config, prediction_type="sample")

    def denoise(self, graft, x, known, seen, labels, steps, guidance, context_guidance, rate=None, replace="final"):
        """DDIM over a window `x` `b t c h w`; frames where `seen` come back as `known`.

        Guidance adds up: `v = v0 + g (v_text - v0) + s (v_ctx - v_text)`, where `v0` has neither labels nor
        context, `v_text` labels only, and `v_ctx` both.  With nothing seen the last term is absent.
        """
        b, t = x.shape[:2]
        self.scheduler.set_timesteps(steps)
        full, empty = masked_context(known, seen), masked_context(known, torch.zeros_like(seen))
        night, crowd = (torch.full((b,), v) for v in labels)
        tokens, null = self.conditions(night, crowd), self.conditions(-torch.ones_like(night), -torch.ones_like(crowd))

        def call(tokens, context, step):
            return graft.run(lambda u: u(x.flatten(0, 1), step, tokens.repeat_interleave(t, 0)).sample, t, context, rate, tokens).view_as(x)

        for step in self.scheduler.timesteps:
            any_seen = bool(seen.any())
            v = call(tokens, full if any_seen else empty, step)
            if context_guidance != 1 and any_seen:
                v_text = call(tokens, empty, step)
                v = v_text + context_guidance * (v - v_text)
            else:
                v_text = v
            if guidance != 1:
                v = v + (guidance - 1) * (v_text - call(null, empty if context_guidance != 1 or not any_seen else full, step))
            x = self.scheduler.step(v, step, x).prev_sample
        if replace == "spread":
            x = x + spread(known - x, seen)
        return torch.where(seen[:, :, None, None, None], known, x)

    @torch.no_grad()
    def keyframes(self, seed, labels, window, shape, predictions, steps=20, guidance=2.0, context_guidance=1.0):
        blank, none = torch.zeros(1, window, *shape), torch.zeros(1, window, dtype=torch.bool)
        keys = self.denoise(self.keyframe_model, noise(seed, "keyframes", 0, blank.shape), blank, none, labels, steps, guidance, 1.0)[0]
        for k in range(predictions):                       # two context frames encode the movement
            known, seen = blank.clone(), none.clone()
            known[0, :2], seen[0, :2] = keys[-2:], True
            new = self.denoise(self.keyframe_model, noise(seed, "predict", k, blank.shape), known, seen, labels, steps, guidance, context_guidance)
            keys = torch.cat([keys, new[0, 2:]])
        return keys

    @torch.no_grad()
    def interpolate(self, keys, seed, labels, level, steps=10, guidance=1.0, context_guidance=1.0, replace="final"):
        """`n` frames -> `4 (n - 1) + 1`; `level` 0 works on keyframes, 1 on the result of level 0."""
        out = [keys[:1]]
        for k in range(len(keys) - 1):
            known = torch.zeros(1, 5, *keys.shape[1:])
            known[0, 0], known[0, 4] = keys[k], keys[k + 1]
            seen = torch.tensor([[True, False, False, False, True]])
            x = noise(seed, f"interpolate-{level + 1}", k, known.shape)
            out.append(self.denoise(self.interpolation_model, x, known, seen, labels, steps, guidance, context_guidance, torch.tensor([level]), replace)[0, 1:])
        return torch.cat(out)

    @torch.no_grad()
    def decode(self, latents, temporal=True, window=8, halo=2):
        """Latents `t c h w` -> frames `t 3 4h 4w` in -1..1, in windows that see `halo` more frames on each side."""
        z, frames = latents / self.vae.config.scaling_factor, []
        for i in range(0, len(z), window):
            if not temporal or self.decoder is None:
                frames.append(self.vae.decode(z[i:i + window]).sample)
                continue
            a, b = max(0, i - halo), min(len(z), i + window + halo)
            y = self.decoder.run(lambda v: v.decode(z[a:b]).sample, b - a)
            frames.append(y[i - a:i - a + window])
        return torch.cat(frames)

    @torch.no_grad()
    def upsample(self, frames, seed, steps=4, level=20, window=8):
        """Frames `t 3 h w` -> `t 3 4h 4w`, in windows; the noise of a frame depends on its index alone."""
        a, out = self.upsampler_scheduler.alphas_cumprod[level], []
        for i in range(0, len(frames), window):
            part = frames[i:i + window]
            n, _, h, w = part.shape
            draw = lambda k, *shape: torch.cat([noise(seed, "upsample", 2 * f + k, (1, *shape)) for f in range(i, i + n)])
            low = a.sqrt() * part + (1 - a).sqrt() * draw(0, 3, h, w)
            x = draw(1, 48, h, w)
            self.upsampler_scheduler.set_timesteps(steps)
            tokens, labels = torch.zeros(n, 1, self.upsampler.spatial.config.cross_attention_dim), torch.full((n,), level)
            for step in self.upsampler_scheduler.timesteps:
                clean = self.upsampler.run(lambda u: u(torch.cat([x, low], 1), step, tokens, class_labels=labels).sample, n)
                x = self.upsampler_scheduler.step(clean, step, x).prev_sample
            picture = F.pixel_shuffle(x, 4)
            if self.residual_scale:                        # the network fills in what a bicubic enlargement lacks
                picture = enlarge(part) + picture / self.residual_scale
            out.append(picture)
        return torch.cat(out)


def sheet(frames, columns):
    """Frames `t 3 h w` in -1..1 as one picture."""
    from PIL import Image
    u8 = ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(u8[i:i + columns]), 1) for i in range(0, len(u8) - columns + 1, columns)]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("--cascade", default=Path(__file__).parent.parent)
    args.add_argument("--keyframes", type=int, default=8)
    args.add_argument("--predict", type=int, default=0)
    args.add_argument("--levels", type=int, default=0, help="interpolation passes, 0..2")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--night", type=int, default=0)
    args.add_argument("--crowd", type=int, default=2)
    args.add_argument("--steps", type=int, default=20)
    args.add_argument("--guidance", type=float, default=2.0)
    args.add_argument("--upsample", action="store_true")
    args.add_argument("--out", default="preview.png")
    args = args.parse_args()
    cascade, labels = Cascade(args.cascade), (args.night, args.crowd)
    z = cascade.keyframes(args.seed, labels, args.keyframes, (4, 16, 24), args.predict, args.steps, args.guidance)
    for level in range(args.levels):
        z = cascade.interpolate(z, args.seed, labels, level)
    frames = cascade.decode(z)
    if args.upsample:
        frames = cascade.upsample(frames, args.seed)
    sheet(frames, min(8, len(frames))).save(args.out)
