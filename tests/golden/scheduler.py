"""Writes scheduler.json and schedulers.json: tables and trajectories of diffusers, for runtime/src/scheduler.

    python scheduler.py        (diffusers 0.42.1, torch 2.15.0; no other input)

scheduler.json: DDIM. A trajectory starts at x = [1.5, -0.7, 0.25, -2.0]; the pretended network answers
0.3 x + sin(i + [0, 1, 2, 3]) at step i.

schedulers.json: every class: the file that it writes without arguments, and trajectories. A trajectory starts at the first four numbers of torch's CPU generator of seed 3, times the
standard deviation of the start noise, and stochastic schedulers go on with the same generator. The pretended network sees
the scaled input and answers in the same way; i counts its calls.
"""

import json
import warnings

import diffusers
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)

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

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SVD = dict(**SD, prediction_type="v_prediction", timestep_type="continuous", timestep_spacing="leading", steps_offset=1,
           sigma_min=0.002, sigma_max=700.0, use_karras_sigmas=True)
SPACINGS = ("leading", "trailing", "linspace")
E, V, S = "epsilon", "v_prediction", "sample"


def grid(cls, predictions, steps=5, **config):
    """Every spacing with every prediction type."""
    for spacing in SPACINGS:
        for prediction in predictions:
            yield cls, steps, dict(**SD, timestep_spacing=spacing, prediction_type=prediction, steps_offset=1, **config), {}


def each(cls, variants, **base):
    """One case for each variant of a configuration: (steps, keys)."""
    for steps, config in variants:
        yield cls, steps, {**SD, **base, **config}, {}


