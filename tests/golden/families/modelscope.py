"""ModelScope's text-to-video model in small: `UNet3DConditionModel` and `AutoencoderKL` of diffusers."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel

import networks
from families import clip_text
from recorder import autoencoder, text_clips

SIZES = ((5, 7), (4, 6))


def fixture(folder: Path) -> None:
    """Three levels, the deepest without attention; heads of 4, so that the first transformer is wider (32) than its level (8)."""
    f = networks.Fixture(folder)
    f.network("unet", UNet3DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, cross_attention_dim=24, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D")))
    clip_text.add(f, 24, second=True)
    f.network("vae", networks.vae((16, 32, 32), 1, scaling_factor=0.18215))
    networks.save_config(folder / "scheduler", DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1))
    f.write_json("model_index.json", {
        "_class_name": "TextToVideoSDPipeline", "unet": ["diffusers", "UNet3DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"]})
    f.finish()


def record(r, checkpoint: Path) -> None:
    unet = UNet3DConditionModel.from_pretrained(checkpoint / "unet").eval()
    ask = lambda x, step, text: unet(x.transpose(1, 2), step, text).sample.transpose(1, 2)
    text_clips(r, "keyframes", ask, 4, unet.config.cross_attention_dim, SIZES)
    autoencoder(r, AutoencoderKL.from_pretrained(checkpoint / "vae").eval(), None, SIZES)
    clip_text.record(r, clip_text.load(checkpoint / "text_encoder"))
