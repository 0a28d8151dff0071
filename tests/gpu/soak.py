#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Serve for a while: prompts of mixed lengths from several clients at once, through vLLM's OpenAI server.

    make gpu-soak                                        a tiny Qwen3-MoE, two minutes, 8 clients
    make gpu-soak GPU_SOAK="--tiny dsv4 --gpu 1"         a tiny DeepSeek-V4, on the second GPU
    make gpu-soak GPU_SOAK="--seconds 1200 --model DIR"  a model of yours
    make gpu-soak GPU_SOAK="--url http://localhost:8000 --seconds 1200"      a server that runs already

Where one command may not last as long, it goes on by itself, and others ask how it went:

    make gpu-soak GPU_SOAK="--seconds 1200 --begin"      returns at once
    make gpu-soak GPU_SOAK="--look 500"                  waits 500 seconds at most; progress, or the verdict

vLLM's server must be importable with all that it imports (uvicorn among it), which a bundle that only generates lacks.
A tiny model's server takes a fixed, small part of a GPU, so that others can use it at the same time.

PASS if no request failed, greedy tokens of prompts asked alone are the same at the end as at the start, and memory has
not grown: that of the GPU by more than --grow-gpu MiB, that of the server's processes by more than --grow-host, both
from a third of the time on, when every size of batch has been seen.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from full.case import CPU_ENVIRONMENT
from full.one import ENVIRONMENT
from full.options import OF_TINY, SMALL_CACHE, decode_graphs, flags
from full.process import Process, is_alive, smi
from serve import HERE, ROOT, failure, text
from serve_full import plugins

LENGTHS = (1, 7, 16, 60, 129, 300, 700)
ANSWERS = (1, 8, 40, 120)
ALONE = 4
START_S = 600
RUNNING = 2
"""Exit status of --look, while there is no verdict."""


class Server:
    """What answers at a URL; and whose memory is watched, where it was started here."""

    def __init__(self, url: str, process: Process | None = None):
        self.url, self.process = url.rstrip("/"), process
        self.model = ""

    def get(self, path: str) -> dict:
        """Its answer."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())

    def is_ready(self) -> bool:
        """Does it name its model?"""
        try:
            self.model = self.get("/v1/models")["data"][0]["id"]
        except (urllib.error.URLError, OSError):
            return False
        return True

    def complete(self, prompt: list[int], tokens: int) -> list[str]:
        """Greedy tokens of a prompt of ids."""
        asked = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1}
        body = json.dumps(asked | {"ignore_eos": True}).encode()
        request = urllib.request.Request(self.url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())["choices"][0]["logprobs"]["tokens"]


def host_mib(group: int) -> float:
    """Resident memory of the processes of a group, by /proc."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group:
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (ProcessLookupError, FileNotFoundError, IndexError):
            continue
    return total / 2**20


def gpu_mib(group: int | None) -> float | None:
    """GPU memory of a group's processes; where nvidia-smi cannot tell them, of all; None without a GPU."""
    mine = []
    for line in smi("--query-compute-apps=pid,used_memory") if group else ():
        with contextlib.suppress(ValueError, ProcessLookupError):
            pid, used = map(int, line.split(","))
            mine += [used] if os.getpgid(pid) == group else []
    used = mine or [int(line) for line in smi("--query-gpu=memory.used")]
    return float(sum(used)) if used else None


