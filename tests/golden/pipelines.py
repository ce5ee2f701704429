"""What whole diffusers pipelines make of the small checkpoints, frame by frame, beside the plan that must make the same.

    python tests/golden/pipelines.py            # everything
    python tests/golden/pipelines.py svd lcm    # some

Writes `tests/golden/pipelines/NAME.safetensors` (8-bit frames), `NAME.json` (bundle and plan, with the rule `diffusers`
for noise) and `picture.png`. The seed of every pipeline is that of a CPU generator.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import (
    AnimateDiffPipeline, AutoencoderKL, AutoencoderKLTemporalDecoder, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler, EDMEulerScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler,
    StableDiffusionPipeline, StableDiffusionUpscalePipeline, StableVideoDiffusionPipeline, TextToVideoSDPipeline, UNet2DConditionModel,
    UNet3DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel, UniPCMultistepScheduler,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "demo" / "train")]

import fill  # noqa: E402
import networks  # noqa: E402
from families import grafted  # noqa: E402

FOLDER = HERE / "pipelines"
PROMPT, NEGATIVE = "a red fox runs through the snow", "blurry, dark"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture() -> Image.Image:
    """A picture with edges and noise, of another shape than the videos."""
    y, x = np.mgrid[0:37, 0:61]
    waves = np.stack([np.sin(x / 9 + y / 17), np.cos(y / 5), np.sin((x - y) / 7)], -1)
    noise = fill.uniform(7, waves.size).reshape(waves.shape)
    return Image.fromarray(np.clip(127 + 90 * waves + 12 * noise + 40 * (x > 33)[..., None], 0, 255).astype(np.uint8))


def text(checkpoint: Path) -> dict:
    encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").eval()
    if not hasattr(encoder, "text_model"):
        # Pipelines ask for the normalisation by the name that it had before transformers 5.
        encoder.__dict__["text_model"] = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)
    return dict(tokenizer=CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"), text_encoder=encoder)


def component(cls, checkpoint: Path, name: str):
    return cls.from_pretrained(checkpoint / name).eval()


def plan(seed: int, size, conditions: dict, keyframes: dict, decode: dict) -> dict:
    stages = [{"op": "conditions", **conditions}, {"op": "keyframes", **keyframes}, {"op": "decode", **decode}, {"op": "video", "fps": 8}]
    return {"version": 1, "seed": seed, "noise": "diffusers", "size": list(size), "stages": stages}


def other(checkpoint: Path, solver, settings: dict):
    """Another solver over the noise schedule of a checkpoint, its own defaults elsewhere."""
    config = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    kept = {k: config[k] for k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")}
    return solver.from_config({**kept, **settings})


def image_to_video(checkpoint: Path, solver=None, **keyframes):
    """Guidance that rises, decoding in chunks of unequal length."""
    size, seed = (24, 40), 11
    solver = solver or EulerDiscreteScheduler.from_pretrained(checkpoint / "scheduler")
    pipe = StableVideoDiffusionPipeline(
        vae=component(AutoencoderKLTemporalDecoder, checkpoint, "vae"), unet=component(UNetSpatioTemporalConditionModel, checkpoint, "unet"),
        image_encoder=component(CLIPVisionModelWithProjection, checkpoint, "image_encoder"), scheduler=solver,
        feature_extractor=CLIPImageProcessor.from_pretrained(checkpoint / "feature_extractor"))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(picture(), *size, num_frames=5, num_inference_steps=4, min_guidance_scale=1.0, max_guidance_scale=3.0, fps=8, motion_bucket_id=90,
                  noise_aug_strength=0.1, decode_chunk_size=3, generator=generator(seed), output_type="np").frames[0]
    conditions = {"image": {"file": "picture.png"}, "fps": 8, "motion_bucket_id": 90, "noise_aug_strength": 0.1}
    keyframes = {"frames": 5, "steps": 4, "guidance": [1.0, 3.0], **keyframes}
    return frames, plan(seed, size, conditions, keyframes, {"window": 3, "halo": 0})


def text_plan(seed, size, frames, steps, guidance, **keyframes):
    conditions = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    return plan(seed, size, conditions, {"frames": frames, "steps": steps, "guidance": guidance, **keyframes}, {"temporal": False})


def modelscope(checkpoint: Path, solver=None, settings={}, **keyframes):
    size, seed = (24, 32), 5
    scheduler = other(checkpoint, solver, settings) if solver else DDIMScheduler.from_pretrained(checkpoint / "scheduler")
    pipe = TextToVideoSDPipeline(
        vae=component(AutoencoderKL, checkpoint, "vae"), unet=component(UNet3DConditionModel, checkpoint, "unet"), scheduler=scheduler, **text(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(PROMPT, *size, num_frames=4, num_inference_steps=4, guidance_scale=9.0, negative_prompt=NEGATIVE, generator=generator(seed), output_type="np").frames[0]
    return frames, text_plan(seed, size, 4, 4, 9.0, **keyframes)


class Windows(torch.nn.Module):
    """A `UNetMotionModel` over windows of a clip that go round, whose answers are averaged; texts are those of the frames.

    The windows are those that animatediff-cli lays for denoising step `step` (`uniform` with a stride of 1).
    """

    def __init__(self, unet, frames: int, length: int, overlap: int):
        super().__init__()
        self.unet, self.config, self.dtype, self.device, self.calls = unet, unet.config, unet.dtype, unet.device, 0
        self.frames, self.length, self.overlap = frames, length, overlap

    def windows(self):
        halves = int(f"{self.calls:064b}"[::-1], 2) / 2**64
        shift = round(self.frames * halves)
        starts = range(int(halves) + shift, self.frames + shift, self.length - self.overlap)
        return [[(start + i) % self.frames for i in range(self.length)] for start in starts]

    def forward(self, x, step, encoder_hidden_states, **_):
        texts = encoder_hidden_states.unflatten(0, (x.shape[0], -1))
        total, count = torch.zeros_like(x), torch.zeros(self.frames)
        for window in self.windows():
            total[:, :, window] += self.unet(x[:, :, window], step, texts[:, window].flatten(0, 1)).sample
            count[window] += 1
        self.calls += 1
        return SimpleNamespace(sample=total / count[:, None, None])


TRAVEL = {"prompt": {0: PROMPT, 5: "a wolf sleeps in the grass", 9: "a red fox"}, "negative_prompt": {0: NEGATIVE, 7: "people"}}


def animatediff(checkpoint: Path, solver=DDIMScheduler, steps=3, guidance=7.5, frames=4, free_noise=None, settings=(), told=None, clip_skip=None,
                context=None, **keyframes):
    size, seed, told = (16, 24), 23, told or {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    schedule = solver.from_pretrained(checkpoint / "scheduler", **dict(settings))
    pipe = AnimateDiffPipeline(
        vae=component(AutoencoderKL, checkpoint, "vae"), unet=component(UNetMotionModel, checkpoint, "unet"), motion_adapter=None,
        scheduler=schedule, **text(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    if free_noise:
        length, stride, weights = free_noise
        # The UNet has its motion modules; the pipeline asks the adapter for their length alone.
        pipe.__dict__["motion_adapter"] = SimpleNamespace(config=SimpleNamespace(motion_max_seq_length=16))
        pipe.enable_free_noise(context_length=length, context_stride=stride, weighting_scheme=weights)
        keyframes["freenoise"] = {"length": length, "stride": stride, "weights": weights}
    if context:
        length, overlap = context
        if isinstance(told["prompt"], dict):
            # Of FreeNoise only the prompts: noise that is fresh throughout, and windows that hold the clip.
            pipe.__dict__["motion_adapter"] = SimpleNamespace(config=SimpleNamespace(motion_max_seq_length=16))
            pipe.enable_free_noise(context_length=frames, context_stride=frames, noise_type="random")
            pipe.disable_free_noise()
            pipe._free_noise_context_length, pipe._free_noise_noise_type = frames, "random"
        pipe.unet = Windows(pipe.unet, frames, length, overlap)
        keyframes["context"] = {"length": length, "overlap": overlap, "closed": True}
    made = pipe(num_frames=frames, height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=guidance, generator=generator(seed),
                output_type="np", clip_skip=clip_skip, **told).frames[0]
    described = text_plan(seed, size, frames, steps, guidance, **keyframes)
    described["stages"][0] |= told | ({"clip_skip": clip_skip} if clip_skip else {})
    return made, described


@torch.no_grad()
def prompted_cascade(checkpoint: Path):
    """Key frames, a prediction and an interpolation of a Video LDM whose spatial and temporal layers are told texts of their own."""
    size, seed, texts = (12, 16), 31, {"prompt": PROMPT, "temporal_prompt": "it runs fast", "negative_prompt": NEGATIVE}

    def embed(*prompts):
        found = []
        for prefix, prompt in zip(("", "temporal_"), prompts):
            ids = CLIPTokenizer.from_pretrained(checkpoint / f"{prefix}tokenizer")(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
            found.append(grafted.clip_text.load(checkpoint / f"{prefix}text_encoder")(ids).last_hidden_state)
        return torch.cat(found, -1)

    cascade = grafted.Prompted(checkpoint, embed(texts["prompt"], texts["temporal_prompt"]), embed(NEGATIVE, NEGATIVE))
    # One step a stage: these networks multiply rounding by ten a step, so that PyTorch in double precision makes other frames after three.
    keys = cascade.keyframes(seed, (0, 0), 4, (4, 6, 8), 1, steps=1, guidance=2.0, context_guidance=1.5)
    frames = cascade.decode(cascade.interpolate(keys, seed, (0, 0), 0, steps=1, guidance=1.5), temporal=False)
    stages = [{"op": "conditions", **texts}, {"op": "keyframes", "frames": 4, "steps": 1, "guidance": 2.0},
              {"op": "predict", "chunks": [{}], "steps": 1, "guidance": 2.0, "context_guidance": 1.5}, {"op": "interpolate", "steps": 1, "guidance": 1.5},
              {"op": "decode", "temporal": False}, {"op": "video", "fps": 8}]
    return ((frames.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1), {"version": 1, "seed": seed, "noise": "torch", "size": list(size), "stages": stages}


def stable_diffusion(checkpoint: Path, images=3, guidance=5.0, rescale=0.7, solver=None, settings={}, clip_skip=None, scheduler={"steps_offset": 1}):
    """Images of one prompt, whose noise is drawn at once."""
    size, seed = (16, 24), 3
    schedule = other(checkpoint, solver, settings) if solver else DDIMScheduler.from_pretrained(checkpoint / "scheduler")
    pipe = StableDiffusionPipeline(
        vae=component(AutoencoderKL, checkpoint, "vae"), unet=component(UNet2DConditionModel, checkpoint, "unet"), safety_checker=None,
        feature_extractor=None, scheduler=schedule, requires_safety_checker=False, **text(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(PROMPT, *size, num_images_per_prompt=images, num_inference_steps=4, guidance_scale=guidance, guidance_rescale=rescale, negative_prompt=NEGATIVE,
                  clip_skip=clip_skip, generator=generator(seed), output_type="np").images
    # The pipeline corrects the offset of the checkpoint.
    made = text_plan(seed, size, images, 4, guidance, guidance_rescale=rescale, scheduler=scheduler)
    if clip_skip is not None:
        made["stages"][0]["clip_skip"] = clip_skip
    return frames, made


def small_pictures() -> list[Image.Image]:
    """Three frames in motion."""
    t, y, x = np.mgrid[0:3, 0:8, 0:12]
    return [Image.fromarray(p) for p in np.stack([20 * x + 6 * t, 30 * y, (40 * t + 9 * x * y) % 256], -1).astype(np.uint8)]


def upscaler(checkpoint: Path, frames: int, guidance: float):
    seed, steps = 7, 4
    pipe = StableDiffusionUpscalePipeline(
        vae=component(AutoencoderKL, checkpoint, "vae"), unet=component(UNet2DConditionModel, checkpoint, "unet"),
        scheduler=DDIMScheduler.from_pretrained(checkpoint / "scheduler"),
        low_res_scheduler=DDPMScheduler.from_pretrained(checkpoint / "low_res_scheduler"), max_noise_level=40, **text(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    images = pipe([PROMPT] * frames, small_pictures()[:frames], num_inference_steps=steps, guidance_scale=guidance, noise_level=20,
                  negative_prompt=[NEGATIVE] * frames, generator=generator(seed), output_type="np").images
    source = "small" if frames == 3 else "small/0.png"
    stages = [{"op": "conditions", "prompt": PROMPT, "negative_prompt": NEGATIVE}, {"op": "source", "file": source},
              {"op": "upsample", "steps": steps, "guidance": guidance, "noise_level": 20, "window": 2}, {"op": "video", "fps": 8}]
    return images, {"version": 1, "seed": seed, "noise": "diffusers", "stages": stages}


def solvers():
    """Name → (fixture, pipeline): pipelines with a solver that is not the checkpoint's."""
    def swapped(fixture, pipeline, solver, kind, **settings):
        changes = {"type": kind, **settings}
        return fixture, lambda c: pipeline(c, solver=solver, settings=settings, scheduler=changes)

    sde = {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
    edm = {"sigma_min": 0.002, "sigma_max": 700.0, "sigma_data": 1.0, "prediction_type": "v_prediction"}
    return {
        "heun": swapped("sd1", stable_diffusion, HeunDiscreteScheduler, "heun", use_karras_sigmas=True),
        "unipc": swapped("modelscope", modelscope, UniPCMultistepScheduler, "unipc", solver_type="bh1", final_sigmas_type="sigma_min"),
        "sde": swapped("modelscope", modelscope, DPMSolverMultistepScheduler, "sde-dpmsolver++", **sde),
        "sde-images": swapped("sd1", stable_diffusion, DPMSolverMultistepScheduler, "sde-dpmsolver++", algorithm_type="sde-dpmsolver++"),
        "euler-ancestral": swapped("modelscope", modelscope, EulerAncestralDiscreteScheduler, "euler-ancestral"),
        "zero-snr": ("sd1", lambda c: stable_diffusion(c, guidance=1.5, solver=DDIMScheduler, settings=zero, scheduler={"type": "ddim", **zero})),
        "edm-euler": ("svd", lambda c: image_to_video(c, EDMEulerScheduler(**edm), scheduler={"type": "edm-euler"})),
        "edm-dpm": ("svd", lambda c: image_to_video(c, EDMDPMSolverMultistepScheduler(**edm), scheduler={"type": "edm-dpmsolver++"})),
    }


def cases():
    """Name → (fixture, pipeline)."""
    motion = lambda **settings: ("animatediff", lambda c: animatediff(c, **settings))
    return {
        "svd": ("svd", image_to_video),
        "modelscope": ("modelscope", modelscope),
        "animatediff": motion(),
        "freenoise": motion(frames=24, free_noise=(16, 4, "pyramid"), steps=2),
        "freenoise-lcm": motion(frames=22, free_noise=(8, 4, "pyramid"), solver=LCMScheduler, guidance=1.5, steps=3, scheduler={"type": "lcm"}),
        "freenoise-tail": motion(frames=11, free_noise=(6, 4, "flat"), steps=2),
        "dpm-karras": motion(solver=DPMSolverMultistepScheduler, settings={"use_karras_sigmas": True}, steps=4,
                             scheduler={"type": "dpmsolver++", "use_karras_sigmas": True}),
        "lcm": motion(solver=LCMScheduler, guidance=1.5, steps=4, scheduler={"type": "lcm"}),
        "stable-diffusion": ("sd1", stable_diffusion),
        "travel": motion(frames=12, free_noise=(8, 4, "pyramid"), steps=2, told=TRAVEL),
        "context": motion(frames=12, context=(6, 2), steps=3),
        "context-travel": motion(frames=12, context=(6, 2), steps=2, told=TRAVEL),
        "clip-skip": ("sd1", lambda c: stable_diffusion(c, images=1, clip_skip=1)),
        "clip-skip-all": motion(clip_skip=2),
        "grafted": ("grafted", prompted_cascade),
        "upscaler": ("x4", lambda c: upscaler(c, 3, 3.0)),
        "upscaler-unguided": ("x4", lambda c: upscaler(c, 1, 1.0)),
        **solvers(),
    }


def main() -> None:
    torch.set_num_threads(1)
    table = cases()
    FOLDER.mkdir(exist_ok=True)
    picture().save(FOLDER / "picture.png")
    (FOLDER / "small").mkdir(exist_ok=True)
    for i, small in enumerate(small_pictures()):
        small.save(FOLDER / "small" / f"{i}.png")
    for name in sys.argv[1:] or table:
        fixture, pipeline = table[name]
        with tempfile.TemporaryDirectory() as scratch:
            frames, described = pipeline(networks.materialise(HERE.parent / "fixtures" / fixture, Path(scratch)))
        pixels = torch.from_numpy((np.asarray(frames) * 255).round().astype(np.uint8)).contiguous()
        save_file({"frames": pixels}, FOLDER / f"{name}.safetensors")
        (FOLDER / f"{name}.json").write_text(json.dumps({"bundle": fixture, "plan": described}, indent=1) + "\n")
        ends = ((pixels == 0) | (pixels == 255)).float().mean()
        print(f"{name}: {list(pixels.shape)}, mean {pixels.float().mean():.0f}, deviation {pixels.float().std():.0f}, {ends:.1%} at the ends of the range")


if __name__ == "__main__":
    main()
