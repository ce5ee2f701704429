"""LaVie's super-resolution network in small, from the facts of Vchitect/LaVie (`vsr/models`, `vsr/configs`).

It cannot be imported with today's libraries, so diffusers' image UNet is given its layers. Read in the source and kept
here: every `ResnetBlock3D` and the last normalisation see statistics of the clip; each transformer begins with a
`ResnetBlock3DCNN` of taps (3, 3) without time embedding; attention over frames, with rotation and bias by distance, stands
between text and feed-forward layer; after every block, its down- or upsampling included but outside of the skips, comes a
`TemporalModule3D` of a `ResnetBlock3DCNN` of taps (5, 3), a `ResnetBlock3D` and a 1x1 convolution, added to its input.
Those blocks have 32 groups and epsilon 1e-6 whatever the configuration says.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors.torch import load_file
from torch import nn

import networks
from families import clip_text
from families.lavie import ClipNorm, Frames, OverFrames, as_clip_norm
from recorder import title

LEVELS, TEXT = 60, 16


class OverClip(nn.Module):
    """Two convolutions over frames, the first of `taps`; with a time embedding between if there is one."""

    def __init__(self, width: int, taps: int, emb: int | None):
        super().__init__()
        conv = lambda taps: nn.Conv3d(width, width, (taps, 1, 1), padding=(taps // 2, 0, 0))
        self.norm1, self.norm2 = nn.GroupNorm(32, width, eps=1e-6), nn.GroupNorm(32, width, eps=1e-6)
        self.conv1, self.conv2 = conv(taps), conv(3)
        self.time_emb_proj = nn.Linear(emb, width) if emb else None

    def forward(self, x, emb=None):
        clip = x.unflatten(0, (-1, Frames.count)).transpose(1, 2)
        h = self.conv1(F.silu(self.norm1(clip)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(emb.unflatten(0, (-1, Frames.count))[:, 0]))[:, :, None, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (clip + h).transpose(1, 2).flatten(0, 1)


class OverPositions(nn.Module):
    """A residual block of frames whose normalisations see the clip."""

    def __init__(self, width: int, emb: int):
        super().__init__()
        self.norm1, self.norm2 = ClipNorm(32, width, eps=1e-6), ClipNorm(32, width, eps=1e-6)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time_emb_proj = nn.Linear(emb, width)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class Module(nn.Module):
    def __init__(self, width: int, emb: int):
        super().__init__()
        self.resblocks_3d_t, self.resblocks_3d_s = OverClip(width, 5, emb), OverPositions(width, emb)
        self.shift_conv = nn.Conv2d(width, width, 1)

    def forward(self, x, emb):
        return x + self.shift_conv(self.resblocks_3d_s(self.resblocks_3d_t(x, emb), emb))


def block_forward(self, x, encoder_hidden_states=None, **_):
    x = x + self.attn1(self.norm1(x), encoder_hidden_states=encoder_hidden_states if self.only_cross_attention else None)
    x = x + self.attn2(self.norm2(x), encoder_hidden_states=encoder_hidden_states)
    positions = x.shape[1]
    clip = x.unflatten(0, (-1, Frames.count)).transpose(1, 2).flatten(0, 1)
    clip = clip + self.attn_temporal(self.norm_temporal(clip))
    x = clip.unflatten(0, (-1, positions)).transpose(1, 2).flatten(0, 1)
    return x + self.ff(self.norm3(x))


def first_over_frames(transformer, args, kwargs):
    x, *rest = args if args else (kwargs.pop("hidden_states"),)
    return (transformer.resblock_temporal(x), *rest), kwargs


def module_after(module):
    def hook(_block, args, kwargs, out):
        emb = kwargs["temb"] if "temb" in kwargs else args[1]
        return (module(out[0], emb), *out[1:]) if isinstance(out, tuple) else module(out, emb)

    return hook


def vsr(config) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_config(config)
    widths, emb = config["block_out_channels"], 4 * config["block_out_channels"][0]
    for module in list(unet.modules()):
        if isinstance(module, ResnetBlock2D):
            module.norm1, module.norm2 = as_clip_norm(module.norm1), as_clip_norm(module.norm2)
        if isinstance(module, Transformer2DModel):
            module.resblock_temporal = OverClip(module.in_channels, 3, None)
            module.register_forward_pre_hook(first_over_frames, with_kwargs=True)
        if isinstance(module, BasicTransformerBlock):
            width = module.norm1.normalized_shape[0]
            module.norm_temporal, module.attn_temporal = nn.LayerNorm(width), OverFrames(width, module.attn1.heads, True)
            module.forward = block_forward.__get__(module)
    unet.conv_norm_out = as_clip_norm(unet.conv_norm_out)
    modules = lambda widths: nn.ModuleList([Module(width, emb) for width in widths])
    unet.down_temporal_blocks, unet.mid_temporal_block, unet.up_temporal_blocks = modules(widths), Module(widths[-1], emb), modules(widths[::-1])
    blocks = [*zip(unet.down_blocks, unet.down_temporal_blocks), (unet.mid_block, unet.mid_temporal_block), *zip(unet.up_blocks, unet.up_temporal_blocks)]
    for block, module in blocks:
        block.register_forward_hook(module_after(module), with_kwargs=True)
    return unet


def fixture(folder: Path) -> None:
    """Two levels: text only, itself and text; one head, of which 32 channels are rotated."""
    f = networks.Fixture(folder, queries=0.2)
    image = UNet2DConditionModel(
        in_channels=7, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=TEXT, norm_num_groups=8,
        attention_head_dim=1, use_linear_projection=True, only_cross_attention=(True, False), num_class_embeds=LEVELS, sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_eps=1e-5, act_fn="silu")
    networks.save_config(folder / "unet", image)
    f.add("unet", networks.UNET, vsr(image.config).state_dict())
    f.network("vae", networks.vae((16, 16, 24), 1, scaling_factor=0.08333))
    networks.save_config(folder / "scheduler", DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02,
                         prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    networks.save_config(folder / "low_res_scheduler", DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02))
    clip_text.add(f, TEXT, second=True, layers=1)
    f.write_json("model_index.json", {
        "_class_name": "StableDiffusionUpscalePipeline", "max_noise_level": 55, "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"],
        "low_res_scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"]})
    f.finish()


def record(r, checkpoint: Path) -> None:
    """In double precision."""
    network = vsr(UNet2DConditionModel.load_config(checkpoint / "unet")).eval()
    network.load_state_dict(load_file(checkpoint / "unet" / networks.UNET))
    network.double()

    def upsample(r, t, b, size, tokens):
        x, low = r.filled("sample", b, t, 4, *size), r.filled("low_res", b, t, 3, *size)
        step, level = r.listed("timestep", [749.0, 37.0][:b], "f32"), r.listed("noise_level", [50, LEVELS - 1][:b], "i64")
        text = r.filled("encoder_hidden_states", b, tokens, TEXT)
        Frames.count, each = t, lambda v: v.repeat_interleave(t, 0)
        both, text = torch.cat([x, low], 2).flatten(0, 1).double(), text.double()
        return {"out_sample": network(both, each(step), each(text), class_labels=each(level)).sample.view_as(x).float()}

    for t, b, size, tokens in ((1, 1, (8, 8), 5), (5, 2, (7, 9), 7), (2, 2, (8, 16), 5), (8, 1, (6, 4), 3)):
        r.record("upsampler", title(t, b, size), lambda r, t=t, b=b, size=size, n=tokens: upsample(r, t, b, size, n))
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae").eval()
    decode = lambda r: {"image": vae.decode(r.filled("latents", 2, 4, 3, 5) / vae.config.scaling_factor).sample}
    r.record("upsampler_decoder", title(None, 2, (3, 5)), decode)
