"""Published configurations with random weights: does an export of full size answer as diffusers does?

    python tests/golden/full.py modelscope --vldm target/release/vldm --work /tmp/full

Each step runs in a process of its own, so that neither library pays for the other's memory: `make` writes a checkpoint
in half precision and what diffusers answers in float32, `export` runs the program, `compare` asks onnxruntime. Needs
about 8 GB of memory and disk for a network of 1.5 billion parameters; the checkpoint is deleted unless `--keep`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np


@dataclass
class Full:
    """One network: `build()` makes it with its published configuration, `ask(network, inputs)` calls it."""

    part: str
    component: str
    build: Callable
    inputs: dict[str, tuple[int, ...]]
    ask: Callable
    index: dict
    extra: Callable = lambda folder: None


def small_vae_and_schedule(folder: Path) -> None:
    """What a checkpoint folder has beside the network that is measured, as small as may be."""
    from diffusers import AutoencoderKL, DDIMScheduler

    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False).save_pretrained(folder / "scheduler")


def modelscope():
    """Source: `unet/config.json` of ModelScope's model of 1.7 billion parameters: the defaults of its class."""
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(sample_size=32)


def ask_modelscope(network, i):
    return network(i["sample"].transpose(1, 2), i["timestep"], i["encoder_hidden_states"]).sample.transpose(1, 2)


def animatediff():
    """Source: `unet/config.json` of Stable Diffusion 1.5, and the defaults of `MotionAdapter`, those of version 1.5.2."""
    from diffusers import UNetMotionModel

    network = UNetMotionModel(cross_attention_dim=768)
    for table in network.buffers():  # positions are saved in half precision as well
        table.copy_(table.half().float())
    return network


def ask_animatediff(network, i):
    text = i["encoder_hidden_states"].repeat_interleave(i["sample"].shape[1], 0)
    return network(i["sample"].transpose(1, 2), i["timestep"], text).sample.transpose(1, 2)


def svd():
    """Source: `unet/config.json` of SVD-XT: the defaults of its class."""
    from diffusers import UNetSpatioTemporalConditionModel

    return UNetSpatioTemporalConditionModel(sample_size=96)


def ask_svd(network, i):
    return network(i["sample"], i["timestep"], i["encoder_hidden_states"], i["added_time_ids"]).sample


def small_svd(folder: Path) -> None:
    """The other folders of an image-to-video checkpoint, as small as may be."""
    from diffusers import AutoencoderKLTemporalDecoder
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent.parent / "demo" / "train")]
    from families.svd import PROCESSOR, scheduler

    AutoencoderKLTemporalDecoder(block_out_channels=(32,)).save_pretrained(folder / "vae")
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, projection_dim=1024, num_hidden_layers=1, num_attention_heads=1, patch_size=56)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


TABLE = {
    "animatediff": Full(
        "keyframes", "unet", animatediff, {"sample": (1, 2, 4, 8, 8), "timestep": (1,), "encoder_hidden_states": (1, 77, 768)},
        ask_animatediff, {"_class_name": "AnimateDiffPipeline"}, small_vae_and_schedule),
    "modelscope": Full(
        "keyframes", "unet", modelscope, {"sample": (1, 2, 4, 8, 8), "timestep": (1,), "encoder_hidden_states": (1, 77, 1024)},
        ask_modelscope, {"_class_name": "TextToVideoSDPipeline"}, small_vae_and_schedule),
    "svd": Full(
        "keyframes", "unet", svd,
        {"sample": (1, 2, 8, 8, 8), "timestep": (1,), "encoder_hidden_states": (1, 1, 1024), "added_time_ids": (1, 3)},
        ask_svd, {"_class_name": "StableVideoDiffusionPipeline"}, small_svd),
}


def make(entry: Full, work: Path) -> None:
    """Random weights, also where the library starts from zero; the answer is that of the rounded weights in float32."""
    import torch

    torch.manual_seed(0)
    checkpoint = work / "checkpoint"
    with torch.no_grad():
        network = entry.build().eval()
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
            parameter.copy_(parameter.half().float())
        inputs = {name: torch.randn(shape) if len(shape) > 1 else torch.full(shape, 501.0) for name, shape in entry.inputs.items()}
        answer = entry.ask(network, inputs)
        np.savez(work / "answer.npz", answer=answer.numpy(), **{name: value.numpy() for name, value in inputs.items()})
        network.half().save_pretrained(checkpoint / entry.component, max_shard_size="100GB")
    entry.extra(checkpoint)
    (checkpoint / "model_index.json").write_text(json.dumps(entry.index))
    counts = [p.numel() for p in network.parameters()]
    print(f"{sum(counts):,} parameters in {len(counts)} tensors", flush=True)


def compare(entry: Full, work: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    recorded = np.load(work / "answer.npz")
    model = work / "bundle" / f"{entry.part}.onnx"
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    got = session.run(None, {i.name: recorded[i.name] for i in session.get_inputs()})[0]
    want = recorded["answer"]
    error, scale = np.abs(got - want).max(), np.abs(want).max()
    cosine = float((got * want).sum() / np.sqrt((got**2).sum() * (want**2).sum()))
    print(f"{entry.part}: graph {model.stat().st_size / 1e6:.1f} MB, relative error {error / scale:.2e}, cosine {cosine:.7f}", flush=True)
    if not error <= 1e-4 * scale:
        raise SystemExit("the answers differ")


def export(entry: Full, work: Path, vldm: Path) -> None:
    """Time and most memory of the program itself."""
    import resource

    command = [str(vldm), "export", str(work / "checkpoint"), "-o", str(work / "bundle")]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(done.stdout)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"export: {seconds:.1f} s, {memory:.0f} MB of memory", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("name", choices=TABLE)
    args.add_argument("--vldm", type=Path, default=Path("target/release/vldm"))
    args.add_argument("--work", type=Path, required=True, help="a folder for the checkpoint and the bundle")
    args.add_argument("--keep", action="store_true", help="keep checkpoint and bundle")
    args.add_argument("--step", choices=("make", "export", "compare"), help=argparse.SUPPRESS)
    args = args.parse_args()
    entry, work = TABLE[args.name], args.work / args.name
    if args.step:
        steps = {"make": lambda: make(entry, work), "export": lambda: export(entry, work, args.vldm), "compare": lambda: compare(entry, work)}
        steps[args.step]()
        return
    work.mkdir(parents=True, exist_ok=True)
    try:
        for step in ("make", "export", "compare"):
            subprocess.run([sys.executable, __file__, args.name, "--work", args.work, "--vldm", args.vldm, "--step", step], check=True)
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
