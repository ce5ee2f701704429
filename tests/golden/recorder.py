"""How recordings are made: cases by name, inputs by formula, outputs of the oracle, and the questions that families share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import fill

HERE = Path(__file__).resolve().parent


class Recorder:
    """One set of recordings: names inputs, calls the oracle, keeps outputs."""

    def __init__(self, name: str):
        self.folder, self.cases, self.outputs = HERE / name, [], {}

    def filled(self, name: str, *shape: int) -> torch.Tensor:
        seed = fill.name_seed(f"{self.part}/{self.case}/{name}")
        self.inputs.append({"name": name, "dtype": "f32", "shape": list(shape), "seed": f"{seed:016x}"})
        return torch.from_numpy(fill.uniform(seed, int(np.prod(shape))).reshape(shape))

    def listed(self, name: str, values, dtype: str) -> torch.Tensor:
        tensor = torch.tensor(values, dtype=torch.float32 if dtype == "f32" else torch.int64)
        self.inputs.append({"name": name, "dtype": dtype, "shape": list(tensor.shape), "values": tensor.flatten().tolist()})
        return tensor

    @torch.no_grad()
    def record(self, part: str, case: str, oracle) -> None:
        """`oracle(self)` makes its inputs through `filled` and `listed` and returns `{output: tensor}`."""
        self.part, self.case, self.inputs = part, case, []
        for name, value in oracle(self).items():
            self.outputs.setdefault(part, {})[f"{case}/{name}"] = value.float().contiguous()
        self.cases.append({"part": part, "case": case, "inputs": self.inputs})

    def write(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for part, outputs in self.outputs.items():
            save_file(outputs, self.folder / f"{part}.safetensors")
        (self.folder / "cases.json").write_text("[\n" + ",\n".join("  " + json.dumps(c) for c in self.cases) + "\n]\n")
        size = sum(f.stat().st_size for f in self.folder.iterdir())
        print(f"{self.folder.name}: {len(self.cases)} cases, {size / 1e3:.0f} kB")


def clips(small, large):
    """Every frame count of the acceptance list, both sizes, batch 1 and 2."""
    return [(1, 2, small), (1, 1, large), (5, 2, large), (5, 1, small), (8, 1, large), (8, 2, small), (16, 1, small)]


def title(t: int | None, b: int, size) -> str:
    return (f"t{t}-" if t else "") + f"b{b}-{size[0]}x{size[1]}"


def image_unet(r: Recorder, part: str, unet, sizes) -> None:
    for b, size, tokens in ((1, sizes[0], 2), (2, sizes[1], 2), (2, sizes[0], 5)):

        def oracle(r, b=b, size=size, tokens=tokens):
            x, step = r.filled("sample", b, unet.config.in_channels, *size), r.listed("timestep", [501.0, 37.0][:b], "f32")
            return {"out_sample": unet(x, step, r.filled("encoder_hidden_states", b, tokens, unet.config.cross_attention_dim)).sample}

        r.record(part, title(None, b, size) + f"-l{tokens}", oracle)


def text_clips(r: Recorder, part: str, oracle, channels: int, width: int, sizes, shapes=((1, 2), (5, 1), (5, 2), (16, 1)), **more) -> None:
    """A network over clips and text: `oracle(sample, timestep, tokens)`, all `[batch, frames, channels, height, width]`."""
    for i, (t, b) in enumerate(shapes):
        size, tokens = sizes[i % len(sizes)], 3 + i % 2

        def ask(r, t=t, b=b, size=size, tokens=tokens, i=i):
            x = r.filled("sample", b, t, channels, *size)
            step = r.listed("timestep", [(37.0, 999.0, 501.0, 3.0)[(i + j) % 4] for j in range(b)], "f32")
            text = r.filled("encoder_hidden_states", b, tokens, width)
            return {"out_sample": oracle(x, step, text, **{k: v(r, b, t, size) for k, v in more.items()})}

        r.record(part, title(t, b, size), ask)


def autoencoder(r: Recorder, vae, decoder, sizes) -> None:
    scale, factor = vae.config.scaling_factor, 2 ** (len(vae.config.block_out_channels) - 1)
    for b, (h, w) in ((1, sizes[0]), (2, sizes[1])):

        def encode(r, b=b, h=h, w=w):
            code = vae.encode(r.filled("image", b, 3, h * factor, w * factor)).latent_dist
            return {"latents": code.mean * scale, "latents_std": code.std * scale}

        r.record("encoder", title(None, b, (h * factor, w * factor)), encode)
        r.record("image_decoder", title(None, b, (h, w)), lambda r, b=b, h=h, w=w: {"image": vae.decode(r.filled("latents", b, 4, h, w) / scale).sample})
    for t, b, (h, w) in clips(*sizes) if decoder else ():

        def decode(r, t=t, b=b, h=h, w=w):
            z = r.filled("latents", b, t, 4, h, w) / scale
            return {"frames": decoder.run(lambda v: v.decode(z.flatten(0, 1)).sample, t).unflatten(0, (b, t))}

        r.record("decoder", title(t, b, (h, w)), decode)
