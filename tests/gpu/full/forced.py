# SPDX-License-Identifier: Apache-2.0
"""A text that every engine decodes, whatever it would have chosen: so all engines are judged on the same contexts.

vLLM loads the class by `logits_processors=["full.forced:Forced"]`. A request with `extra_args={"forced": ids}` gets
those ids; its logprobs are the model's own, since vLLM takes them before processors act.
"""

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates


class Text:
    """Where a request is in its text."""

    def __init__(self, ids: list[int]):
        self.rest = iter(ids)


class Forced(LogitsProcessor):
    """Leaves one token possible in each row that has a text."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self.rows: dict[int, Text] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        process_dict_updates(self.rows, batch_update, self.text_of)

    @staticmethod
    def text_of(params, prompt: list[int] | None, output: list[int]) -> Text | None:
        """Of a new request; None for one that is free."""
        ids = (params.extra_args or {}).get("forced")
        return Text(ids) if ids else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """One step."""
        for row, text in self.rows.items():
            token = next(text.rest, None)
            if token is not None:  # an engine that steps ahead takes one more
                logits[row].fill_(float("-inf"))
                logits[row, token] = 0.0
        return logits
