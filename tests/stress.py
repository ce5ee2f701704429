"""What `vldm serve` bears, on a server of its own with an empty folder (docs/server.md has the figures).

    python tests/stress.py target/release/vldm demo/plans/drive.json load --clients 1000 --seconds 60
    python tests/stress.py target/release/vldm demo/plans/drive.json flood --requests 1800000
    python tests/stress.py target/release/vldm demo/plans/drive.json cancel --times 50
    python tests/stress.py target/release/vldm demo/plans/drive.json kill --kills 100

load    half the clients ask once a second where a video stands, as the SDK does, half listen to its events, while it is made: how long the
        answers took, what became of the time of the job, beside a job without clients and `vldm run`.
flood   an hour's worth of 500 clients' questions, as fast as they are answered: memory along the way.
cancel  videos are cancelled at random instants: how long until the engine is free, against a step of the slowest stage.
kill    SIGKILL at random instants while videos are made and asked for: no video lost, none finished twice, the bytes those of `vldm run`.

Prints one JSON object. Clients share the machine with the server, and their own delays count against it.
"""

import argparse
import asyncio
import collections
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time


class Client:
    """One connection, kept open."""

    def __init__(self, port):
        self.port, self.streams = port, None

    async def send(self, method, path, body=None, headers=()):
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        reader, writer = self.streams
        body = b"" if body is None else json.dumps(body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"{method} {path} HTTP/1.1\r\nhost: vldm\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        writer.write(head.encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
        return int(head.split(b" ", 2)[1]), fields, reader

    async def ask(self, method, path, body=None, headers=()):
        """Status and body of an answer."""
        try:
            status, fields, reader = await self.send(method, path, body, headers)
            return status, await reader.readexactly(int(fields["content-length"]))
        except BaseException:
            self.close()
            raise

    def close(self):
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


class Server:
    """`vldm serve`, and what its log says of jobs: (when, what, job, outcome)."""

    def __init__(self, args, folder):
        self.args, self.folder, self.log, self.port = args, folder, [], 0

    async def start(self):
        command = [self.args.program, "serve", self.args.plan, "--listen", f"127.0.0.1:{self.port}", "--folder", self.folder]
        command += ["--max-queue", "1000", "--max-queue-of-key", "1000", "--threads", str(self.args.threads)]
        self.child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        listens = asyncio.Event()
        self.reading = asyncio.create_task(self.read(listens))
        await asyncio.wait([self.reading, asyncio.create_task(listens.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert listens.is_set(), "the server did not start"

    async def read(self, listens):
        async for line in self.child.stderr:
            if line.startswith(b"{"):
                # The last line of a server that was killed may be cut off.
                fields = json.loads(line) if line.endswith(b"}\n") else {}
                if "job" in fields:
                    self.log.append((time.monotonic(), fields["message"], fields["job"], fields.get("outcome")))
            elif line.startswith(b"listening on http://"):
                self.port = int(line.rsplit(b":", 1)[1])
                listens.set()

    async def end(self, how=signal.SIGTERM):
        self.child.send_signal(how)
        await self.child.wait()
        await self.reading

    async def said(self, what, job):
        """When the log said it of a job."""
        while True:
            for when, message, of, _ in self.log:
                if (message, of) == (what, job):
                    return when
            await asyncio.sleep(0.0005)

    def memory(self):
        """Resident, MiB; of files that are mapped the kernel may take back, so those do not count."""
        status = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return round(int(status.split("RssAnon:")[1].split()[0]) / 1024, 1)

    def processor(self):
        """Processor seconds so far."""
        fields = pathlib.Path(f"/proc/{self.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def made(client, **fields):
    status, body = await client.ask("POST", "/v1/videos", fields)
    assert status == 200, body
    return json.loads(body)["id"]


async def seconds_of(server, client):
    """Makes a video; its id, and how long it took."""
    job = await made(client)
    return await server.said("ended", job) - await server.said("started", job)


async def bare(args, out):
    """What `vldm run` says of the same plan."""
    out.unlink(missing_ok=True)
    command = [args.program, "run", args.plan, "-o", out, "--threads", str(args.threads), "--json"]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    said, _ = await child.communicate()
    assert child.returncode == 0, said
    return json.loads(said)


def percentiles(times):
    times = sorted(times)
    return {f"p{p}": round(times[min(len(times) - 1, len(times) * p // 100)] * 1000, 1) for p in (50, 90, 99)} | {
        "most": round(times[-1] * 1000, 1)
    }


async def load(args, server):
    client, runs = Client(server.port), []
    for _ in range(2):
        runs.append((await bare(args, pathlib.Path(server.folder) / "whole.mp4"))["seconds"])
    alone = [await seconds_of(server, client)]
    before = server.processor()
    alone.append(await seconds_of(server, client))
    of_a_video = server.processor() - before
    took, heard, errors = [], 0, collections.Counter()
    before, began = server.processor(), time.monotonic()
    until, busy = began + args.seconds, []
    job = [await made(client)]

    async def makes():
        while True:
            busy.append(await server.said("ended", job[0]) - await server.said("started", job[0]))
            if time.monotonic() > until:
                return
            job[0] = await made(client)

    async def polls(number):
        mine = Client(server.port)
        await asyncio.sleep(number / args.clients * 2)
        while time.monotonic() < until:
            asked = time.monotonic()
            status, _ = await mine.ask("GET", f"/v1/videos/{job[0]}")
            took.append(time.monotonic() - asked)
            errors[status] += status != 200
            await asyncio.sleep(1)

    async def listens(number):
        nonlocal heard
        await asyncio.sleep(number / args.clients * 2)
        while time.monotonic() < until:
            mine = Client(server.port)
            status, _, reader = await mine.send("GET", f"/v1/videos/{job[0]}/events")
            errors[status] += status != 200
            async for line in reader:
                heard += line.startswith(b"event:")
                if line == b"0\r\n":
                    break
            mine.close()
            await asyncio.sleep(0.2)

    crowd = [polls(number) if number % 2 else listens(number) for number in range(args.clients)]
    await asyncio.gather(makes(), *crowd)
    return {
        "clients": args.clients, "answers": len(took), "milliseconds": percentiles(took), "events": heard, "errors": +errors,
        "seconds_of_a_video": {name: [round(t, 2) for t in times] for name, times in (("run", runs), ("served", alone), ("crowded", busy))},
        "processors_for_clients": round((server.processor() - before - of_a_video * len(busy)) / (time.monotonic() - began), 3),
    }


async def flood(args, server):
    job, asked, memory = await made(Client(server.port)), 0, []
    await server.said("ended", job)

    async def polls():
        nonlocal asked
        mine = Client(server.port)
        while asked < args.requests:
            asked += 1
            if asked % (args.requests // 10) == 0:
                memory.append(server.memory())
            status, _ = await mine.ask("GET", f"/v1/videos/{job}")
            assert status == 200

    before, began = server.memory(), time.monotonic()
    await asyncio.gather(*(polls() for _ in range(500)))
    return {"requests": asked, "a_second": round(asked / (time.monotonic() - began)), "memory_mib": [before, *memory]}


async def cancel(args, server):
    draw, client = random.Random(args.seed), Client(server.port)
    stages = (await bare(args, pathlib.Path(server.folder) / "whole.mp4"))["stages"]
    step = max(stage["busy_seconds"] / stage["evaluations"] for stage in stages if stage["evaluations"])
    whole, times = await seconds_of(server, client), []
    while len(times) < args.times:
        job = await made(client, seed=draw.randrange(1 << 30))
        await server.said("started", job)
        await asyncio.sleep(draw.uniform(0, whole))
        asked = time.monotonic()
        status, _ = await client.ask("POST", f"/v1/videos/{job}/cancel")
        ended = await server.said("ended", job)
        if status == 200 and server.log[-1][3] != "made":
            times.append(ended - asked)
    return {"cancelled": len(times), "milliseconds": percentiles(times), "step_of_the_slowest_stage": round(step * 1000, 1)}


async def kill(args, server):
    draw, folder = random.Random(args.seed), pathlib.Path(server.folder)
    whole = folder / "whole.mp4"
    await bare(args, whole)
    accepted, over, retries = {}, False, 0

    async def persists(*request, **more):
        """Asks until there is an answer, as clients do."""
        nonlocal retries
        mine = Client(server.port)
        while True:
            try:
                return await mine.ask(*request, **more)
            except (OSError, asyncio.IncompleteReadError):
                retries += 1
                await asyncio.sleep(0.05)

    async def makes(number):
        """One video after the other, each asked for until it is taken."""
        count = 0
        while not over:
            key = f"{number}-{count}"
            count += 1
            status, body = await persists("POST", "/v1/videos", {}, headers=[("idempotency-key", key)])
            assert status == 200, body
            job = json.loads(body)
            accepted[key] = job["id"]
            while job["status"] not in ("completed", "failed"):
                await asyncio.sleep(0.3)
                status, body = await persists("GET", f"/v1/videos/{accepted[key]}")
                assert status == 200, body
                job = json.loads(body)

    async def asks():
        while not over:
            status, _ = await persists("GET", "/v1/videos")
            assert status == 200
            await asyncio.sleep(0.1)

    makers = [asyncio.create_task(makes(number)) for number in range(3)]
    makers += [asyncio.create_task(asks()) for _ in range(50)]
    for _ in range(args.kills):
        await asyncio.sleep(draw.uniform(0.1, 4))
        await server.end(signal.SIGKILL)
        await server.start()
    over = True
    await asyncio.gather(*makers)
    wrong = 0
    for job in accepted.values():
        status, body = await persists("GET", f"/v1/videos/{job}/content")
        wrong += status != 200 or hashlib.sha256(body).digest() != hashlib.sha256(whole.read_bytes()).digest()
    status, body = await persists("GET", "/v1/videos?limit=100")
    videos = [video["id"] for video in json.loads(body)["data"]]
    finished = collections.Counter(of for _, message, of, outcome in server.log if (message, outcome) == ("ended", "made"))
    result = {
        "kills": args.kills, "videos": len(accepted), "requests_repeated": retries, "lost": len(set(accepted.values()) - set(videos)),
        "made_twice": len(videos) - len(set(accepted.values())), "finished_twice": sum(n > 1 for n in finished.values()), "wrong": wrong,
    }
    assert not any(result[name] for name in ("lost", "made_twice", "finished_twice", "wrong")), result
    return result


async def run(args):
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args, folder)
        await server.start()
        try:
            return await globals()[args.what](args, server)
        finally:
            await server.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("plan")
    parser.add_argument("what", choices=["load", "flood", "cancel", "kill"])
    parser.add_argument("--threads", type=int, default=2, help="of the server's engine")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=1_800_000)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
