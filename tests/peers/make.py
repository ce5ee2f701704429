"""The networks of the comparison: about 60 M parameters each, random weights, 8 frames of 32x32 latents.

    python tests/peers/make.py FOLDER

makes for each of svd, modelscope and animatediff

    FOLDER/NAME/                 a checkpoint as diffusers writes it
    FOLDER/NAME.recording/       one question to the UNet and torch's answer
    FOLDER/NAME.torch.onnx       what torch.onnx.export (TorchScript) makes of it, all sizes fixed

Seed 0. Encoders and decoders are tiny: what is compared is the UNet.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    for make in (svd, modelscope, animatediff):
        torch.manual_seed(0)
        name = make.__name__
        make(root / name)
        network = networks.load(root / name)
        inputs = question(network)
        with torch.no_grad():
            answer = network(*inputs.values())
            torch.onnx.export(network, tuple(inputs.values()), root / f"{name}.torch.onnx", opset_version=17, dynamo=False, input_names=list(inputs),
                              output_names=["out_sample"])
        case = f"t{FRAMES}-{SIZE}x{SIZE}"
        recorded = {f"{case}/input:{key}": value.contiguous() for key, value in inputs.items()}
        (root / f"{name}.recording").mkdir(exist_ok=True)
        save_file(recorded | {f"{case}/output:out_sample": answer.contiguous()}, root / f"{name}.recording" / "keyframes.safetensors")
        print(f"{name}: {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
