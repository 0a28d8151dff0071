# SPDX-License-Identifier: Apache-2.0
"""Load a served model's weights again on a GPU, under graphs that were captured before: reload_weights, and sleep.

    make gpu-reload BUNDLE=.peers       on a machine with a GPU and the offline vLLM bundle in BUNDLE

A tiny Qwen3-MoE of NVFP4 experts and linears, and another of the same size: each layer with the weights of the next,
and input scales twice as large. Every run is a process of its own, greedy, under `cudagraph_mode: FULL_DECODE_ONLY`:

    fresh     an engine that starts with the other model
    reload    one that starts with the first, then loads the other, the first, the other
    sleep     one that starts with the first, sleeps (level 2, weights dropped), wakes, loads the other; then sleeps
              (level 1, weights on the host) and wakes

in modes bf16 and nvfp4 (sleep: bf16 only). The last line is PASS if, for each mode,

- after each reload the tokens are those of an engine that started with these weights, as are those of both sleeps;
- every decoding step replayed a graph, and none was captured after the start;
- the library's storage lies where it lay, and is the module's parameter;
- torch's allocated memory is what it was before, to a tenth of the experts; the driver's is printed.
"""

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from full.options import PLAIN, decode_graphs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT_S = 150
NUM_TOKENS = 32
PROMPTS = ["hello world, the capital of", "the quick brown fox", "paris is the capital of france. " * 20, "a"]
INPUT_SCALE_FACTOR = 2.0


# ---- One process: a served model -------------------------------------------------------------------------------------


def counted_graphs() -> dict[str, int]:
    """How often graphs were captured and replayed, from now on."""
    import torch

    counts = {"capture_end": 0, "replay": 0}
    for name in counts:
        original = getattr(torch.cuda.CUDAGraph, name)

        def method(self, *args, name=name, original=original, **kwargs):
            counts[name] += 1
            return original(self, *args, **kwargs)

        setattr(torch.cuda.CUDAGraph, name, method)
    return counts


class Served:
    """An engine in this process, and what was seen of it so far."""

    def __init__(self, model: str, sleeps: bool):
        import serve_with_plugin  # noqa: F401 registers the plugin

        from vllm import LLM

        self.graphs = counted_graphs()
        self.llm = LLM(
            model=model, max_model_len=1024, max_num_seqs=4, max_num_batched_tokens=512, gpu_memory_utilization=0.3,
            compilation_config=decode_graphs([1, 2, 4]), enable_sleep_mode=sleeps, **PLAIN,
        )  # fmt: skip
        self.captured = self.graphs["capture_end"]
        self.steps: list[dict] = []

    def model(self):
        worker = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
        return getattr(worker, "worker", worker).model_runner.get_model()

    def note(self, what: str) -> None:
        """Generate, and look at memory, graphs and addresses."""
        import torch

        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        before = self.graphs["replay"]
        outputs = self.llm.generate(PROMPTS, greedy, use_tqdm=False)
        replays = self.graphs["replay"] - before
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        self.steps.append({
            "what": what,
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "replays": replays,
            "captured_since_start": self.graphs["capture_end"] - self.captured,
            "torch_bytes": torch.cuda.memory_allocated(),
            "device_bytes": total - free,
            "storage": storage_addresses(self.model()),
        })  # fmt: skip

    def load(self, model: str, what: str) -> None:
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        self.note(what)


def storage_addresses(model) -> list[int]:
    """Of the experts' and the linears' own storage, as the handle has it and as the module has it: both, in turn."""
    found = []
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and hasattr(kernel.fused_experts, "handle"):
            found += [kernel.fused_experts.layer.expert_slices.data_ptr(), module.expert_slices.data_ptr()]
        elif hasattr(getattr(module, "nvfp4_moe_linear", None), "handle"):
            found += [module.nvfp4_moe_linear.linear.storage.data_ptr(), module.nvfp4_moe_storage.data_ptr()]
    return found


def run_fresh(first: str, other: str) -> Served:
    served = Served(other, sleeps=False)
    served.note("fresh")
    return served


def run_reload(first: str, other: str) -> Served:
    served = Served(first, sleeps=False)
    served.note("first")
    for model, what in ((other, "other"), (first, "first"), (other, "other")):
        served.load(model, what)
    return served


def run_sleep(first: str, other: str) -> Served:
    served = Served(first, sleeps=True)
    served.note("first")
    served.llm.sleep(level=2)
    served.llm.wake_up(tags=["weights"])
    served.llm.collective_rpc("reload_weights", kwargs={"weights_path": other})
    served.llm.wake_up(tags=["kv_cache"])
    served.note("other")
    served.llm.sleep(level=1)
    served.llm.wake_up()
    served.note("other")
    return served


RUNS = {"fresh": run_fresh, "reload": run_reload, "sleep": run_sleep}


def child(run: str, first: str, other: str, report: Path) -> None:
    """Serve, and write what was seen."""
    if run == "sleep":
        from vllm.device_allocator.cumem import cumem_available

        if not cumem_available:
            report.write_text(json.dumps({"not_run": "this vLLM has no allocator for sleep mode (cumem_allocator)"}))
            return
    served = RUNS[run](first, other)
    report.write_text(json.dumps({"captured": served.captured, "steps": served.steps}))


