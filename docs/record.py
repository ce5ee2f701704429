"""Record what PyTorch answers, for `vldm verify BUNDLE --against FOLDER` (docs/verify.md).

    python docs/record.py CHECKPOINT FOLDER [--frames 5] [--size 16 24] [--seed 0]

records `keyframes` of a Stable Video Diffusion checkpoint. For other networks, import `Recorder`.
Needs torch and safetensors; the example also diffusers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file


class Recorder:
    """Collects cases; `write` makes one safetensors file a part."""

    def __init__(self, folder):
        self.folder, self.parts = Path(folder), {}

    def add(self, part: str, case: str, inputs: dict, outputs: dict) -> None:
        """One question and its answers, tensors by the names of the part's signature."""
        tensors = self.parts.setdefault(part, {})
        for kind, named in (("input", inputs), ("output", outputs)):
            for name, tensor in named.items():
                tensor = tensor.detach().cpu().contiguous()
                tensors[f"{case}/{kind}:{name}"] = tensor.float() if tensor.is_floating_point() else tensor.long()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for part, tensors in self.parts.items():
            save_file(tensors, self.folder / f"{part}.safetensors")


@torch.no_grad()
def stable_video_diffusion(checkpoint: Path, recorder: Recorder, frames: int, size: tuple[int, int], seed: int) -> None:
    """The UNet at one size and two lengths, for one sample and for two."""
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel.from_pretrained(checkpoint, subfolder="unet", torch_dtype=torch.float32).eval()
    generator, c = torch.Generator().manual_seed(seed), unet.config
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    for batch, length in ((1, frames), (2, 1)):
        inputs = {
            "sample": normal(batch, length, c.in_channels, *size),
            "timestep": torch.tensor([1.5, -0.3][:batch]),
            "encoder_hidden_states": normal(batch, 1, c.cross_attention_dim),
            "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]).expand(batch, 3),
        }
        step = inputs["timestep"] if batch > 1 else inputs["timestep"][0]
        out = unet(inputs["sample"], step, inputs["encoder_hidden_states"], inputs["added_time_ids"]).sample
        recorder.add("keyframes", f"b{batch}-t{length}", inputs, {"out_sample": out})


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("checkpoint", type=Path)
    args.add_argument("folder", type=Path)
    args.add_argument("--frames", type=int, default=5)
    args.add_argument("--size", type=int, nargs=2, default=(16, 24), metavar=("HEIGHT", "WIDTH"), help="in latent cells")
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()
    recorder = Recorder(args.folder)
    stable_video_diffusion(args.checkpoint, recorder, args.frames, tuple(args.size), args.seed)
    recorder.write()


if __name__ == "__main__":
    main()
