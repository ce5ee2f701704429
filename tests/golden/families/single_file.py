"""Single files with the original names of Stable Diffusion 1.x and 2.x, read by diffusers' own conversion.

`fixture` writes the names and shapes of a small file, made by turning diffusers' names around, and where diffusers'
conversion finds each of its own tensors (`names.json`); that they are the
original ones is proven by diffusers, whose conversion must find every tensor of its models in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single
from transformers import CLIPTextConfig, CLIPTextModel

import fill
from recorder import autoencoder, image_unet

FILE = "checkpoint.safetensors"
UNET, VAE, CLIP, OPEN = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
           "conv_norm_out": "out.0", "conv_out": "out.2"}


def models(second: bool):
    """UNet, autoencoder and text encoder; widths are multiples of 32, since the original code has 32 groups."""
    kinds = lambda plain, cross, n: (cross,) * (n - 1) + (plain,)
    widths, layers, width = ((64, 128), 1, 64) if second else ((64, 64), 1, 64)
    heads = dict(attention_head_dim=tuple(w // 64 for w in widths), use_linear_projection=True) if second else dict(attention_head_dim=8)
    n = len(widths)
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=layers, cross_attention_dim=width,
                                down_block_types=kinds("DownBlock2D", "CrossAttnDownBlock2D", n),
                                up_block_types=kinds("UpBlock2D", "CrossAttnUpBlock2D", n)[::-1], **heads)
    vae = AutoencoderKL(block_out_channels=(32, 64), layers_per_block=layers, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.18215)
    text = CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=32, num_hidden_layers=2 if second else 1, num_attention_heads=width // 64,
                                        vocab_size=100, bos_token_id=0, eos_token_id=2, max_position_embeddings=77, hidden_act="gelu" if second else "quick_gelu"))
    return unet.eval(), vae.eval(), text.eval()


def unet_name(name: str, layers: int, attention: list[bool]) -> str:
    for new, old in OUTSIDE.items():
        if name.startswith(new + "."):
            return old + name[len(new):]
    p = name.split(".")
    inner = lambda kind, rest: RESNET[rest[0]] + "." + rest[1] if kind == "resnets" else ".".join(rest)
    if p[0] == "mid_block":
        return f"middle_block.{1 if p[1] == 'attentions' else 2 * int(p[2])}.{inner(p[1], p[3:])}"
    level, kind, j = int(p[1]), p[2], int(p[3])
    if p[0] == "down_blocks":
        at = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else j)
        return f"input_blocks.{at}.0.op.{p[-1]}" if kind == "downsamplers" else f"input_blocks.{at}.{int(kind == 'attentions')}.{inner(kind, p[4:])}"
    at = level * (layers + 1) + (layers if kind == "upsamplers" else j)
    if kind == "upsamplers":
        return f"output_blocks.{at}.{2 if attention[level] else 1}.conv.{p[-1]}"
    return f"output_blocks.{at}.{int(kind == 'attentions')}.{inner(kind, p[4:])}"


def vae_name(name: str, levels: int) -> str:
    p = name.split(".")
    if p[1] in ("conv_in", "conv_out", "weight", "bias"):
        return name
    tail = lambda rest: ".".join(rest).replace("conv_shortcut", "nin_shortcut")
    if p[1] == "conv_norm_out":
        return f"{p[0]}.norm_out.{p[2]}"
    if p[1] == "mid_block":
        if p[2] == "resnets":
            return f"{p[0]}.mid.block_{int(p[3]) + 1}.{tail(p[4:])}"
        old = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[p[4]]
        return f"{p[0]}.mid.attn_1.{old}.{p[-1]}"
    side, level = ("down", int(p[2])) if p[0] == "encoder" else ("up", levels - 1 - int(p[2]))
    if p[3] == "resnets":
        return f"{p[0]}.{side}.{level}.block.{p[4]}.{tail(p[5:])}"
    return f"{p[0]}.{side}.{level}.{side}sample.conv.{p[-1]}"


def open_clip_shapes(text) -> dict[str, list[int]]:
    """The tensors of an OpenCLIP text tower with one block more than is used."""
    c = text.config
    w, m = c.hidden_size, c.intermediate_size
    shapes = {"positional_embedding": [c.max_position_embeddings, w], "token_embedding.weight": [c.vocab_size, w], "text_projection": [w, w],
              "logit_scale": [1], "ln_final.weight": [w], "ln_final.bias": [w]}
    for i in range(c.num_hidden_layers + 1):
        at = f"transformer.resblocks.{i}."
        shapes |= {at + "attn.in_proj_weight": [3 * w, w], at + "attn.in_proj_bias": [3 * w], at + "attn.out_proj.weight": [w, w],
                   at + "attn.out_proj.bias": [w], at + "mlp.c_fc.weight": [m, w], at + "mlp.c_fc.bias": [m], at + "mlp.c_proj.weight": [w, m],
                   at + "mlp.c_proj.bias": [w]}
        shapes |= {f"{at}ln_{k}.{leaf}": [w] for k in (1, 2) for leaf in ("weight", "bias")}
    return shapes


def text_prefix(text) -> str:
    return "" if any(k.startswith("text_model.") for k in text.state_dict()) else "text_model."


def shapes(second: bool) -> dict[str, list[int]]:
    """Names and shapes of the file."""
    unet, vae, text = models(second)
    attention = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    named = {UNET + unet_name(n, unet.config.layers_per_block, attention): list(t.shape) for n, t in unet.state_dict().items()}
    rank4 = lambda n, s: s + [1, 1] if ".attn_1." in n and len(s) == 2 else s
    old = {VAE + vae_name(n, len(vae.config.block_out_channels)): list(t.shape) for n, t in vae.state_dict().items()}
    named |= {n: rank4(n, s) for n, s in old.items()}
    if second:
        named |= {OPEN + n: s for n, s in open_clip_shapes(text).items()}
    else:
        prefix = text_prefix(text)
        named |= {CLIP + prefix + n: list(t.shape) for n, t in text.state_dict().items() if "position_ids" not in n}
        named[CLIP + "text_model.embeddings.position_ids"] = [1, 77]
    return named | {"betas": [1000], "model_ema.num_updates": [1]}


def fixture(folder: Path, second: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(n)}: {s}" for n, s in sorted(shapes(second).items()))
    (folder / "weights.json").write_text("{\n" + f'  "{FILE}": {{\n{lines}\n  }}\n' + "}\n")
    lines = ",\n".join(f"  {json.dumps(part)}: {{\n" + ",\n".join(f"    {json.dumps(n)}: {json.dumps(o)}" for n, o in found.items()) + "\n  }"
                       for part, found in names(second).items())
    (folder / "names.json").write_text("{\n" + lines + "\n}\n")


def converted(second: bool) -> list[dict[str, torch.Tensor]]:
    """UNet, autoencoder and text encoder as diffusers reads the file."""
    unet, vae, text = models(second)
    file = {n: torch.from_numpy(fill.weight(FILE, n, tuple(s))) for n, s in shapes(second).items()}
    u, v = single.convert_ldm_unet_checkpoint(dict(file), unet.config), single.convert_ldm_vae_checkpoint(dict(file), vae.config)
    last = f"{OPEN}transformer.resblocks.{text.config.num_hidden_layers}."
    kept = {n: t for n, t in file.items() if not n.startswith(last)}  # what diffusers does for block 23
    t = single.convert_open_clip_checkpoint(text, kept) if second else single.convert_ldm_clip_checkpoint(dict(file))
    t = {n: x for n, x in t.items() if n != "text_projection.weight" and "position_ids" not in n}
    return [u, v, t]


def loaded(second: bool):
    """The models with the weights of the file; every tensor must be there."""
    made = models(second)
    for model, state in zip(made, converted(second)):
        if model is made[2] and not text_prefix(model) == "":
            state = {n.removeprefix("text_model."): x for n, x in state.items()}
        wanted = {n for n in model.state_dict() if "position_ids" not in n}
        assert set(state) == wanted, sorted(set(state) ^ wanted)[:8]
        model.load_state_dict(state, strict=False)
    return made


def names(second: bool) -> dict[str, dict[str, list]]:
    """For each component, the tensor and the first row of the file that each tensor of diffusers comes from."""
    file, found = shapes(second), {}
    marks, count = {}, 0
    for n, s in file.items():  # each row of each tensor has a number of its own
        rows = s[0] if s else 1
        marks[n] = (torch.arange(rows, dtype=torch.float64) + count).reshape([rows] + [1] * max(0, len(s) - 1)).expand(s or [1])
        count += rows
    starts = sorted((int(t.flatten()[0]), n) for n, t in marks.items() if t.numel())
    origin = lambda value: next((n, value - first) for first, n in reversed(starts) if first <= value)
    unet, vae, text = models(second)
    last = f"{OPEN}transformer.resblocks.{text.config.num_hidden_layers}."
    kept = {n: t for n, t in marks.items() if not n.startswith(last)}
    t = single.convert_open_clip_checkpoint(text, kept) if second else single.convert_ldm_clip_checkpoint(dict(marks))
    parts = {"unet": single.convert_ldm_unet_checkpoint(dict(marks), unet.config), "vae": single.convert_ldm_vae_checkpoint(dict(marks), vae.config),
             "text_encoder": {n: x for n, x in t.items() if n != "text_projection.weight" and "position_ids" not in n}}
    for part, state in parts.items():
        found[part] = {n: list(origin(int(x.flatten()[0]))) for n, x in sorted(state.items())}
    return found


def record(r, _checkpoint: Path, second: bool) -> None:
    """The networks as diffusers loads them."""
    unet, vae, _ = loaded(second)
    image_unet(r, "image", unet, ((8, 12), (12, 10)))
    autoencoder(r, vae, None, ((3, 5), (4, 6)))
