"""Writes scheduler.json: DDIM tables and trajectories of diffusers, for runtime/src/scheduler.

    python scheduler.py        (diffusers 0.42.1, torch 2.15.0; no other input)

A trajectory starts at x = [1.5, -0.7, 0.25, -2.0]; the pretended network answers 0.3 x + sin(i + [0, 1, 2, 3]) at step i.
"""

import json

import diffusers
import torch

CASES = {
    "demo": (20, dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing")),
    "demo-interpolation": (10, dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing")),
    "demo-upsampler": (4, dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing")),
    "stable-diffusion": (7, dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon",
                                 timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)),
    "linspace": (5, dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="linspace")),
    "linear": (9, dict(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="epsilon", timestep_spacing="leading")),
    "zero-snr": (6, dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                         timestep_spacing="trailing", rescale_betas_zero_snr=True)),
    "clipped": (5, dict(beta_schedule="linear", prediction_type="epsilon", timestep_spacing="leading", clip_sample=True, clip_sample_range=0.8)),
    "single-step": (1, dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing")),
}

out = {}
for name, (steps, config) in CASES.items():
    config = {"clip_sample": False, "clip_sample_range": 1.0, **config}
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.set_timesteps(steps)
    x, path = torch.tensor([1.5, -0.7, 0.25, -2.0]), []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(0.3 * x + torch.sin(i + torch.arange(4.0)), t, x).prev_sample
        path.append(x.tolist())
    at = [0, 1, 250, 500, 998, 999]
    out[name] = {
        "config": {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "set_alpha_to_one": True,
                   "steps_offset": 0, "rescale_betas_zero_snr": False, **config},
        "timesteps": scheduler.timesteps.tolist(),
        "alpha_bar": {str(i): scheduler.alphas_cumprod[i].item() for i in at},
        "path": path,
    }

with open("scheduler.json", "w") as f:
    json.dump({"diffusers": diffusers.__version__, "cases": out}, f, separators=(",", ":"))
