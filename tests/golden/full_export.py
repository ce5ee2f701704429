"""Export of the full UNet of Stable Video Diffusion XT: ours beside `torch.onnx.export`, each in a process of its own.

    python tests/golden/full_export.py make FOLDER --dtype f16      # a checkpoint of random weights, 3.05 GB (f32: 6.1 GB)
    python tests/golden/full_export.py vldm FOLDER --program target/release/vldm
    python tests/golden/full_export.py torch FOLDER                 # minutes; needs onnxscript

Encoder and decoder of the checkpoint are small: what is measured is the UNet. Results are printed as JSON, one line a run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
# Source: unet/config.json of stable-video-diffusion-img2vid-xt; every other key has its default in diffusers.
UNET = dict(sample_size=96, in_channels=8, out_channels=4, num_frames=25, addition_time_embed_dim=256, cross_attention_dim=1024,
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, num_attention_heads=(5, 10, 20, 20),
            projection_class_embeddings_input_dim=768, transformer_layers_per_block=1)
BLOCK = 1 << 22


def meta_unet():
    import torch
    from diffusers import UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        return UNetSpatioTemporalConditionModel(**UNET)


def write_random(path: Path, shapes: dict, dtype: str, scale: float) -> None:
    """A safetensors file of normal numbers: one block of them, rolled by another amount each time."""
    size, header, at = (2 if dtype == "f16" else 4), {}, 0
    for name, shape in shapes.items():
        length = size * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (np.random.default_rng(0).standard_normal(BLOCK, np.float32) * scale).astype("<f2" if dtype == "f16" else "<f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i in range(0, at // size, BLOCK):
            f.write(np.roll(block, i // BLOCK * 7919)[: at // size - i].tobytes())


def make(folder: Path, dtype: str) -> None:
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = meta_unet()
    unet.save_config(folder / "unet")
    shapes = {name: tuple(t.shape) for name, t in unet.state_dict().items()}
    print(f"{sum(int(np.prod(s)) for s in shapes.values()):,} parameters in {len(shapes)} tensors")
    write_random(folder / "unet" / "diffusion_pytorch_model.safetensors", shapes, dtype, 0.02)
    AutoencoderKLTemporalDecoder(block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4,
                                 down_block_types=("DownEncoderBlock2D",) * 4).save_pretrained(folder / "vae")
    CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=224,
                                  patch_size=14, projection_dim=1024, hidden_act="gelu")).save_pretrained(folder / "image_encoder")
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", use_karras_sigmas=True,
                           sigma_min=0.002, sigma_max=700.0, timestep_type="continuous", steps_offset=1).save_config(folder / "scheduler")
    size = dict(height=224, width=224)
    (folder / "feature_extractor").mkdir(exist_ok=True)
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "crop_size": size, "size": {"shortest_edge": 224}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}, indent=2))
    pairs = {"feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
             "scheduler": ["diffusers", "EulerDiscreteScheduler"], "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
             "vae": ["diffusers", "AutoencoderKLTemporalDecoder"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline", **pairs}, indent=2))


def measured(command: list[str]) -> dict:
    """Seconds and largest resident memory of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[0]} failed")
    return {"seconds": round(seconds, 2), "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2), "peak_mb": round(usage.ru_maxrss / 1024)}


def digests(folder: Path) -> dict:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.file_digest(p.open("rb"), "sha256").hexdigest() for p in files}


def vldm(folder: Path, program: Path) -> None:
    for mode in ([], ["--link"]):
        out, seen = folder.with_name(folder.name + ".bundle"), []
        for _ in range(3):
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            result = measured([str(program), "export", str(folder), "-o", str(out), *mode])
            print(json.dumps({"exporter": "vldm", "mode": mode, **result}), flush=True)
            seen.append(digests(out))
        model = out / "keyframes.onnx"
        import onnx

        graph = onnx.load(model, load_external_data=False).graph
        frames = graph.input[0].type.tensor_type.shape.dim[1].dim_param
        print(json.dumps({"mode": mode, "byte_identical": all(s == seen[0] for s in seen), "nodes": len(graph.node), "graph_bytes": model.stat().st_size,
                          "bundle_bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()), "frames": frames or "fixed"}), flush=True)
        shutil.rmtree(out)


def torch_export(folder: Path, out: Path, free: bool) -> None:
    """The body of one measured process."""
    import torch
    from diffusers import UNetSpatioTemporalConditionModel

    torch.set_num_threads(2)
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("rb") as f:
        dtype = torch.float16 if b'"dtype": "F16"' in f.read(4096) else torch.float32
    unet, frames = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype).eval(), 3
    sample = torch.randn(2, frames, 8, 16, 24).to(dtype)
    args = (sample, torch.tensor(1.0), torch.randn(2, 1, 1024).to(dtype), torch.tensor([[6.0, 127.0, 0.02]]).to(dtype).expand(2, 3))
    dim = torch.export.Dim
    shapes = ({0: dim.DYNAMIC, 1: dim.DYNAMIC, 3: dim.DYNAMIC, 4: dim.DYNAMIC}, None, {0: dim.DYNAMIC}, {0: dim.DYNAMIC}) if free else None
    out.mkdir(parents=True)
    program = torch.onnx.export(unet, args, dynamo=True, dynamic_shapes=shapes, opset_version=18, verbose=False)
    program.save(str(out / "unet.onnx"), external_data=True)


def torch_runs(folder: Path) -> None:
    import onnx

    for free in (True, False):
        out = folder.with_name(folder.name + ".torch")
        shutil.rmtree(out, ignore_errors=True)
        try:
            result = measured([sys.executable, __file__, "torch-one", str(folder), "--out", str(out), *(["--free"] if free else [])])
        except SystemExit as e:
            print(json.dumps({"exporter": "torch.onnx.export", "frames_asked": "free" if free else "fixed", "failed": str(e)}), flush=True)
            continue
        graph = onnx.load(out / "unet.onnx", load_external_data=False).graph
        frames = graph.input[0].type.tensor_type.shape.dim[1].dim_param
        print(json.dumps({"exporter": "torch.onnx.export", "frames_asked": "free" if free else "fixed", **result, "nodes": len(graph.node),
                          "graph_bytes": (out / "unet.onnx").stat().st_size, "bytes": sum(p.stat().st_size for p in out.iterdir()),
                          "frames": frames or "fixed"}), flush=True)
        shutil.rmtree(out)
        return


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("what", choices=["make", "vldm", "torch", "torch-one"])
    args.add_argument("folder", type=Path)
    args.add_argument("--dtype", choices=["f16", "f32"], default="f16")
    args.add_argument("--program", type=Path, default=HERE.parent.parent / "target" / "release" / "vldm")
    args.add_argument("--out", type=Path)
    args.add_argument("--free", action="store_true", help="ask for symbolic batch, frames, height and width")
    args = args.parse_args()
    if args.what == "make":
        make(args.folder, args.dtype)
    elif args.what == "vldm":
        vldm(args.folder, args.program)
    elif args.what == "torch":
        torch_runs(args.folder)
    else:
        torch_export(args.folder, args.out, args.free)


if __name__ == "__main__":
    main()