def cases():
    off = dict(clip_sample=False)
    yield from grid("DDIM", (E, V, S), **off)
    for eta in (0.5, 1.0):
        yield "DDIM", 6, dict(**SD, **off), dict(eta=eta)
    yield "DDIM", 5, dict(beta_schedule="linear", clip_sample_range=0.7), dict(eta=0.3)
    yield "DDIM", 5, dict(**SD, prediction_type=S, clip_sample=True, clip_sample_range=0.5), {}
    yield from each("DDIM", [(5, dict(trained_betas=[0.02 + 0.03 * i for i in range(20)], num_train_timesteps=20))], **off)
    yield from grid("DDPM", (E, V, S), **off)
    yield from each("DDPM", [(4, dict(variance_type=v)) for v in ("fixed_small_log", "fixed_large")]
                    + [(4, dict(clip_sample=True)), (4, dict(prediction_type=V, rescale_betas_zero_snr=True, timestep_spacing="trailing", **off))])
    yield from grid("PNDM", (E, V), 7, skip_prk_steps=True)
    yield from grid("PNDM", (E, V), 6)
    yield from each("PNDM", [(n, dict(skip_prk_steps=True, set_alpha_to_one=True)) for n in (1, 2, 3)])
    yield from grid("EulerDiscrete", (E, V, S))
    yield from each("EulerDiscrete", [
        (5, dict(use_karras_sigmas=True)), (5, dict(use_exponential_sigmas=True)), (5, dict(interpolation_type="log_linear")),
        (5, dict(final_sigmas_type="sigma_min")), (5, dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0)), (1, {}),
        (5, dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type=V)),
        (4, dict(beta_schedule="squaredcos_cap_v2", beta_start=0.0001, beta_end=0.02)), (5, SVD), (25, SVD)])
    yield from grid("EulerAncestralDiscrete", (E, V))
    yield from each("EulerAncestralDiscrete", [(5, dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type=V))])
    yield from grid("HeunDiscrete", (E, V, S), 4)
    yield from each("HeunDiscrete", [(4, dict(use_karras_sigmas=True)), (4, dict(use_exponential_sigmas=True)),
                                     (4, dict(clip_sample=True, clip_sample_range=0.6)), (1, {}), (2, {})])
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        for order in (1, 2, 3):
            yield from grid("DPMSolverMultistep", (E, V, S) if order == 2 else (E,), 7, algorithm_type=algorithm, solver_order=order)
        yield from each("DPMSolverMultistep", [
            (6, dict(solver_type="heun")), (6, dict(solver_type="heun", solver_order=3)), (6, dict(use_karras_sigmas=True)),
            (16, dict(solver_order=3)), (16, dict(solver_order=3, final_sigmas_type="sigma_min")), (16, dict(euler_at_final=True, final_sigmas_type="sigma_min")),
            (6, dict(lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3))], algorithm_type=algorithm)
    yield from each("DPMSolverMultistep", [
        (6, dict(use_exponential_sigmas=True)), (1, {}), (5, dict(lambda_min_clipped=-2.0)), (5, dict(lambda_min_clipped=-2.0, timestep_spacing="trailing")),
        (6, dict(use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")), (6, dict(solver_type="bh2")),
        (6, dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type=V))])
    for order in (1, 2, 3):
        for solver in ("bh1", "bh2"):
            yield from grid("UniPCMultistep", (E, V, S) if (order, solver) == (2, "bh2") else (E,), 7, solver_order=order,
                            solver_type=solver, final_sigmas_type="zero" if solver == "bh2" else "sigma_min")
    yield from each("UniPCMultistep", [
        (6, dict(use_karras_sigmas=True)), (6, dict(use_karras_sigmas=True, final_sigmas_type="sigma_min")), (6, dict(use_exponential_sigmas=True)),
        (6, dict(disable_corrector=[0, 2])), (6, dict(final_sigmas_type="sigma_min", lower_order_final=False, solver_order=3)), (1, {}),
        (6, dict(solver_type="midpoint")), (6, dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=8.0)),
        (6, dict(use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"))])
    for prediction in (E, V, S):
        yield from each("LCM", [(n, dict(prediction_type=prediction)) for n in (1, 4)])
        yield from each("TCD", [(n, dict(prediction_type=prediction)) for n in (1, 4)])
    yield from each("LCM", [(7, dict(original_inference_steps=40, timestep_scaling=2.0)), (4, dict(clip_sample=True, clip_sample_range=0.4))])
    for eta in (0.0, 0.5, 1.0):
        yield "TCD", 6, dict(**SD), dict(eta=eta)
    for prediction in (E, V):
        for schedule in ("karras", "exponential"):
            base = dict(prediction_type=prediction, sigma_schedule=schedule)
            yield "EDMEuler", 6, base, {}
            yield "EDMDPMSolverMultistep", 6, base, {}
    yield "EDMEuler", 5, dict(final_sigmas_type="sigma_min", rho=5.0, sigma_data=1.0, sigma_max=700.0, prediction_type=V), {}
    for config in (dict(solver_order=3), dict(solver_order=1), dict(solver_type="heun"), dict(algorithm_type="sde-dpmsolver++"),
                   dict(algorithm_type="sde-dpmsolver++", solver_type="heun"), dict(final_sigmas_type="sigma_min", rho=5.0)):
        yield "EDMDPMSolverMultistep", 6, config, {}


def run(cls, steps, config, step_args):
    scheduler = getattr(diffusers, cls + "Scheduler")(**config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    g = torch.Generator().manual_seed(3)
    start = float(scheduler.init_noise_sigma)
    x, path = torch.randn(1, 4, generator=g) * scheduler.init_noise_sigma, []
    if "generator" in scheduler.step.__code__.co_varnames:
        step_args = dict(generator=g, **step_args)
    times = scheduler.timesteps
    for i, t in enumerate(times):
        answer = 0.3 * scheduler.scale_model_input(x, t) + torch.sin(i + torch.arange(4.0))
        x = scheduler.step(answer, t, x, **step_args).prev_sample
        path.append([float(f"{v:.8g}") for v in x[0].tolist()])
    sigmas = [float(f"{s:.9g}") for s in scheduler.sigmas.tolist()[:len(times)]] if hasattr(scheduler, "sigmas") else []
    return {"start": start, "times": [float(f"{t:.9g}") for t in times.tolist()], "sigmas": sigmas, "path": path}


recorded = []
for cls, steps, config, step_args in cases():
    config = {"_class_name": cls + "Scheduler", **config}
    result = run(cls, steps, {k: v for k, v in config.items() if k[0] != "_"}, step_args)
    recorded.append({"config": config, "overrides": step_args, "steps": steps, **result})

classes = sorted({case["config"]["_class_name"] for case in recorded})
defaults = [getattr(diffusers, cls)().to_json_string() for cls in classes]
with open("schedulers.json", "w") as f:
    f.write('{"diffusers":"%s","defaults":%s,"cases":[\n' % (diffusers.__version__, json.dumps(defaults)))
    f.write(",\n".join(json.dumps(case, separators=(",", ":")) for case in recorded))
    f.write("\n]}\n")