# ---- All of them -----------------------------------------------------------------------------------------------------


def make_other(first: Path, other: Path) -> int:
    """Each layer's tensors under the next one's names, input scales scaled; returns the bytes of the experts."""
    from safetensors.torch import load_file, save_file

    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(first, other, ignore=shutil.ignore_patterns("*.safetensors*"))
    layers = json.loads((first / "config.json").read_text())["num_hidden_layers"]
    tensors = {}
    for file in sorted(first.glob("*.safetensors")):
        tensors |= load_file(file)

    def moved(found: re.Match) -> str:
        return f"layers.{(int(found[1]) + 1) % layers}."

    rotated = {
        re.sub(r"layers\.(\d+)\.", moved, name): t * INPUT_SCALE_FACTOR if name.endswith("input_scale") else t
        for name, t in tensors.items()
    }
    save_file(rotated, other / "model.safetensors")
    return sum(t.nbytes for name, t in tensors.items() if ".experts." in name)


def served(run: str, mode: str, models: tuple[Path, Path], work: Path) -> dict | str:
    """The report of a run in its own process, or why there is none."""
    report, log = work / f"{run}-{mode}.json", work / f"{run}-{mode}.log"
    report.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", run, *map(str, models), str(report)]
    environment = os.environ | {"NVFP4_MOE_MODE": mode, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_HOST_IP": "127.0.0.1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as stream:
        try:
            done = subprocess.run(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return f"stopped after {LIMIT_S} s"
    if done.returncode or not report.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        return f"exit status {done.returncode}; the end of {log}:\n{tail}"
    return json.loads(report.read_text())


def failures(report: dict, expected: dict[str, list], expert_bytes: int) -> list[str]:
    """What is wrong with a run, whose steps name the model that they serve."""
    found, first = [], report["steps"][0]
    if report["captured"] < 3:
        found.append(f"{report['captured']} graphs captured, not 3 or more")
    if not first["storage"] or any(a != b for a, b in zip(first["storage"][::2], first["storage"][1::2])):
        found.append("the modules' parameters are not what the handles read")
    for at, step in enumerate(report["steps"]):
        where = f"step {at}, {step['what']}"
        if step["tokens"] != expected.get(step["what"], step["tokens"]):
            found.append(f"{where}: the tokens are not those of a fresh engine")
        if step["replays"] < NUM_TOKENS - 1 or step["captured_since_start"]:
            found.append(f"{where}: {step['replays']} replays, {step['captured_since_start']} graphs captured late")
        if step["storage"] != first["storage"]:
            found.append(f"{where}: storage has moved")
        if (grown := step["torch_bytes"] - first["torch_bytes"]) > expert_bytes / 10:
            found.append(f"{where}: torch holds {grown} bytes more than before; the experts are {expert_bytes}")
    return found


def judge(mode: str, reports: dict[str, dict], expert_bytes: int) -> list[str]:
    """What is wrong in one mode, over all its runs."""
    found = []
    expected = {"other": reports["fresh"]["steps"][0]["tokens"]} if "fresh" in reports else {}
    if "reload" in reports:
        expected["first"] = reports["reload"]["steps"][0]["tokens"]
        if expected.get("other") == expected["first"]:
            found.append(f"{mode}: both models give the same tokens, which shows nothing")
    for run, report in reports.items():
        found += [f"{mode} {run}: {text}" for text in failures(report, expected, expert_bytes)]
        for step in report["steps"]:
            memory = f"torch {step['torch_bytes'] / 2**20:8.1f} MiB  device {step['device_bytes'] / 2**20:8.1f} MiB"
            print(f"  {run:7} {step['what']:6} {step['replays']:4} replays  {memory}  {step['tokens'][0][:6]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="folder of make_tiny_checkpoint.py")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-reload", help="models, logs and reports")
    parser.add_argument("--child", nargs=4, metavar=("RUN", "FIRST", "OTHER", "REPORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run, first, other, report = arguments.child
        child(run, first, other, Path(report))
        return 0
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    path = [str(ROOT / "vllm_plugin"), str(HERE), str(arguments.bundle), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    make = [sys.executable, str(arguments.bundle / "make_tiny_checkpoint.py"), str(work), "qwen3"]
    subprocess.run(make, check=True, timeout=LIMIT_S)
    models = work / "qwen3", work / "qwen3-other"
    expert_bytes, failed = make_other(*models), []
    for mode, runs in (("bf16", ("fresh", "reload", "sleep")), ("nvfp4", ("fresh", "reload"))):
        print(f"{mode}:", flush=True)
        reports = {}
        for run in runs:
            report = served(run, mode, models, work)
            if isinstance(report, str):
                failed.append(f"{mode} {run}: {report}")
            elif "not_run" in report:
                print(f"  {run}: NOT RUN, {report['not_run']}")
            else:
                reports[run] = report
        failed += judge(mode, reports, expert_bytes)
    if out := os.environ.get("OUT"):
        (Path(out) / "reload.log").write_text(
            "".join(log.read_text(errors="replace") for log in sorted(work.glob("*.log")))
        )
    print("\n".join([*failed, "gpu-reload: " + ("FAIL" if failed else "PASS")]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
