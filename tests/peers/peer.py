"""How a program is timed beside vldm: `vldm bench BUNDLE --recording FOLDER --against 'python tests/peers/NAME.py …'`.

The protocol is in docs/bench.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def arguments(doc: str, *own, plan: bool = False) -> argparse.Namespace:
    """The peer's own arguments, pairs of name and options, and those that vldm adds."""
    parser = argparse.ArgumentParser(description=doc)
    for name, options in own:
        parser.add_argument(name, **options)
    if plan:
        parser.add_argument("--plan", type=Path, required=True)
    else:
        parser.add_argument("--recording", type=Path, required=True)
        parser.add_argument("--case", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    return parser.parse_args()


def race(name: str, args: argparse.Namespace, answer) -> None:
    """One call of a network: `answer(inputs)` takes and returns arrays by name."""
    prefix = f"{args.case}/input:"
    inputs = {key.removeprefix(prefix): value for key, value in load_file(args.recording).items() if key.startswith(prefix)}
    answers = {f"{args.case}/output:{key}": np.ascontiguousarray(value) for key, value in answer(inputs).items()}
    save_file(answers, args.answer)
    in_turns(name, lambda: answer(inputs))


def race_of_plans(name: str, args: argparse.Namespace, make) -> None:
    """A whole plan: `make(plan)` takes the document and returns frames `[frames, height, width, 3]` in 0..1."""
    from PIL import Image

    plan = json.loads(args.plan.read_text())
    args.answer.mkdir()
    for i, frame in enumerate(make(plan)):
        Image.fromarray((frame * 255).round().astype(np.uint8)).save(args.answer / f"{i:06}.png")
    in_turns(name, lambda: make(plan))


def in_turns(name: str, call) -> None:
    print(json.dumps({"peer": name}), flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        call()
        print(json.dumps({"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - used}), flush=True)