class Soak:
    """The clients, and what they saw."""

    def __init__(self, server: Server, vocabulary: int):
        self.server, self.vocabulary = server, vocabulary
        self.errors: list[str] = []
        self.tokens = self.requests = 0
        self.lock = threading.Lock()

    def prompt(self, generator: random.Random) -> list[int]:
        """Of any length of the list."""
        return [generator.randrange(3, self.vocabulary) for _ in range(generator.choice(LENGTHS))]

    def client(self, number: int, end: float) -> None:
        """One of them, until the time is over."""
        generator = random.Random(number)
        while time.monotonic() < end:
            wanted = generator.choice(ANSWERS)
            try:
                found = len(self.server.complete(self.prompt(generator), wanted))
                error = None if found == wanted else f"{found} tokens; {wanted} were asked for"
            except Exception as raised:  # whatever it was, it is what the soak looks for
                found, error = 0, f"{type(raised).__name__}: {raised}"
            with self.lock:
                self.requests += 1
                self.tokens += found
                if error:
                    self.errors.append(error)

    def alone(self) -> list[list[str]]:
        """Greedy tokens of the same few prompts, one after another."""
        generator = random.Random(20261130)
        return [self.server.complete(self.prompt(generator), 24) for _ in range(ALONE)]

    def run(self, seconds: float, clients: int) -> list[dict]:
        """All clients; samples of memory meanwhile."""
        start = time.monotonic()
        threads = [threading.Thread(target=self.client, args=(n, start + seconds)) for n in range(clients)]
        for thread in threads:
            thread.start()
        samples = []
        while any(thread.is_alive() for thread in threads):
            group = self.server.process.process.pid if self.server.process else None
            host = host_mib(group) if group else None
            samples.append({"s": round(time.monotonic() - start, 1), "gpu_mib": gpu_mib(group), "host_mib": host})
            print(
                f"{samples[-1]}, {self.requests} requests, {self.tokens} tokens, {len(self.errors)} errors", flush=True
            )
            for thread in threads:
                thread.join(max(1.0, seconds / 60) / clients)
        return samples


def grown(samples: list[dict], kind: str) -> float | None:
    """The most of the last third, less the most of the middle third."""
    values = [sample[kind] for sample in samples if sample[kind] is not None]
    third = len(values) // 3
    return max(values[-third:]) - max(values[third : 2 * third]) if third else None


def faults(soak: Soak, before: list, after: list, samples: list[dict], limits: dict[str, float]) -> list[str]:
    """What is wrong."""
    found = [f"a request failed: {error}" for error in soak.errors[:5]]
    pairs = enumerate(zip(before, after, strict=True))
    found += [f"tokens of prompt {n} are {last}; they must be {first}" for n, (first, last) in pairs if first != last]
    for kind, limit in limits.items():
        growth = grown(samples, kind)
        if growth is not None and growth > limit:
            found.append(f"{kind} grew by {growth:.0f}; it must be at most {limit:.0f}")
    return found if soak.requests else [*found, "no request ended"]


def command_of(model: Path, arguments) -> list[str]:
    """vLLM's server. It captures graphs for as many sequences as there are clients."""
    sizes = [1 << n for n in range(arguments.clients.bit_length() + 1)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "bfloat16"]
    command += ["--port", str(arguments.port), "--host", "127.0.0.1", "--no-enable-prefix-caching"]
    command += ["--max-model-len", str(arguments.max_model_len), "--max-num-seqs", str(sizes[-1])]
    if arguments.cpu:
        return [*command, "--enforce-eager", *arguments.serve.split()]
    command += ["--compilation-config", json.dumps(decode_graphs(sizes))]
    tiny = SMALL_CACHE | OF_TINY[arguments.tiny]
    own = {"gpu_memory_utilization": arguments.memory} if arguments.model else tiny
    return [*command, *flags(own), *arguments.serve.split()]


def make_tiny(name: str, work: Path) -> Path:
    """A model's folder."""
    made = subprocess.run([sys.executable, str(HERE / f"tiny_{name}.py"), str(work / name), str(work / "float32")])
    if made.returncode:
        sys.exit(f"tiny_{name}.py ended with status {made.returncode}; it must make the model. See above.")
    return work / name


def start(arguments) -> Server:
    """A server of our own, which may take minutes to compile kernels; exits with its log where it ends."""
    model = arguments.model or make_tiny(arguments.tiny, arguments.work)
    command, environment = command_of(model, arguments), ENVIRONMENT | (CPU_ENVIRONMENT if arguments.cpu else {})
    if arguments.gpu is not None:
        environment |= {"CUDA_VISIBLE_DEVICES": str(arguments.gpu)}
    log = arguments.work / "server.log"
    server = Server(f"http://127.0.0.1:{arguments.port}", Process(command, os.environ | environment, log))
    limit = time.monotonic() + START_S
    try:
        while not server.is_ready():
            if server.process.process.poll() is not None or time.monotonic() > limit:
                sys.exit(failure("server", "it does not answer", log))
            time.sleep(0.5)
    except SystemExit:
        server.process.stop()
        raise
    return server


