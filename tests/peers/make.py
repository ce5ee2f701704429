"""The networks of the comparison: about 60 M parameters each, random weights, 8 frames of 32x32 latents.

    python tests/peers/make.py FOLDER

makes for each of svd, modelscope and animatediff

    FOLDER/NAME/                 a checkpoint as diffusers writes it
    FOLDER/NAME.recording/       one question to the UNet and torch's answer
    FOLDER/NAME.torch.onnx       what torch.onnx.export (TorchScript) makes of it, all sizes fixed
    FOLDER/NAME.torch.b2.onnx    the same for two at once, as guidance calls it
    FOLDER/NAME.json             a plan: 8 frames, 25 steps with guidance, noise as diffusers draws it
    FOLDER/first.png             the picture that one of the plans begins with

Seed 0. Encoders and decoders are tiny: what is compared is the UNet.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import networks

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
WIDTHS, FRAMES, SIZE, TEXT = (64, 128, 256, 256), 8, 32, 256


def svd(folder: Path) -> None:
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    UNetSpatioTemporalConditionModel(
        sample_size=SIZE, block_out_channels=WIDTHS, num_attention_heads=(2, 4, 8, 8), cross_attention_dim=TEXT, num_frames=FRAMES,
        addition_time_embed_dim=64, projection_class_embeddings_input_dim=192).save_pretrained(folder / "unet")
    AutoencoderKLTemporalDecoder(block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4,
                                 down_block_types=("DownEncoderBlock2D",) * 4).save_pretrained(folder / "vae")
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14,
                              projection_dim=TEXT, hidden_act="gelu")
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", use_karras_sigmas=True,
                           sigma_min=0.002, sigma_max=700.0, timestep_type="continuous", steps_offset=1).save_config(folder / "scheduler")
    (folder / "feature_extractor").mkdir(exist_ok=True)
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "crop_size": dict(height=224, width=224), "size": {"shortest_edge": 224}, "do_center_crop": True,
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}, indent=2))
    index(folder, "StableVideoDiffusionPipeline", feature_extractor=["transformers", "CLIPImageProcessor"],
          image_encoder=["transformers", "CLIPVisionModelWithProjection"], scheduler=["diffusers", "EulerDiscreteScheduler"],
          unet=["diffusers", "UNetSpatioTemporalConditionModel"], vae=["diffusers", "AutoencoderKLTemporalDecoder"])


def modelscope(folder: Path) -> None:
    from diffusers import UNet3DConditionModel

    UNet3DConditionModel(sample_size=SIZE, block_out_channels=WIDTHS, attention_head_dim=32, cross_attention_dim=TEXT).save_pretrained(folder / "unet")
    text(folder, "TextToVideoSDPipeline", "UNet3DConditionModel")


def animatediff(folder: Path) -> None:
    from diffusers import UNetMotionModel

    UNetMotionModel(sample_size=SIZE, block_out_channels=WIDTHS, num_attention_heads=8, motion_num_attention_heads=8, cross_attention_dim=TEXT,
                    motion_max_seq_length=32, use_motion_mid_block=True).save_pretrained(folder / "unet")
    text(folder, "AnimateDiffPipeline", "UNetMotionModel")


def text(folder: Path, pipeline: str, unet: str) -> None:
    """What every text-to-video checkpoint has beside its UNet."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    AutoencoderKL(block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4, **blocks).save_pretrained(folder / "vae")
    shutil.copytree(FIXTURES / "modelscope" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FIXTURES / "clip" / name, folder / "tokenizer" / name)
    words = json.loads((FIXTURES / "clip" / "vocab.json").read_text())
    start, end = words["<|startoftext|>"], words["<|endoftext|>"]
    CLIPTextModel(CLIPTextConfig(vocab_size=end + 1, hidden_size=TEXT, intermediate_size=2 * TEXT, num_hidden_layers=2, num_attention_heads=4,
                                 bos_token_id=start, eos_token_id=end)).save_pretrained(folder / "text_encoder")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                  steps_offset=1).save_config(folder / "scheduler")
    index(folder, pipeline, scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
          tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", unet], vae=["diffusers", "AutoencoderKL"])


def index(folder: Path, pipeline: str, **components) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **components}, indent=2))


def question(network: networks.Network) -> dict[str, torch.Tensor]:
    channels, tokens = network.unet.config.in_channels, 1 if "added_time_ids" in network.inputs else 77
    asked = {"sample": torch.randn(1, FRAMES, channels, SIZE, SIZE), "timestep": torch.tensor([501.0]),
             "encoder_hidden_states": torch.randn(1, tokens, TEXT), "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]])}
    return {name: asked[name] for name in network.inputs}


def plan(name: str) -> dict:
    if name == "svd":
        conditions, guidance = {"image": {"file": "first.png"}, "fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.02}, [1.0, 3.0]
        decode = {"window": FRAMES, "halo": 0}
    else:
        conditions, guidance = {"prompt": "a red fox runs through the snow", "negative_prompt": "blurry"}, 7.5
        decode = {"temporal": False}
    stages = [{"op": "conditions", **conditions}, {"op": "keyframes", "frames": FRAMES, "steps": 25, "guidance": guidance}, {"op": "decode", **decode},
              {"op": "video", "fps": 8}]
    return {"version": 1, "bundle": f"{name}.bundle", "seed": 1, "noise": "diffusers", "size": [8 * SIZE, 8 * SIZE], "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    root.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:8 * SIZE, 0:8 * SIZE]
    Image.fromarray(np.stack([127 + 90 * np.sin(x / 19), 127 + 90 * np.cos(y / 15), x], -1).astype(np.uint8)).save(root / "first.png")
    for make in (svd, modelscope, animatediff):
        torch.manual_seed(0)
        name = make.__name__
        make(root / name)
        network = networks.load(root / name)
        inputs = question(network)
        with torch.no_grad():
            answer = network(*inputs.values())
            for batch, path in ((1, f"{name}.torch.onnx"), (2, f"{name}.torch.b2.onnx")):
                example = tuple(x.repeat(batch, *[1] * (x.ndim - 1)) for x in inputs.values())
                torch.onnx.export(network, example, root / path, opset_version=17, dynamo=False, input_names=list(inputs), output_names=["out_sample"])
        case = f"t{FRAMES}-{SIZE}x{SIZE}"
        recorded = {f"{case}/input:{key}": value.contiguous() for key, value in inputs.items()}
        (root / f"{name}.recording").mkdir(exist_ok=True)
        save_file(recorded | {f"{case}/output:out_sample": answer.contiguous()}, root / f"{name}.recording" / "keyframes.safetensors")
        (root / f"{name}.json").write_text(json.dumps(plan(name), indent=2))
        print(f"{name}: {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
