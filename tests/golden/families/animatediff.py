"""AnimateDiff in small: a `UNetMotionModel` that holds its motion modules, and an image UNet with a `MotionAdapter` beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

import networks
from families import clip_text
from recorder import autoencoder, image_unet, text_clips, title

SIZES = ((5, 7), (4, 6))
# Frames, batch and size of long clips; length, stride and weights of their windows; frames at which texts are said.
LONG = (
    (24, 1, (3, 5), 16, 4, "pyramid", (0,)),
    (27, 1, (2, 3), 16, 4, "pyramid", (0, 9, 26)),
    (40, 1, (2, 3), 8, 6, "flat", (0, 20)),
    (14, 2, (3, 5), 6, 4, "delayed_reverse_sawtooth", (0, 5)),
)


def fixture(folder: Path, adapter: bool) -> None:
    """Three levels, one without spatial attention.

    The UNet that holds its modules has one in the middle, levels of their own depth and heads, and a text encoder.
    """
    f = networks.Fixture(folder)
    common = dict(sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=1, cross_attention_dim=24, norm_num_groups=4)
    if adapter:
        f.network("unet", UNet2DConditionModel(
            **common, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")))
        f.network("motion_adapter", MotionAdapter(
            block_out_channels=(8, 16, 16), motion_layers_per_block=1, motion_num_attention_heads=4, motion_norm_num_groups=4,
            motion_max_seq_length=24, use_motion_mid_block=False))
    else:
        f.network("unet", UNetMotionModel(
            **common, num_attention_heads=(2, 4, 4), motion_num_attention_heads=(2, 8, 4), motion_max_seq_length=16,
            temporal_transformer_layers_per_block=[1, 2, 1],
            down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion")))
        clip_text.add(f, 24, second=False)
    f.network("vae", networks.vae((8, 16, 16), 1, scaling_factor=0.18215))
    networks.save_config(folder / "scheduler", DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="linspace"))
    index = {"_class_name": "AnimateDiffPipeline", "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
    if adapter:
        index |= {"unet": ["diffusers", "UNet2DConditionModel"], "motion_adapter": ["diffusers", "MotionAdapter"]}
    else:
        index |= {"unet": ["diffusers", "UNetMotionModel"], "text_encoder": ["transformers", "CLIPTextModel"],
                  "tokenizer": ["transformers", "CLIPTokenizer"]}
    f.write_json("model_index.json", index)
    f.finish()


class Still:
    """A `UNetMotionModel` over single images: what its motion modules add is nothing."""

    def __init__(self, unet):
        self.unet, self.config = copy.deepcopy(unet), unet.config
        for name, p in self.unet.named_parameters():
            if "motion_modules" in name and ".proj_out." in name:
                p.requires_grad_(False).zero_()

    def __call__(self, x, step, text):
        out = self.unet(x.unsqueeze(2), step, text)
        return SimpleNamespace(sample=out.sample.squeeze(2))


def ask(unet):
    """The network over `[batch, frames, channels, height, width]`; text is the same for every frame."""
    return lambda x, step, text: ask_by_frame(unet)(x, step, text.unsqueeze(1).expand(-1, x.shape[1], -1, -1))


def ask_by_frame(unet):
    """The network over `[batch, frames, channels, height, width]` with a text for each frame."""
    return lambda x, step, text: unet(x.transpose(1, 2), step, text.flatten(0, 1)).sample.transpose(1, 2)


def travel(r, frames: int, said: tuple[int, ...], texts: torch.Tensor) -> torch.Tensor:
    """The input that says how much each frame sees of each text, and the texts of all frames as the pipeline mixes them.

    Between two frames at which texts are said, the pipeline goes from one to the other; behind the last it stays.
    """
    weights = torch.zeros(frames, len(said))
    for i, (a, b) in enumerate(zip(said, (*said[1:], frames))):
        for t in range(a, b):
            after = (t - a) / (b - a) if i + 1 < len(said) else 0.0
            weights[t, i] += 1 - after
            if after:
                weights[t, i + 1] += after
    r.listed("text_weights", weights.tolist(), "f32")
    ends = [*zip(said, (*said[1:], frames - 1))]
    mixed = torch.zeros(texts.shape[0], frames, *texts.shape[2:])
    for i, (a, b) in enumerate(ends):
        first, last = texts[:, i : i + 1], texts[:, min(i + 1, len(said) - 1)][:, None]
        for j, text in enumerate(texts):
            mixed[j, a : b + 1] = AnimateDiffFreeNoiseMixin._lerp(None, a, b, first[j], last[j]) if b > a else first[j]
    return mixed


class FreeNoise(AnimateDiffFreeNoiseMixin):
    """The part of the pipeline that FreeNoise asks for."""

    def __init__(self, unet, positions: int):
        self.unet, self.device, self.dtype = unet, torch.device("cpu"), torch.float32
        self.motion_adapter = SimpleNamespace(config=SimpleNamespace(motion_max_seq_length=positions))


def windows(r, frames: int, length: int, stride: int, weighting: str) -> None:
    """The inputs that make `keyframes_long` do what diffusers' block does, its uneven tail included."""
    block = FreeNoiseTransformerBlock(8, 2, 4, context_length=length, context_stride=stride, weighting_scheme=weighting)
    spans, own = block._get_frame_indices(frames), torch.tensor(block._get_frame_weights(length, weighting))
    weights = [own.clone() for _ in spans]
    rest = frames - spans[-1][1]
    if rest:
        spans.append((frames - length, frames))
        weights.append(torch.where(torch.arange(length) < length - rest, 0.0, own))
    sums = torch.zeros(frames)
    for (a, b), w in zip(spans, weights):
        sums[a:b] += w
    if rest:
        sums[-rest:] = own[-rest]
    matrix = torch.zeros(frames, len(spans), length)
    for i, ((a, b), w) in enumerate(zip(spans, weights)):
        matrix[torch.arange(a, b), i, torch.arange(length)] = w / sums[a:b]
    r.listed("window_frames", [list(range(a, b)) for a, b in spans], "i64")
    r.listed("window_weights", matrix.flatten(1).tolist(), "f32")


