"""A Video LDM with prompts, whose temporal layers are those of Stable Video Diffusion, grafted onto an image UNet.

The oracle is diffusers' own `UNetSpatioTemporalConditionModel`, its spatial weights those of the image UNet; what it does not
know (known frames, frame rates, a text for temporal layers alone) is put in by hooks.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel

import networks
from families import clip_text
from model import CondEncoder, masked_context
from recorder import autoencoder, clips, image_unet, title
from sample import Cascade

# The text that spatial layers see, and the one that temporal layers see.
SPATIAL, TEMPORAL = 24, 16
# The index names this folder; its heads are wide (`fill.weight`).
UNET = "image_unet"
SIZES = ((5, 7), (4, 6))
SHAPE = dict(in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=SPATIAL)
OURS = (".temporal_res_block.", ".temporal_transformer_blocks.", ".time_pos_embed.", ".time_mixer.", ".cond_proj.", "cond_encoder.", "regime_embedding.")


def image() -> UNet2DConditionModel:
    return UNet2DConditionModel(**SHAPE, attention_head_dim=(2, 4), use_linear_projection=True, norm_num_groups=32, sample_size=8,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))


class Grafted(nn.Module):
    """The network of a component, with the names that its tensors have in `temporal.safetensors`."""

    def __init__(self, config: dict):
        super().__init__()
        self.config, self.clip = config, None
        self.net = UNetSpatioTemporalConditionModel(
            **SHAPE, num_attention_heads=(2, 4), addition_time_embed_dim=8, projection_class_embeddings_input_dim=8,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"))
        self.cond_encoder = CondEncoder({"latent_channels": 4, "cond_channels": config["cond_channels"], "attention_levels": [1]})
        if config["num_regimes"]:
            self.regime_embedding = nn.Embedding(config["num_regimes"], 128)
        for path, module in list(self.net.named_modules()):
            kind = type(module).__name__
            if kind == "TransformerSpatioTemporalModel":
                width, level = module.in_channels, int(module.in_channels == 64)
                module.cond_proj = nn.Conv2d(config["cond_channels"], width, 1)
                for block in module.temporal_transformer_blocks:
                    block.attn2.to_k, block.attn2.to_v = nn.Linear(TEMPORAL, width, bias=False), nn.Linear(TEMPORAL, width, bias=False)
                    block.register_forward_pre_hook(lambda _m, a, k, t=module, level=level: self.see(t, level, a, k), with_kwargs=True)
            if kind == "TemporalResnetBlock":
                module.register_forward_pre_hook(lambda _m, args: (args[0], self.at_rate(args[1])))
            if kind == "GroupNorm" and not config["svd_eps_quirk"]:
                module.eps = config["norm_eps"] if "temporal_res_block" in path else 1e-6 if path.endswith(".norm") else 1e-5

    def see(self, transformer, level, args, kwargs):
        """Known frames beside the positions, and the text of the temporal layers in the place of the other."""
        known, text = self.clip["known"][level], self.clip["text"]
        rows = kwargs["encoder_hidden_states"].shape[0] // text.shape[0]
        seen = args[0] + transformer.cond_proj(known).flatten(2).transpose(1, 2)
        return (seen, *args[1:]), {**kwargs, "encoder_hidden_states": text.repeat_interleave(rows, 0)}

    def at_rate(self, emb):
        rate = self.clip["rate"]
        return emb if rate is None else emb + self.regime_embedding(rate)[:, None]

    def names(self) -> dict:
        """Every tensor and the file it lies in, by its name there."""
        state = {name.removeprefix("net."): t for name, t in self.state_dict().items()}
        own = {name: t for name, t in state.items() if any(part in name for part in OURS)}
        rest = {name.replace(".spatial_res_block.", "."): t for name, t in state.items() if name not in own and "add_embedding" not in name}
        return {"temporal": own, "unet": rest}

    @classmethod
    def load(cls, unet: Path, folder: Path) -> Grafted:
        config = json.loads((folder / "config.json").read_text())
        graft = cls(config).eval()
        files = {"unet": load_file(unet / networks.UNET), "temporal": load_file(folder / networks.TEMPORAL)}
        with torch.no_grad():
            for file, tensors in graft.names().items():
                assert set(tensors) == set(files[file]), set(tensors) ^ set(files[file])
                for name, tensor in tensors.items():
                    tensor.copy_(files[file][name].view_as(tensor))
            for p in graft.net.add_embedding.parameters():
                p.zero_()
        return graft

    def run(self, call, frames: int, context=None, rate=None, text=None):
        """As `model.Graft.run`; tokens `[b, l, SPATIAL + TEMPORAL]` hold both texts side by side."""
        self.clip = dict(known=list(self.cond_encoder(context).values()), rate=rate, text=text[..., SPATIAL:])

        def ask(x, step, tokens):
            b = x.shape[0] // frames
            step = step if step.dim() == 0 else step[::frames]
            y = self.net(x.unflatten(0, (b, frames)), step, tokens[::frames, :, :SPATIAL], torch.zeros(b, 1)).sample
            return SimpleNamespace(sample=y.flatten(0, 1))

        return call(ask)


def fixture(folder: Path) -> None:
    f = networks.Fixture(folder)
    f.network(UNET, image())
    f.network("vae", networks.vae((8, 16), 1, scaling_factor=0.7))
    common = dict(arch="svd", norm_num_groups=32, cross_attention_dim=TEMPORAL, cond_mask=True, cond_channels=8, norm_eps=1e-5)
    for component, more in (("keyframes", dict(svd_eps_quirk=True, num_regimes=0)), ("interpolate", dict(svd_eps_quirk=False, num_regimes=2))):
        config = {**common, **more}
        f.write_json(f"{component}/config.json", {"_class_name": "VideoLDMTemporal", **config})
        f.add(component, networks.TEMPORAL, Grafted(config).names()["temporal"])
    clip_text.add(f, SPATIAL, second=False)
    clip_text.add(f, TEMPORAL, second=True, prefix="temporal_")
    networks.save_config(folder / "scheduler", networks.scheduler("v_prediction"))
    f.write_json("model_index.json", {
        "_class_name": "VideoLDMPipeline", "format_version": 1, "unet": UNET, "vae": "vae", "keyframes": "keyframes", "interpolate": "interpolate",
        "text_encoder": "text_encoder", "tokenizer": "tokenizer", "temporal_text_encoder": "temporal_text_encoder",
        "temporal_tokenizer": "temporal_tokenizer", "scheduler": "scheduler", "key_fps": 2.0, "window": 4, "latent_size": [6, 8]})
    f.finish()


class Prompted(Cascade):
    """The reference cascade, told prompts instead of labels."""

    def __init__(self, folder: Path, given: torch.Tensor, null: torch.Tensor):
        self.keyframe_model, self.interpolation_model = (Grafted.load(folder / UNET, folder / name) for name in ("keyframes", "interpolate"))
        self.vae, self.decoder = AutoencoderKL.from_pretrained(folder / "vae").eval(), None
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.conditions = lambda night, _crowd: null if night.item() < 0 else given


def encoders(folder: Path) -> list[CLIPTextModel]:
    return [clip_text.load(folder / f"{prefix}text_encoder") for prefix in ("", "temporal_")]


def record(r, checkpoint: Path) -> None:
    image_unet(r, "image", UNet2DConditionModel.from_pretrained(checkpoint / UNET).eval(), SIZES)
    autoencoder(r, AutoencoderKL.from_pretrained(checkpoint / "vae").eval(), None, SIZES)
    for encoder, part in zip(encoders(checkpoint), ("text_encoder", "temporal_text_encoder")):
        clip_text.record(r, encoder, part)
    masks = lambda t: [[0.0] * t, [1.0] + [0.0] * (t - 1), [1.0] + [0.0] * (t - 2) + [1.0] * (t > 1)]
    for part in ("keyframes", "interpolate"):
        graft = Grafted.load(checkpoint / UNET, checkpoint / part)
        for i, (t, b, size) in enumerate(clips(*SIZES)[:5]):

            def oracle(r, i=i, t=t, b=b, size=size):
                x, step = r.filled("sample", b, t, 4, *size), r.listed("timestep", [501.0, 37.0][:b], "f32")
                length = 2 + i % 2
                texts = [r.filled("encoder_hidden_states", b, length, SPATIAL), r.filled("temporal_encoder_hidden_states", b, length, TEMPORAL)]
                known = r.filled("context_latents", b, t, 4, *size)
                mask = r.listed("context_mask", [masks(t)[(i + j) % 3] for j in range(b)], "f32")
                rate = r.listed("regime", [(i + j) % 2 for j in range(b)], "i64") if part == "interpolate" else None
                both = torch.cat(texts, -1)
                call = lambda u: u(x.flatten(0, 1), step.repeat_interleave(t), both.repeat_interleave(t, 0)).sample
                return {"out_sample": graft.run(call, t, masked_context(known, mask > 0), rate, both).view_as(x)}

            r.record(part, title(t, b, size), oracle)
