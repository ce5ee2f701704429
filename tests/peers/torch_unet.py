"""PyTorch: the UNet of a diffusers checkpoint, eager or compiled."""

from __future__ import annotations

from pathlib import Path

from peer import arguments, race

args = arguments(__doc__, ("checkpoint", {"type": Path}), ("--compile", {"action": "store_true", "help": "torch.compile"}))

import torch  # noqa: E402

import networks  # noqa: E402

torch.set_num_threads(args.threads)
network = networks.load(args.checkpoint)
run = torch.compile(network) if args.compile else network


@torch.inference_mode()
def answer(inputs):
    return {"out_sample": run(*(torch.from_numpy(inputs[name]) for name in network.inputs)).numpy()}


race(f"torch {torch.__version__.split('+')[0]} {'compile' if args.compile else 'eager'}", args, answer)