def record(r, checkpoint: Path) -> None:
    config = UNet2DConditionModel.load_config(checkpoint / "unet")
    if config["_class_name"] == "UNetMotionModel":
        unet = UNetMotionModel.from_pretrained(checkpoint / "unet").eval()
        image_unet(r, "image", Still(unet), SIZES)
    else:
        image = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
        unet = UNetMotionModel.from_unet2d(image, MotionAdapter.from_pretrained(checkpoint / "motion_adapter")).eval()
        image_unet(r, "image", image, SIZES)
    if (checkpoint / "text_encoder").exists():
        clip_text.record(r, clip_text.load(checkpoint / "text_encoder"))
    width = unet.config.cross_attention_dim
    text_clips(r, "keyframes", ask(unet), 4, width, SIZES)
    autoencoder(r, AutoencoderKL.from_pretrained(checkpoint / "vae").eval(), None, SIZES)
    for t, b, size, length, stride, weighting, said in LONG:

        def oracle(r, t=t, b=b, size=size, length=length, stride=stride, weighting=weighting, said=said):
            FreeNoise(unet, unet.config.motion_max_seq_length).enable_free_noise(length, stride, weighting)
            x, step = r.filled("sample", b, t, 4, *size), r.listed("timestep", [501.0, 37.0][:b], "f32")
            text = travel(r, t, said, r.filled("encoder_hidden_states", b, len(said), 3, width))
            windows(r, t, length, stride, weighting)
            return {"out_sample": ask_by_frame(unet)(x, step, text)}

        r.record("keyframes_long", f"{title(t, b, size)}-{length}-{stride}-{weighting}", oracle)
