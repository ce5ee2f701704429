"""The small checkpoints of `tests/fixtures`: configurations from here, weights by formula.

A fixture folder holds the configuration files of a checkpoint and `weights.json`, which lists the tensors of every
weight file. The files themselves are made when they are needed, by `fill.weight` here and by its twin in Rust.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

import fill
from families import clip_text
from model import Conditions, Graft

UNET = "diffusion_pytorch_model.safetensors"
MODEL = "model.safetensors"
TEMPORAL = "temporal.safetensors"
BLOCKS = dict(act_fn="silu", norm_eps=1e-5)


def scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type, clip_sample=False,
                         set_alpha_to_one=True, timestep_spacing="trailing")


def vae(widths: tuple[int, ...], layers: int, **more) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=widths, layers_per_block=layers, norm_num_groups=8, latent_channels=4,
                         down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
                         sample_size=16, **more)


def save_config(folder: Path, model) -> None:
    """`config.json` as diffusers writes it, without the version that wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    path = next(folder.glob("*config.json"))
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


class Fixture:
    """Collects components, then writes configurations and the list of tensors, before it the deviation of queries and keys."""

    def __init__(self, folder: Path, queries: float = 0.4):
        self.folder, self.queries, self.files = folder, queries, {}

    def add(self, component: str, file: str, state: dict) -> None:
        self.files[f"{component}/{file}"] = {name: list(t.shape) for name, t in sorted(state.items())}

    def network(self, component: str, model) -> None:
        save_config(self.folder / component, model)
        self.add(component, UNET, model.state_dict())

    def transformers(self, component: str, model) -> None:
        """A model of transformers, without the version that wrote it."""
        config = json.loads(model.config.to_json_string())
        config.pop("transformers_version", None)
        self.write_json(f"{component}/config.json", config)
        self.add(component, MODEL, model.state_dict())

    def graft(self, component: str, graft: Graft) -> None:
        folder = self.folder / component
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"_class_name": "VideoLDMTemporal", **graft.config}, indent=2)
        (folder / "config.json").write_text(text + "\n")
        self.add(component, TEMPORAL, {k.replace("/", "."): v for k, v in graft.layers.state_dict().items()})

    def write_json(self, name: str, value) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")

    def finish(self) -> None:
        lines = ",\n".join(f"  {json.dumps(f)}: {{\n" + ",\n".join(f"    {json.dumps(n)}: {s}" for n, s in t.items()) + "\n  }"
                           for f, t in self.files.items())
        first = f'  "queries": {self.queries},\n' if self.queries != 0.4 else ""
        (self.folder / "weights.json").write_text("{\n" + first + lines + "\n}\n")


def materialise(fixture: Path, into: Path) -> Path:
    """The fixture as a complete float32 checkpoint in `into`."""
    for config in fixture.rglob("*.json"):
        if config.name != "weights.json":
            target = into / config.relative_to(fixture)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(config.read_bytes())
    files = json.loads((fixture / "weights.json").read_text())
    queries = files.pop("queries", 0.4)
    for file, tensors in files.items():
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        save_file({n: torch.from_numpy(fill.weight(file, n, tuple(s), queries)) for n, s in tensors.items()}, into / file)
    clip_text.materialise(into)
    return into


def tiny_cascade(folder: Path) -> None:
    """A whole `videoldm` checkpoint: two levels, attention on both in `keyframes` and on one in `interpolate`."""
    f = Fixture(folder)
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16,
                                attention_head_dim=2, norm_num_groups=8, sample_size=8, **BLOCKS,
                                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    upsampler = UNet2DConditionModel(in_channels=51, out_channels=48, block_out_channels=(16, 24), layers_per_block=1, cross_attention_dim=8,
                                     attention_head_dim=2, norm_num_groups=8, num_class_embeds=350, sample_size=16, **BLOCKS,
                                     mid_block_type="UNetMidBlock2D", down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    code = vae((16, 24), 1, scaling_factor=0.7)
    f.network("unet", unet)
    f.network("vae", code)
    f.network("upsampler", upsampler)
    common = dict(norm_num_groups=8, head_dim=8, cross_attention_dim=16, ff_mult=2, temb_channels=64, cond_mask=True, cond_channels=8)
    f.graft("keyframes", Graft(unet, **common, attention_levels=[1]))
    f.graft("interpolate", Graft(UNet2DConditionModel.from_config(unet.config), **common, attention_levels=[0, 1], num_regimes=2))
    f.graft("decoder", Graft(code, "decoder.", norm_num_groups=8, attention=False, time_conv_out=True))
    f.graft("upsampler-temporal", Graft(upsampler, norm_num_groups=8, attention=False, temb_channels=64))
    f.add("conditions", "model.safetensors", Conditions(16).state_dict())
    f.write_json("conditions/config.json", {"_class_name": "VideoLDMConditions", "width": 16,
                 "labels": [{"name": "night", "classes": 2}, {"name": "crowd", "classes": 4}]})
    save_config(folder / "scheduler", scheduler("v_prediction"))
    f.write_json("model_index.json", {"_class_name": "VideoLDMPipeline", "format_version": 1, "unet": "unet", "keyframes": "keyframes",
                 "interpolate": "interpolate", "vae": "vae", "decoder": "decoder", "upsampler": "upsampler",
                 "upsampler_temporal": "upsampler-temporal", "conditions": "conditions", "scheduler": "scheduler", "key_fps": 2.0,
                 "window": 4, "latent_size": [6, 10], "upsampler_prediction_type": "sample",
                 "upsampler_residual_scale": 2.0})
    f.finish()


def stable_diffusion(folder: Path, second: bool) -> None:
    """Shaped like Stable Diffusion 1.x, or 2.x with linear projections, heads per level and OpenCLIP's text encoder."""
    f = Fixture(folder)
    heads = dict(attention_head_dim=(2, 4, 4), use_linear_projection=True) if second else dict(attention_head_dim=4)
    f.network("unet", UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=2, cross_attention_dim=24, norm_num_groups=8,
        sample_size=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **BLOCKS, **heads))
    f.network("vae", vae((16, 32, 32), 2, scaling_factor=0.18215))
    clip_text.add(f, 24, second, layers=3 if second else 2)
    save_config(folder / "scheduler", scheduler("v_prediction" if second else "epsilon"))
    f.write_json("model_index.json", {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
                 "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"],
                 "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]})
    f.finish()
