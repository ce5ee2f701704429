"""Video networks of diffusers, called with vldm's inputs: clips are `[batch, frames, channels, height, width]`."""

from __future__ import annotations

import json
from pathlib import Path

import torch


class Network(torch.nn.Module):
    """A UNet whose forward takes the inputs of vldm's `keyframes`, in their order."""

    def __init__(self, unet: torch.nn.Module):
        super().__init__()
        self.unet, self.kind = unet, type(unet).__name__

    def forward(self, sample, timestep, text, *rest):
        if self.kind == "UNetSpatioTemporalConditionModel":
            return self.unet(sample, timestep, text, *rest, return_dict=False)[0]
        if self.kind == "UNetMotionModel":  # its pipeline repeats the text for every frame
            text = text.repeat_interleave(sample.shape[1], dim=0)
        return self.unet(sample.transpose(1, 2), timestep, text, return_dict=False)[0].transpose(1, 2)

    @property
    def inputs(self) -> list[str]:
        return ["sample", "timestep", "encoder_hidden_states"] + (["added_time_ids"] if self.kind == "UNetSpatioTemporalConditionModel" else [])


def load(checkpoint: Path) -> Network:
    import diffusers

    name = json.loads((checkpoint / "unet" / "config.json").read_text())["_class_name"]
    return Network(getattr(diffusers, name).from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)).eval()
