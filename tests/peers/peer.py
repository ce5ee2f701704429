"""How a program is timed beside vldm: `vldm bench BUNDLE --recording FOLDER --against 'python tests/peers/NAME.py …'`.

The protocol is in docs/bench.md. A peer calls `race(name, args, answer)`, where `answer(inputs)` takes and returns arrays by name.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def arguments(doc: str, *own) -> argparse.Namespace:
    """The peer's own arguments, pairs of name and options, and those that vldm adds."""
    parser = argparse.ArgumentParser(description=doc)
    for name, options in own:
        parser.add_argument(name, **options)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    return parser.parse_args()


def race(name: str, args: argparse.Namespace, answer) -> None:
    prefix = f"{args.case}/input:"
    inputs = {key.removeprefix(prefix): value for key, value in load_file(args.recording).items() if key.startswith(prefix)}
    answers = {f"{args.case}/output:{key}": np.ascontiguousarray(value) for key, value in answer(inputs).items()}
    save_file(answers, args.answer)
    print(json.dumps({"peer": name}), flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        answer(inputs)
        print(json.dumps({"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - used}), flush=True)
