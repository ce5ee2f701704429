"""The diffusers pipeline of a checkpoint on a plan of make.py; its UNet by torch, or by an engine on a graph for two at once.

    python tests/peers/pipeline.py CHECKPOINT [--compile | --onnxruntime GRAPH | --openvino GRAPH]
"""

from __future__ import annotations

import json
from pathlib import Path

from peer import arguments, race_of_plans

args = arguments(__doc__, ("checkpoint", {"type": Path}), ("--compile", {"action": "store_true"}), ("--onnxruntime", {"type": Path}),
                 ("--openvino", {"type": Path}), plan=True)

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(args.threads)


def component(name: str, library: str, kind: str):
    part = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind).from_pretrained(args.checkpoint / name)
    return part.eval() if isinstance(part, torch.nn.Module) else part


def pipeline():
    index = json.loads((args.checkpoint / "model_index.json").read_text())
    kind = getattr(diffusers, index.pop("_class_name"))
    parts = {name: component(name, *which) for name, which in index.items()}
    if kind is diffusers.AnimateDiffPipeline:
        parts["motion_adapter"] = None  # the UNet has its motion modules
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def session(path: Path):
    """A function from arrays by name to the answer."""
    if args.openvino:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(str(path), "CPU", settings)
        return lambda inputs: model([next(inputs[name] for name in inputs if name in port.names) for port in model.inputs])[0]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def replace(unet, run) -> None:
    """Puts an engine in the place of the UNet's forward; the graph takes clips as `[batch, frames, channels, …]`."""
    per_clip = type(unet).__name__ == "UNetSpatioTemporalConditionModel"

    def forward(sample, timestep, encoder_hidden_states, added_time_ids=None, return_dict=True, **_):
        clip = sample if per_clip else sample.transpose(1, 2)
        text = encoder_hidden_states[:: len(encoder_hidden_states) // len(sample)]
        inputs = {"sample": clip, "timestep": timestep.float().reshape(-1)[:1].repeat(len(sample)), "encoder_hidden_states": text}
        inputs |= {"added_time_ids": added_time_ids} if per_clip else {}
        out = torch.from_numpy(run({name: value.contiguous().numpy() for name, value in inputs.items()}))
        out = out if per_clip else out.transpose(1, 2)
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample=out) if return_dict else (out,)

    unet.forward = forward


pipe = pipeline()
graph = args.onnxruntime or args.openvino
if graph:
    replace(pipe.unet, session(graph))
elif args.compile:
    pipe.unet = torch.compile(pipe.unet)


@torch.inference_mode()
def make(plan):
    stage = {stage["op"]: stage for stage in plan["stages"]}
    conditions, keyframes = stage["conditions"], stage["keyframes"]
    height, width = plan["size"]
    common = dict(num_frames=keyframes["frames"], num_inference_steps=keyframes["steps"], height=height, width=width, output_type="np",
                  generator=torch.Generator().manual_seed(plan["seed"]))
    if "image" in conditions:
        least, most = keyframes["guidance"]
        return pipe(Image.open(args.plan.parent / conditions["image"]["file"]), min_guidance_scale=least, max_guidance_scale=most, fps=conditions["fps"],
                    motion_bucket_id=conditions["motion_bucket_id"], noise_aug_strength=conditions["noise_aug_strength"],
                    decode_chunk_size=stage["decode"]["window"], **common).frames[0]
    return pipe(conditions["prompt"], negative_prompt=conditions["negative_prompt"], guidance_scale=keyframes["guidance"], **common).frames[0]


engine = "onnxruntime" if args.onnxruntime else "openvino" if args.openvino else "torch compile" if args.compile else "torch"
race_of_plans(f"diffusers, {engine}", args, make)
