"""The Stable Diffusion x4 upscaler: fixtures `x4` (as diffusers has it) and `x4-video` (with temporal layers)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel

import networks
from families import clip_text
from model import Graft
from recorder import title

DOWN = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3
UP = ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",)
LEVELS = 50


def unet(deepest: bool) -> UNet2DConditionModel:
    """Four levels as released: none, text only, text only, itself and text; `deepest` sees the text only, beside a middle that sees itself."""
    return UNet2DConditionModel(
        in_channels=7, out_channels=4, block_out_channels=(16, 24, 24, 32), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
        attention_head_dim=4, use_linear_projection=True, only_cross_attention=(True, True, True, deepest), num_class_embeds=LEVELS,
        sample_size=8, down_block_types=DOWN, up_block_types=UP, norm_eps=1e-5, act_fn="silu")


def fixture(folder: Path, video: bool) -> None:
    f, network = networks.Fixture(folder), unet(deepest=video)
    f.network("unet", network)
    f.network("vae", networks.vae((16, 16, 24), 1, scaling_factor=0.08333))
    networks.save_config(folder / "scheduler", DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02,
                         prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    networks.save_config(folder / "low_res_scheduler", DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02))
    clip_text.add(f, 16, second=True, layers=1)
    index = {"_class_name": "StableDiffusionUpscalePipeline", "max_noise_level": 40, "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"],
             "low_res_scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"]}
    if video:
        f.graft("upsampler_temporal", Graft(network, norm_num_groups=8, head_dim=8, cross_attention_dim=16, ff_mult=2, temb_channels=64,
                                            attention_levels=[1, 3]))
    f.write_json("model_index.json", index)
    f.finish()


def record(r, checkpoint: Path) -> None:
    """`r` is a fresh `Recorder`; frames of a clip are the batch of the image network."""
    network = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    video = (checkpoint / "upsampler_temporal").exists()
    graft = Graft.load(network, checkpoint / "upsampler_temporal").eval() if video else None

    def upsample(r, t, b, size, tokens):
        x, low = r.filled("sample", b, t, 4, *size), r.filled("low_res", b, t, 3, *size)
        step, level = r.listed("timestep", [749.0, 37.0][:b], "f32"), r.listed("noise_level", [20, LEVELS - 1][:b], "i64")
        text = r.filled("encoder_hidden_states", b, tokens, 16)
        both, each = torch.cat([x, low], 2).flatten(0, 1), lambda v: v.repeat_interleave(t, 0)
        call = lambda u: u(both, each(step), each(text), class_labels=each(level)).sample
        return {"out_sample": (graft.run(call, t, text=text) if graft else call(network)).view_as(x)}

    for t, b, size, tokens in ((1, 1, (8, 8), 5), (5, 2, (9, 11), 7), (2, 2, (8, 16), 5), (5, 1, (16, 8), 3), (8, 1, (7, 10), 4)):
        r.record("upsampler", title(t, b, size), lambda r, t=t, b=b, size=size, n=tokens: upsample(r, t, b, size, n))
    if not video:
        vae = AutoencoderKL.from_pretrained(checkpoint / "vae").eval()
        for b, (h, w) in ((1, (3, 5)), (2, (4, 4))):
            decode = lambda r, b=b, h=h, w=w: {"image": vae.decode(r.filled("latents", b, 4, h, w) / vae.config.scaling_factor).sample}
            r.record("upsampler_decoder", title(None, b, (h, w)), decode)
        clip_text.record(r, clip_text.load(checkpoint / "text_encoder"))
