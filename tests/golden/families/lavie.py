"""LaVie's base and interpolation networks in small, from the facts of Vchitect/LaVie (`base/models`, `interpolation/models`).

There is no library with these networks: diffusers' image UNet is given LaVie's layers, which are written here from
their description: normalisations over the clip, attention over frames inside the transformer blocks.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file
from torch import nn

import networks
from families import clip_text
from recorder import autoencoder, text_clips

SIZES = ((3, 5), (4, 4))
ROTATED = 32


class Frames:
    """How many frames the clips have that the patched layers see next."""

    count = 1


class ClipNorm(nn.GroupNorm):
    def forward(self, x):
        clip = x.unflatten(0, (-1, Frames.count)).transpose(1, 2)
        return super().forward(clip).transpose(1, 2).flatten(0, 1)


def as_clip_norm(norm: nn.GroupNorm) -> ClipNorm:
    return ClipNorm(norm.num_groups, norm.num_channels, norm.eps)


class Projections(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])


class Distances(nn.Module):
    """A bias for each head and bucket of distances; 32 buckets, all distances from 32 on alike."""

    def __init__(self, heads: int):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, heads)

    def forward(self, t: int):
        at = torch.arange(t)
        ahead = at[None, :] - at[:, None]
        far = 8 + (torch.log(ahead.abs().clamp(min=1).float() / 8) / math.log(32 / 8) * 8).long()
        bucket = torch.where(ahead.abs() < 8, ahead.abs(), far.clamp(max=15)) + 16 * (ahead > 0)
        return self.relative_attention_bias(bucket).permute(2, 0, 1)


def rotated(x):
    """`x` is [..., t, d]; neighbouring channels are turned by the frame's angle, the first 32 of each head."""
    rates = 1.0 / 10000 ** (torch.arange(0, ROTATED, 2).float() / ROTATED)
    angles = (torch.arange(x.shape[-2]).float()[:, None] * rates[None]).repeat_interleave(2, -1)
    head, rest = x[..., :ROTATED], x[..., ROTATED:]
    turned = torch.stack([-head[..., 1::2], head[..., 0::2]], -1).flatten(-2)
    return torch.cat([head * angles.cos() + turned * angles.sin(), rest], -1)


class OverFrames(Projections):
    def __init__(self, width: int, heads: int, relative: bool):
        super().__init__(width)
        self.heads = heads
        if relative:
            self.time_rel_pos_bias = Distances(heads)

    def forward(self, x):
        """`x` is [b·p, t, C]."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        scale, bias = q.shape[-1] ** -0.5, 0.0
        if hasattr(self, "time_rel_pos_bias"):
            q, k, bias = rotated(q), rotated(k), self.time_rel_pos_bias(x.shape[1])
        y = (scale * q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        return self.to_out[0](y.transpose(1, 2).flatten(-2))


def to_first_and_former(attn, x):
    """Keys and values of every frame are those of the first frame and of the one before."""
    clip = x.unflatten(0, (-1, Frames.count))
    former = (torch.arange(Frames.count) - 1).clamp(min=0)
    seen = torch.cat([clip[:, :1].expand_as(clip), clip[:, former]], 2).flatten(0, 1)
    split = lambda y: y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    y = F.scaled_dot_product_attention(split(attn.to_q(x)), split(attn.to_k(seen)), split(attn.to_v(seen)))
    return attn.to_out[0](y.transpose(1, 2).flatten(-2))


def block_forward(self, x, encoder_hidden_states=None, **_):
    normal = self.norm1(x)
    x = x + (self.attn1(normal) if self.relative else to_first_and_former(self.attn1, normal))
    x = x + self.attn2(self.norm2(x), encoder_hidden_states=encoder_hidden_states)
    x = over_frames(self, x) if self.relative else x
    x = x + self.ff(self.norm3(x))
    return x if self.relative else over_frames(self, x)


def over_frames(self, x):
    p = x.shape[1]
    clip = x.unflatten(0, (-1, Frames.count)).transpose(1, 2).flatten(0, 1)
    clip = clip + self.attn_temp(self.norm_temp(clip))
    return clip.unflatten(0, (-1, p)).transpose(1, 2).flatten(0, 1)


def lavie(config, in_channels: int, relative: bool) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_config({**config, "in_channels": in_channels})
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.norm1, module.norm2 = as_clip_norm(module.norm1), as_clip_norm(module.norm2)
        if isinstance(module, BasicTransformerBlock):
            width = module.norm1.normalized_shape[0]
            module.relative, module.norm_temp = relative, nn.LayerNorm(width)
            module.attn_temp = OverFrames(width, module.attn1.heads, relative)
            module.forward = block_forward.__get__(module)
    unet.conv_norm_out = as_clip_norm(unet.conv_norm_out)
    return unet


def fixture(folder: Path) -> None:
    """Two levels: one head of 48 channels, of which 32 are rotated, and two heads of 32."""
    f = networks.Fixture(folder)
    image = UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8, sample_size=8,
        attention_head_dim=(1, 2), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    networks.save_config(folder / "unet", image)
    f.add("unet", networks.UNET, lavie(image.config, 4, True).state_dict())
    f.add("interpolation", networks.UNET, lavie(image.config, 8, False).state_dict())
    clip_text.add(f, 24, second=False)
    f.network("vae", networks.vae((16, 16), 1, scaling_factor=0.18215))
    networks.save_config(folder / "scheduler", PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1))
    f.write_json("model_index.json", {
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"]})
    f.finish()


def copied(latents):
    """What the interpolation sees beside the noise: each frame's nearest of the key frames 0, 4, 8, …"""
    keys = latents[:, ::4].repeat_interleave(4, 1)
    return keys[:, 1 : 1 + latents.shape[1]]


def record(r, checkpoint: Path) -> None:
    config = UNet2DConditionModel.load_config(checkpoint / "unet")
    base, interpolation = lavie(config, 4, True).eval(), lavie(config, 8, False).eval()
    base.load_state_dict(load_file(checkpoint / "unet" / networks.UNET))
    interpolation.load_state_dict(load_file(checkpoint / "interpolation" / networks.UNET))

    def ask(network, x, step, text):
        Frames.count = x.shape[1]
        each = lambda v: v.repeat_interleave(x.shape[1], 0)
        return network(x.flatten(0, 1), each(step), each(text)).sample.unflatten(0, (-1, x.shape[1]))

    text_clips(r, "keyframes", lambda x, step, text: ask(base, x, step, text), 4, 24, SIZES, ((1, 2), (5, 1), (5, 2), (16, 1), (36, 1)))
    between = lambda x, step, text, context_latents, context_mask: ask(interpolation, torch.cat([x, copied(context_latents)], 2), step, text)
    text_clips(r, "interpolate", between, 4, 24, SIZES, ((1, 2), (5, 1), (5, 2), (13, 1)),
               context_latents=lambda r, b, t, size: r.filled("context_latents", b, t, 4, *size),
               context_mask=lambda r, b, t, size: r.listed("context_mask", [[float(i % 4 == 0) for i in range(t)]] * b, "f32"))
    autoencoder(r, AutoencoderKL.from_pretrained(checkpoint / "vae").eval(), None, SIZES)