def begin(work: Path, options: list[str]) -> int:
    """The same in a process of its own."""
    (work / "soak.json").unlink(missing_ok=True)
    begun = Process([sys.executable, __file__, *options], dict(os.environ), work / "soak.log")
    (work / "soak.pid").write_text(str(begun.process.pid))
    print(f"gpu-soak: begun as process {begun.process.pid}, into {work / 'soak.log'}; ask with --look")
    return 0


def look(work: Path, limit_s: float) -> int:
    """Its log's end, and 0 for PASS, 1 for FAIL, RUNNING while it is not over."""
    group, limit = int(text(work / "soak.pid") or 0), time.monotonic() + limit_s
    while is_alive(group) and time.monotonic() < limit:
        time.sleep(0.5)
    lines = text(work / "soak.log").splitlines()
    print("\n".join(lines[-12:]))
    if os.environ.get("OUT"):
        for name in ("soak.log", "soak.json", "server.log"):
            with contextlib.suppress(OSError):
                shutil.copy(work / name, Path(os.environ["OUT"]) / f"{work.name}-{name}")
    if is_alive(group):
        print("gpu-soak: it goes on")
        return RUNNING
    passed = bool(lines) and lines[-1] == "gpu-soak: PASS"
    if not passed:
        print("gpu-soak: FAIL, it has ended without PASS")
    return 0 if passed else 1


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--model", type=Path, help="a directory; default: a tiny one, made here")
    parser.add_argument("--tiny", choices=OF_TINY, default="qwen3", help="which tiny model")
    parser.add_argument("--gpu", type=int, help="its number; default: all that there are")
    parser.add_argument("--cpu", action="store_true", help="without a GPU, with vLLM's CPU build")
    parser.add_argument("--begin", action="store_true", help="go on by itself, and return")
    parser.add_argument("--look", type=float, metavar="S", help="wait so long for one that goes on by itself")
    parser.add_argument("--plugins", default="", help="modules, with commas between, that every process imports")
    parser.add_argument("--serve", default="", help="more options of vllm serve")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=1000, help="prompts are of ids below it")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--memory", type=float, default=0.5, help="the part of a GPU that vLLM takes for --model")
    parser.add_argument("--grow-gpu", type=float, default=64, help="MiB")
    parser.add_argument("--grow-host", type=float, default=256, help="MiB")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-soak")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.look is not None:
        return look(arguments.work, arguments.look)
    if arguments.begin:
        return begin(arguments.work, [argument for argument in sys.argv[1:] if argument != "--begin"])
    path = [str(ROOT / "vllm_plugin"), str(HERE), str(plugins(arguments.work / "plugins"))]
    path += [str(ROOT / "tests/vllm/shims")] if arguments.cpu else []
    os.environ["FULL_PLUGINS"] = arguments.plugins
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu-soak: ended from outside"))
    server = Server(arguments.url) if arguments.url else start(arguments)
    try:
        if not server.is_ready():
            sys.exit(f"url is {arguments.url}; a server must answer there. Start it first.")
        return soak_it(server, arguments)
    finally:
        if server.process:
            server.process.stop()


def soak_it(server: Server, arguments) -> int:
    """Tokens, clients, tokens again; 1 if something is wrong."""
    soak = Soak(server, arguments.vocabulary)
    before = soak.alone()
    samples = soak.run(arguments.seconds, arguments.clients)
    after = soak.alone()
    wrong = faults(soak, before, after, samples, {"gpu_mib": arguments.grow_gpu, "host_mib": arguments.grow_host})
    if server.process and "ACTIVE for NVFP4 MoE" not in text(arguments.work / "server.log"):
        wrong.append("the server's log does not say that the MoE is ACTIVE")
    seconds = samples[-1]["s"]
    print(f"{soak.requests} requests, {soak.tokens} tokens in {seconds:.0f} s of {arguments.clients} clients")
    growth = {kind: grown(samples, kind) for kind in ("gpu_mib", "host_mib")}
    print(f"memory at first {samples[0]}, at last {samples[-1]}, grown {growth}")
    report = {"samples": samples, "requests": soak.requests, "tokens": soak.tokens, "faults": wrong, "growth": growth}
    (arguments.work / "soak.json").write_text(json.dumps(report, indent=1))
    if os.environ.get("OUT"):
        (Path(os.environ["OUT"]) / "soak.json").write_text(json.dumps(report))
    print("\n".join([*wrong, "gpu-soak: " + ("FAIL" if wrong else "PASS")]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
