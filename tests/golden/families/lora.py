"""Low-rank adaptations in the dialects of kohya, diffusers and peft, merged by peft itself (`pip install peft`).

The fixture lists the tensors of each file; weights are by formula. The networks are those of the fixture `sd1`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import fill
import networks
from recorder import image_unet

BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0"
# Scales are large, since weights by formula are small and the test must see every factor.
SCALES = {"kohya.safetensors": 30.0, "peft.safetensors": 2.0, "old.safetensors": -1.5}


def shape_of(unet, layer: str) -> list[int]:
    return list(unet.state_dict()[f"{layer}.weight"].shape)


def matrices(unet, layer: str, rank: int) -> tuple[list[int], list[int]]:
    """Shapes of down and up: a convolution's down has its kernel, its up is 1x1."""
    out, *rest = shape_of(unet, layer)
    return [rank, *rest], [out, rank] + [1] * (len(rest) - 1)


def files(unet) -> dict[str, dict[str, list[int]]]:
    made: dict[str, dict[str, list[int]]] = {name: {} for name in SCALES}

    def add(file, layer, rank, down, up, alpha=None):
        made[file][down], made[file][up] = matrices(unet, layer, rank)
        if alpha:
            made[file][alpha] = [1]

    attention = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_out.0", f"{BLOCK}.ff.net.0.proj", "mid_block.attentions.0.proj_in"]
    for i, layer in enumerate(attention + ["mid_block.resnets.0.conv1", "down_blocks.0.resnets.1.conv2", "up_blocks.1.resnets.0.conv_shortcut"]):
        flat = "lora_unet_" + layer.replace(".", "_")
        add("kohya.safetensors", layer, 2 + i % 3, f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha")
    for layer in (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_v", f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.ff.net.2", "conv_in", "time_embedding.linear_1"):
        add("peft.safetensors", layer, 4, f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight")
    for layer, old in (("to_q", "to_q"), ("to_out.0", "to_out")):
        at = f"unet.{BLOCK}.attn2.processor.{old}_lora"
        add("old.safetensors", f"{BLOCK}.attn2.{layer}", 3, f"{at}.down.weight", f"{at}.up.weight")
    return made


def adapted(folder: Path) -> UNet2DConditionModel:
    """The network of the fixture `sd1` beside `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = networks.materialise(folder.parent / "sd1", Path(scratch) / "sd1")
        return UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()


def fixture(folder: Path) -> None:
    """The files' tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    made = files(adapted(folder))
    body = ",\n".join(f"  {json.dumps(f)}: {{\n" + ",\n".join(f"    {json.dumps(n)}: {s}" for n, s in t.items()) + "\n  }" for f, t in made.items())
    (folder / "weights.json").write_text("{\n" + body + "\n}\n")


def merged(unet, names) -> torch.nn.Module:
    """`unet` with the files merged by diffusers and peft, one after the other."""
    for i, (file, tensors) in enumerate((f, t) for f, t in files(unet).items() if f in names):
        state = {n: torch.from_numpy(fill.weight(file, n, tuple(s))) for n, s in tensors.items()}
        state = {n: t.reshape(()) if n.endswith(".alpha") else t for n, t in state.items()}
        state, alphas = StableDiffusionPipeline.lora_state_dict(state, unet_config=unet.config)
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, adapter_name=f"a{i}")
        unet.set_adapters([f"a{i}"], [SCALES[file]])
        unet.fuse_lora(adapter_names=[f"a{i}"])
        unet.unload_lora()
    return unet


def record(r, _checkpoint: Path) -> None:
    unet = merged(adapted(Path(__file__).resolve().parents[2] / "fixtures" / "lora"), SCALES)
    image_unet(r, "image", unet, ((6, 10), (8, 12)))
