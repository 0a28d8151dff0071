"""Serve tiny NVFP4 models with real vLLM on a GPU: our MoE in CUDA graphs, ours eager, and Marlin on the same files.

    make gpu-serve BUNDLE=.peers        on a machine with a GPU and the offline vLLM bundle in BUNDLE

For each model it prints which experts served, graphs captured and replayed, tokens per second, and how many greedy
tokens equal Marlin's. Ends PASS if our experts served, graphs were captured and replayed, every logit was finite, and a
prompt served alone gave the same tokens with graphs and without.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OURS = "Nvfp4MoeExperts"
MARLIN = {"VLLM_DISABLED_KERNELS": "Nvfp4MoeLinearKernel"}


def smoke(bundle: Path, model: Path, name: str, out: Path, options: list[str], environment: dict[str, str]) -> dict:
    """One run of the bundle's serve_smoke.py; its report."""
    report = out / f"{model.name}-{name}.json"
    command = [sys.executable, str(bundle / "serve_smoke.py"), str(model), "--plugin", "serve_with_plugin"]
    if model.name == "dsv4":
        command += ["--plugin", "dsv4_triton_compressor"]
    log = out / f"{model.name}-{name}.log"
    with log.open("w") as stream:
        status = subprocess.run(
            [*command, "--out", str(report), *options],
            env=os.environ | environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        raise SystemExit(f"{model.name} {name} failed ({status}):\n{log.read_text()[-6000:]}")
    return json.loads(report.read_text())


def line(name: str, report: dict) -> str:
    """One row of the table."""
    tokens = sum(len(row) for rows in report["tokens"].values() for row in rows)
    graphs = report["graphs"]
    return (
        f"  {name:12} {', '.join(report['built']['moe']):70} {graphs['captured']:3} captured "
        f"{graphs['replays_in_generation']:3} replayed {tokens / report['seconds']['generate']:8.1f} tokens/s"
    )


def equal_tokens(a: dict, b: dict) -> str:
    """How many tokens of the batch agree before the first that does not, prompt by prompt."""
    agree = total = 0
    for ours, theirs in zip(a["tokens"]["batch"], b["tokens"]["batch"], strict=True):
        agree += next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=True)) if x != y), len(ours))
        total += len(ours)
    return f"{agree} of {total} greedy tokens up to the first difference of each prompt"


def failures(graphs: dict, eager: dict) -> list[str]:
    """What is wrong with our two runs."""
    checks = {
        "our experts did not serve": all(OURS in kind for run in (graphs, eager) for kind in run["built"]["moe"]),
        "no graph was captured": graphs["graphs"]["captured"] >= 4,
        "no graph was replayed": graphs["graphs"]["replays_in_generation"] > 0,
        "a logit is not finite": graphs["logits"]["all_finite"] and eager["logits"]["all_finite"],
        "graphs and eager differ": graphs["tokens"]["first_alone"] == eager["tokens"]["first_alone"],
    }
    return [text for text, good in checks.items() if not good]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True, help="folder of serve_smoke.py and its makers")
    parser.add_argument("--models", type=Path, default=Path("build/gpu-models"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu-serve")))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    root = HERE.parent.parent
    path = [str(root / "vllm_plugin"), str(HERE), str(arguments.bundle), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    maker = [sys.executable, str(arguments.bundle / "make_tiny_checkpoint.py"), str(arguments.models)]
    subprocess.run(maker, check=True)
    failed = []
    for name in ("qwen3", "dsv4"):
        model = arguments.models / name
        print(f"{name}:", flush=True)
        runs = {}
        for run, options, environment in (
            ("ours", [], {}),
            ("ours-eager", ["--eager"], {}),
            ("marlin", ["--moe-backend", "marlin"], MARLIN),
        ):
            runs[run] = smoke(arguments.bundle, model, run, arguments.out, options, environment)
            print(line(run, runs[run]), flush=True)
        print(f"  ours and Marlin: {equal_tokens(runs['ours'], runs['marlin'])}")
        failed += [f"{name}: {reason}" for reason in failures(runs["ours"], runs["ours-eager"])]
    print("\n".join([*failed, "gpu-serve: " + ("FAIL" if failed else "PASS")]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
