"""Kills `vldm run` at random instants, starts it again each time, and compares the video with that of a run left alone.

    python tests/kill.py target/release/vldm demo/plans/long-drive.json --kills 200

Prints one JSON object: kills, processor seconds of the run left alone and of all others together, units begun twice, whether the bytes
are the same. Which units began and which were kept is read from the program's own log (-vv).
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import tempfile
import time

UNIT = re.compile(r"(unit|unit kept) stage=\"?([\w-]+)\"? unit=(\d+)")


def run(program, plan, out, more, limit=None):
    """Runs the program, for `limit` seconds at most. Exit code, and (what, stage, unit) of its log."""
    with tempfile.TemporaryFile("w+") as log:
        command = [program, "-vv", "run", plan, "-o", out, *more]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "NO_COLOR": "1"})
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        log.seek(0)
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read())
    return code, UNIT.findall(text), text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("plan")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="arguments of `vldm run`, after --")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, out = (str(pathlib.Path(scratch) / name) for name in ("whole.mp4", "killed.mp4"))
        began = time.monotonic()
        code, log, text = run(args.program, args.plan, whole, args.more)
        length = time.monotonic() - began
        assert code == 0, text
        alone = processor_seconds()
        units = len({(stage, unit) for what, stage, unit in log if what == "unit kept"})
        kills, lost, most, stages, attempts = 0, 0, 0, set(), 0
        # A run that is killed after a share of what the whole takes comes that far on the average.
        while kills < args.kills:
            attempts += 1
            code, log, text = run(args.program, args.plan, out, args.more, draw.uniform(0.2, 0.2 + 2.2 * length / args.kills))
            if code == 0:
                os.remove(out)
                continue
            assert code == -9, text
            kills += 1
            begun = {(stage, unit) for what, stage, unit in log if what == "unit"}
            kept = {(stage, unit) for what, stage, unit in log if what == "unit kept"}
            lost, most = lost + len(begun - kept), max(most, len(begun - kept))
            stages |= {stage for stage, _ in begun - kept}
        if not os.path.exists(out):
            code, _, text = run(args.program, args.plan, out, args.more)
            assert code == 0, text
        same = digest(whole) == digest(out)
        print(json.dumps({
            "kills": kills, "runs": attempts + 1, "units": units, "same_bytes": same,
            "units_repeated_by_a_kill": {"mean": round(lost / max(kills, 1), 3), "most": most},
            "stages_hit": sorted(stages), "seconds": {"alone": round(alone, 1), "all_others": round(processor_seconds() - alone, 1)},
        }, indent=1))
        assert same


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
