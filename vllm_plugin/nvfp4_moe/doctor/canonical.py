# SPDX-License-Identifier: Apache-2.0
"""The prompts that a conversation should become: by the chat template, and by DeepSeek-V4's encoding."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import contracts
from .directory import Directory
from .tokenizer import Tokenizer

HERE = Path(__file__).parent
CHILD_SECONDS = 60
# What engines pass to a template for each way of thinking; models know one or the other of the names.
THINKING = {
    "as it comes": {},
    "thinking": {"thinking": True, "enable_thinking": True},
    "chat": {"thinking": False, "enable_thinking": False},
}


class Variant(NamedTuple):
    """One prompt of one conversation."""

    source: str  # "chat template", "encoding official"
    mode: str  # "thinking, effort high"
    text: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.source}, {self.mode}"


def chat_template(directory: Directory, tokenizer: Tokenizer) -> str | None:
    """Of chat_template.jinja, or tokenizer_config.json's; of several, the one called default."""
    text = directory.text("chat_template.jinja", most=1 << 20)
    if text is not None:
        return text
    given = tokenizer.config.get("chat_template")
    if isinstance(given, list):
        given = {each.get("name"): each.get("template") for each in given if isinstance(each, dict)}
    if isinstance(given, dict):
        given = given.get("default")
    return given if isinstance(given, str) else None


def by_template(template: str, tokenizer: Tokenizer, messages: list[dict]) -> list[Variant] | str:
    """Each way of thinking, those that are alike once; or why there is none."""
    special = {name: tokenizer.named(name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    runs = [
        {"messages": messages, "variables": special | {"add_generation_prompt": True} | extra}
        for extra in THINKING.values()
    ]
    results = child([str(HERE / "render.py")], {"template": template, "runs": runs})
    if isinstance(results, str):
        return results
    variants, seen = [], set()
    for mode, result in zip(THINKING, results):
        if "error" in result:
            return result["error"]
        if result["text"] not in seen:
            seen.add(result["text"])
            variants.append(Variant("chat template", mode, result["text"]))
    return variants


def child(command: list[str], question: object) -> list[dict] | str:
    """Ask one of the two programs beside this file, without this process's paths; or why it did not answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", *command],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CHILD_SECONDS} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [
            f"exit status {done.returncode}: over its limit of time or memory"
        ]
        return last[0]
    return json.loads(done.stdout.splitlines()[-1])


def encoder_files(directory: Directory) -> list[Path]:
    """Sources below `encoding/`, a folder of the directory itself."""
    folder = directory.path / "encoding"
    if not folder.is_dir() or folder.is_symlink():
        return []
    return [path for path in sorted(folder.glob("*.py")) if path.is_file() and "test" not in path.name][:20]


def contract_of(directory: Directory) -> str | None:
    """The checkpoint's, by the text of its encoder, or by the model's type."""
    texts = (directory.text(f"encoding/{path.name}", most=1 << 20) or "" for path in encoder_files(directory))
    found = contracts.contract_of(texts)
    return found or ("v41" if directory.config.get("model_type") == "deepseek_v41" else None)


def vllm_encoder(contract: str) -> Path | None:
    """The encoder of a contract's family in the vLLM that is installed here; nothing is imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    name = "deepseek_v41_encoding.py" if contract == "v41" else "deepseek_v4_encoding.py"
    file = Path(spec.submodule_search_locations[0]) / "tokenizers" / name
    return file if file.is_file() else None


def vllm_contract(contract: str) -> str | None:
    """What vLLM has for that family: one contract for all its checkpoints."""
    file = vllm_encoder(contract)
    return contracts.contract_of([file.read_text(errors="replace")]) if file else None


def by_contract(contract: str, messages: list[dict]) -> list[Variant]:
    """Chat, and each effort of thinking. ValueError for a conversation that contracts.py does not have."""
    source = f"encoding {contract}"
    variants = [Variant(source, "chat", contracts.encode(messages, contract))]
    for effort in contracts.EFFORTS[contract]:
        variants.append(Variant(source, f"thinking, effort {effort}", contracts.encode(messages, contract, effort)))
    return variants


def by_encoder(directory: Directory, messages: list[dict]) -> list[Variant] | str:
    """What the checkpoint's own encoder says: it is RUN. Or why it does not."""
    files = [path for path in encoder_files(directory) if path.name.startswith("encoding")]
    if not files:
        return "there is no encoding/encoding*.py"
    modes = {"chat": ("chat", None), "thinking": ("thinking", None), "thinking, effort max": ("thinking", "max")}
    runs = [
        {"messages": messages, "thinking_mode": mode, "reasoning_effort": effort} for mode, effort in modes.values()
    ]
    results = child([str(HERE / "trusted.py"), str(files[0])], runs)
    if isinstance(results, str):
        return results
    return [Variant(f"encoding/{files[0].name}", mode, r["text"]) for mode, r in zip(modes, results) if "text" in r]
