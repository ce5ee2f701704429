"""Kills workers, coordinator and queue of `vldm run --queue` at random instants, starts each again, and compares the video with that of a
run left alone.

    python tests/kill_cluster.py target/release/vldm path/to/nats-server demo/plans/drive.json demo --kills 60

Prints one JSON object: kills of each, units of the plan and units begun for each video, whether the bytes are the same.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import tempfile
import time

UNIT = re.compile(r"INFO vldm::cluster: ([\w-]+, \w+ \d+) ")
WHO = ["worker", "worker", "coordinator", "queue"]


class Cluster:
    def __init__(self, args, scratch):
        self.args, self.scratch, self.logs, self.number = args, pathlib.Path(scratch), [], 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.out = self.scratch / "out.mp4"
        self.queue()
        self.workers = [self.worker() for _ in range(args.workers)]

    def start(self, *command):
        self.number += 1
        log = self.scratch / f"{self.number}.log"
        with log.open("w") as errors:
            child = subprocess.Popen(
                [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "NO_COLOR": "1"}
            )
        return child, log

    def queue(self):
        self.server, _ = self.start(self.args.nats, "-js", "-a", "127.0.0.1", "-p", self.port, "-sd", self.scratch / "nats")
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.02)

    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def worker(self):
        child, log = self.start(self.args.program, "-v", "worker", self.args.checkpoint, "--queue", self.url(), "--threads", 1)
        self.logs.append(log)
        return child

    def run(self):
        self.coordinator, self.log = self.start(
            self.args.program, "run", self.args.plan, "-o", self.out, "--threads", 1, "--queue", self.url()
        )

    def begun(self):
        return sum(len(UNIT.findall(log.read_text())) for log in self.logs)

    def kill(self, who, draw):
        if who == "queue":
            end(self.server)
            self.queue()
        elif who == "coordinator":
            end(self.coordinator)
            self.run()
        else:
            at = draw.randrange(len(self.workers))
            end(self.workers[at])
            self.workers[at] = self.worker()


def end(child):
    child.send_signal(signal.SIGKILL)
    child.wait()


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("program", "nats", "plan", "checkpoint"):
        parser.add_argument(name)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--who", nargs="+", choices=WHO[1:], default=WHO, help="whom to kill; twice named, twice as often")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = pathlib.Path(scratch) / "whole.mp4"
        subprocess.run([args.program, "run", args.plan, "-o", whole, "--threads", "1"], check=True, capture_output=True)
        cluster = Cluster(args, scratch)
        kills, begun, same = dict.fromkeys(args.who, 0), [], True
        while sum(kills.values()) < args.kills:
            before = cluster.begun()
            cluster.run()
            while cluster.coordinator.poll() is None:
                time.sleep(draw.uniform(0.3, 4))
                if cluster.coordinator.poll() is None and sum(kills.values()) < args.kills:
                    who = draw.choice(args.who)
                    cluster.kill(who, draw)
                    kills[who] += 1
            assert cluster.coordinator.returncode == 0, cluster.log.read_text()
            begun.append(cluster.begun() - before)
            same = same and digest(whole) == digest(cluster.out)
            cluster.out.unlink()
        for child in [*cluster.workers, cluster.server]:
            end(child)
    print(json.dumps({"kills": kills, "videos": len(begun), "units_begun": begun, "same_bytes": same}, indent=1))
    assert same


if __name__ == "__main__":
    main()
