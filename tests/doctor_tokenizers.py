# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers for the doctor's tests: byte-level, so that any text encodes, with markers as one id each."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from nvfp4_moe.doctor import contracts

DEEPSEEK = [*contracts.SPECIAL, contracts.SYSTEM]
CHATML = ["<|bos|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
CHATML_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write(directory: Path, special: list[str], config: dict, *, adds_bos: bool = False, **tokenizer_config) -> Path:
    """tokenizer.json, tokenizer_config.json and config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    if adds_bos:
        bos = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": special[0], "eos_token": special[1]} | tokenizer_config
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    (directory / "config.json").write_text(json.dumps({"vocab_size": 256 + len(special)} | config))
    return directory


def deepseek(directory: Path, contract: str | None = "official", **tokenizer_config) -> Path:
    """A DeepSeek-V4 directory with an encoder that has the contract's mark."""
    mark = next((mark for mark, name in contracts.MARKS.items() if name == contract), None)
    if mark:
        (directory / "encoding").mkdir(parents=True)
        (directory / "encoding/encoding_dsv4.py").write_text(f'raise SystemExit("run!")  # {mark}\n')
    return write(directory, DEEPSEEK, {"model_type": "deepseek_v4"}, **tokenizer_config)


def chatml(directory: Path, **options) -> Path:
    """A model with a chat template."""
    options = {"chat_template": CHATML_TEMPLATE} | options
    return write(directory, CHATML, {"model_type": "qwen3_moe"}, **options)
