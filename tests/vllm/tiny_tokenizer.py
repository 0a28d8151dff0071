# SPDX-License-Identifier: Apache-2.0
"""A tokenizer with a chat template, made here: models under test must not need the network."""

import json
from pathlib import Path

VOCAB_SIZE = 1024
SPECIAL = ["<bos>", "<eos>", "<pad>"]
TEXT = "the quick brown fox jumps over the lazy dog. hello world, the capital of france is paris. " * 4
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}assistant: "


def save(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; byte-level, so that any text encodes.

    Every one of the VOCAB_SIZE ids is text, so that answers of a random model differ where their tokens do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([f" word{number}" for number in range(tokenizer.get_vocab_size(), VOCAB_SIZE)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
