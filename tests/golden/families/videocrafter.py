"""VideoCrafter's networks in small, from the facts of AILab-CVC/VideoCrafter (`lvdm/modules`).

The network is written here with the original names, as a list of blocks; the fixture has the names that the exporter
gives its tensors. `videocrafter1` has tables of relative positions, `videocrafter2` temporal convolutions.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

import networks
from families import clip_text
from recorder import autoencoder, text_clips

SIZES = ((4, 6), (6, 4))
WIDTHS, HEAD, GROUPS, TEXT, LENGTH = (16, 32), 8, 8, 24, 4


def sinusoid(t, width):
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([torch.cos(t[:, None] * rates), torch.sin(t[:, None] * rates)], -1)


class Table(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.embeddings_table = nn.Parameter(torch.zeros(2 * LENGTH + 1, width))

    def forward(self, t: int):
        ahead = torch.arange(t)[None, :] - torch.arange(t)[:, None]
        return self.embeddings_table[ahead.clamp(-LENGTH, LENGTH) + LENGTH]


class Attention(nn.Module):
    def __init__(self, width, inner, context=None, relative=False):
        super().__init__()
        self.heads = inner // HEAD
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k, self.to_v = (nn.Linear(context or width, inner, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Identity())
        if relative:
            self.relative_position_k, self.relative_position_v = Table(HEAD), Table(HEAD)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        scores = q @ k.transpose(-1, -2)
        if hasattr(self, "relative_position_k"):
            scores = scores + torch.einsum("nhtd,tsd->nhts", q, self.relative_position_k(x.shape[1]))
        weights = (scores * HEAD**-0.5).softmax(-1)
        y = weights @ v
        if hasattr(self, "relative_position_v"):
            y = y + torch.einsum("nhts,tsd->nhtd", weights, self.relative_position_v(x.shape[1]))
        return self.to_out(y.transpose(1, 2).flatten(-2))


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(Gated(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width, context, relative):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width, None, relative), Attention(width, width, context, relative)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.ff = FeedForward(width)

    def forward(self, x, context=None):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Spatial(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, TEXT, False)])

    def forward(self, x, emb, text, t):
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.transformer_blocks[0](tokens, text)
        return x + self.proj_out(tokens).transpose(1, 2).view_as(x)


class Temporal(nn.Module):
    """Attention over frames; the first of a network has convolutions of width one for its projections."""

    def __init__(self, width, inner, relative, linear=True):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in = nn.Linear(width, inner) if linear else nn.Conv1d(width, inner, 1)
        self.proj_out = nn.Linear(inner, width) if linear else nn.Conv1d(inner, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(inner, None, relative)])

    def project(self, layer, x):
        return layer(x) if self.linear else layer(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x, emb, text, t):
        clip = x.unflatten(0, (-1, t)).transpose(1, 2)
        b, c, _, h, w = clip.shape
        tokens = self.norm(clip).permute(0, 3, 4, 2, 1).reshape(b * h * w, t, c)
        tokens = self.project(self.proj_out, self.transformer_blocks[0](self.project(self.proj_in, tokens)))
        return x + tokens.reshape(b, h, w, t, c).permute(0, 3, 4, 1, 2).flatten(0, 1)


class Convs(nn.Module):
    def __init__(self, width):
        super().__init__()
        stage = lambda *between: nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), *between, nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0)))
        self.conv1, self.conv2, self.conv3, self.conv4 = stage(), stage(nn.Identity()), stage(nn.Identity()), stage(nn.Identity())

    def forward(self, x):
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class Residual(nn.Module):
    def __init__(self, width, out, emb, convs):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, out))
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        if convs:
            self.temopral_conv = Convs(out)

    def forward(self, x, emb, text, t):
        h = self.out_layers(self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]) + self.skip_connection(x)
        if not hasattr(self, "temopral_conv"):
            return h
        return self.temopral_conv(h.unflatten(0, (-1, t)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)


class Plain(nn.Module):
    """A layer that sees nothing but its input."""

    def forward(self, x, emb, text, t):
        return self.layer(x)


class Down(Plain):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def layer(self, x):
        return self.op(x)


class Up(Plain):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def layer(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, emb, text, t):
        return super().forward(x)


class Network(nn.Module):
    def __init__(self, relative: bool):
        super().__init__()
        (first, deep), emb = WIDTHS, 4 * WIDTHS[0]
        mlp = lambda: nn.Sequential(nn.Linear(first, emb), nn.SiLU(), nn.Linear(emb, emb))
        residual = lambda width, out: Residual(width, out, emb, not relative)
        transformers = lambda width: [Spatial(width), Temporal(width, width, relative)]
        blocks = lambda *lists: nn.ModuleList([nn.ModuleList(layers) for layers in lists])
        self.time_embed, self.fps_embedding = mlp(), mlp()
        self.init_attn = nn.ModuleList([Temporal(first, 8 * HEAD, relative, linear=False)])
        self.input_blocks = blocks([First(4, first, 3, padding=1)], [residual(first, first), *transformers(first)], [Down(first)], [residual(first, deep)])
        self.middle_block = nn.ModuleList([residual(deep, deep), *transformers(deep), residual(deep, deep)])
        self.output_blocks = blocks([residual(deep + deep, deep)], [residual(deep + first, deep), Up(deep)],
                                    [residual(deep + first, first), *transformers(first)], [residual(first + first, first), *transformers(first)])
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, first), nn.SiLU(), nn.Conv2d(first, 4, 3, padding=1))

    def forward(self, sample, timestep, text, fps):
        t = sample.shape[1]
        emb = self.time_embed(sinusoid(timestep, WIDTHS[0])) + self.fps_embedding(sinusoid(fps, WIDTHS[0]))
        emb, text = emb.repeat_interleave(t, 0), text.repeat_interleave(t, 0)
        x, skips = sample.flatten(0, 1), []
        for i, layers in enumerate(self.input_blocks):
            for layer in [*layers, *(self.init_attn if i == 0 else ())]:
                x = layer(x, emb, text, t)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb, text, t)
        for layers in self.output_blocks:
            x = torch.cat([x, skips.pop()], 1)
            for layer in layers:
                x = layer(x, emb, text, t)
        return self.out(x).view_as(sample)


RESIDUAL = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
            "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
OUTSIDE = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "fps_embedding.0": "fps_embedding.linear_1",
           "fps_embedding.2": "fps_embedding.linear_2", "input_blocks.0.0": "conv_in", "init_attn.0": "transformer_in",
           "out.0": "conv_norm_out", "out.2": "conv_out"}
PLACES = {"input_blocks.1": "down_blocks.0.{}.0", "input_blocks.2": "down_blocks.0.{}.0", "input_blocks.3": "down_blocks.1.{}.0",
          "output_blocks.0": "up_blocks.0.{}.0", "output_blocks.1": "up_blocks.0.{}.1", "output_blocks.2": "up_blocks.1.{}.0",
          "output_blocks.3": "up_blocks.1.{}.1"}


def renamed(name: str) -> str:
    """The name that the exporter gives a tensor of these two levels with one layer each."""
    for old, new in OUTSIDE.items():
        if name.startswith(old + "."):
            return new + name[len(old):]
    block, i, rest = re.match(r"(middle_block|\w+_blocks\.\d+)\.(\d+)\.(.*)", name).groups()
    place, i = PLACES.get(block, "mid_block.{}.0"), int(i)
    if block == "middle_block" and i == 3:
        place, i = "mid_block.{}.1", 0
    for old, new in RESIDUAL.items():
        if rest.startswith(old + "."):
            return f"{place.format('resnets')}.{new}{rest[len(old):]}"
    if rest.startswith("temopral_conv."):
        return f"{place.format('temp_convs')}.{rest.removeprefix('temopral_conv.')}"
    if rest.startswith("op."):
        return f"{place.format('downsamplers')}.conv.{rest[3:]}"
    if rest.startswith("conv."):
        return f"up_blocks.0.upsamplers.0.{rest}"
    return f"{place.format('attentions' if i == 1 else 'temp_attentions')}.{rest}"


def fixture(folder: Path, relative: bool) -> None:
    f = networks.Fixture(folder)
    networks.save_config(folder / "unet", UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=WIDTHS, layers_per_block=1, cross_attention_dim=TEXT, norm_num_groups=GROUPS,
        attention_head_dim=tuple(width // HEAD for width in WIDTHS), use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")))
    f.add("unet", networks.UNET, {renamed(name): t for name, t in Network(relative).state_dict().items()})
    clip_text.add(f, TEXT, second=True)
    f.network("vae", networks.vae((16, 16), 1, scaling_factor=0.18215))
    networks.save_config(folder / "scheduler", DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    f.write_json("model_index.json", {"_class_name": "VideoCrafterPipeline"})
    f.finish()
    names = {renamed(name): name for name in Network(relative).state_dict()}
    (folder / "names.json").write_text("{\n" + ",\n".join(f"  {json.dumps(new)}: {json.dumps(old)}" for new, old in names.items()) + "\n}\n")


def record(r, checkpoint: Path, relative: bool) -> None:
    network, weights = Network(relative).eval(), load_file(checkpoint / "unet" / networks.UNET)
    network.load_state_dict({name: weights[renamed(name)] for name in network.state_dict()})
    text_clips(r, "keyframes", network, 4, TEXT, SIZES, ((1, 2), (5, 1), (5, 2), (16, 1)),
               fps=lambda r, b, t, size: r.listed("fps", [28.0, 8.0][:b], "f32"))
    if not relative:
        autoencoder(r, AutoencoderKL.from_pretrained(checkpoint / "vae").eval(), None, SIZES)
