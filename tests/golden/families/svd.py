"""Stable Video Diffusion in small: `svd` is built like the published one, `svd-short` as far from it as the classes allow."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import networks
from recorder import title

# What the feature extractor of the published checkpoints says.
PROCESSOR = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
INDEX = {
    "_class_name": "StableVideoDiffusionPipeline", "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"], "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"], "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


def fixture(folder: Path, unet: dict, vae: dict, vision: dict) -> None:
    f = networks.Fixture(folder)
    levels, prefix = len(unet["block_out_channels"]), {True: "CrossAttn", False: ""}
    attention = unet.pop("attention")
    kinds = lambda way, which: tuple(f"{prefix[a]}{way}BlockSpatioTemporal" for a in which)
    f.network("unet", UNetSpatioTemporalConditionModel(
        **unet, down_block_types=kinds("Down", attention), up_block_types=kinds("Up", attention[::-1]), cross_attention_dim=24,
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24))
    f.network("vae", AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * len(vae["block_out_channels"]), **vae))
    f.transformers("image_encoder", CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=24, **vision)))
    f.write_json("feature_extractor/preprocessor_config.json", PROCESSOR)
    networks.save_config(folder / "scheduler", scheduler())
    f.write_json("model_index.json", INDEX)
    f.finish()


def scheduler() -> EulerDiscreteScheduler:
    """That of the published checkpoints."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", interpolation_type="linear",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading", timestep_type="continuous", steps_offset=1)


def like_published(folder: Path) -> None:
    fixture(folder,
            dict(block_out_channels=(32, 64, 32), attention=(True, False, False), layers_per_block=(1, 2, 1), num_attention_heads=(2, 4, 4),
                 transformer_layers_per_block=(1, 1, 2), num_frames=6, sample_size=12),
            dict(block_out_channels=(32, 64), layers_per_block=2, sample_size=24),
            dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56, hidden_act="gelu"))


def short(folder: Path) -> None:
    """One layer a level, which leaves the decoder's middle without its attention; transformers at the deepest level alone."""
    fixture(folder,
            dict(block_out_channels=(64, 32), attention=(False, True), layers_per_block=1, num_attention_heads=4, num_frames=5, sample_size=8),
            dict(block_out_channels=(32, 32), layers_per_block=1, sample_size=16, scaling_factor=0.7),
            dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, image_size=37, patch_size=12, hidden_act="quick_gelu"))


def clips(small, large):
    """Frames, batch and size of every case."""
    return [(1, 2, small), (5, 1, large), (5, 2, small), (14, 1, small)]


def record(r, checkpoint: Path) -> None:
    unet = UNetSpatioTemporalConditionModel.from_pretrained(checkpoint / "unet").eval()
    vae = AutoencoderKLTemporalDecoder.from_pretrained(checkpoint / "vae").eval()
    vision = CLIPVisionModelWithProjection.from_pretrained(checkpoint / "image_encoder").eval()
    for n, (t, b, size) in enumerate(clips((5, 7), (6, 10))):

        def denoise(r, n=n, t=t, b=b, size=size):
            x, step = r.filled("sample", b, t, 8, *size), r.listed("timestep", [1.6377, -0.75][:b], "f32")
            text = r.filled("encoder_hidden_states", b, 2 if n == 2 else 1, 24)
            movement = r.listed("added_time_ids", [[6.0, 127.0, 0.02], [23.0, 40.0, 0.1]][:b], "f32")
            return {"out_sample": unet(x, step, text, movement).sample}

        r.record("keyframes", title(t, b, size), denoise)
    for t, b, size in clips((3, 5), (4, 6)):

        def decode(r, t=t, b=b, size=size):
            z = r.filled("latents", b, t, 4, *size) / vae.config.scaling_factor
            return {"frames": vae.decode(z.flatten(0, 1), num_frames=t).sample.unflatten(0, (b, t))}

        r.record("decoder", title(t, b, size), decode)
    for b, (h, w) in ((1, (6, 10)), (2, (8, 12))):

        def encode(r, b=b, h=h, w=w):
            code, scale = vae.encode(r.filled("image", b, 3, h, w)).latent_dist, vae.config.scaling_factor
            return {"latents": code.mean * scale, "latents_std": code.std * scale}

        r.record("encoder", f"b{b}-{h}x{w}", encode)
    side = vision.config.image_size
    for b in (1, 2):
        r.record("image_encoder", f"b{b}", lambda r, b=b: {"image_embeds": vision(r.filled("pixel_values", b, 3, side, side)).image_embeds})

