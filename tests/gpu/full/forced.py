# SPDX-License-Identifier: Apache-2.0
"""A text that every engine decodes, whatever it would have chosen: so all engines are judged on the same contexts.

vLLM loads the class by `logits_processors=["full.forced:Forced"]`. A request with `extra_args={"forced": ids}` gets
those ids; its logprobs are the model's own, since vLLM takes them before processors act.
"""

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates


class Forced(LogitsProcessor):
    """Leaves one token possible in each row that has a text: the next, by how many the request has.

    vLLM has that list, and counts tokens whose ids it does not know yet. A count of steps would not do: under pipeline
    parallel a request leaves the batch between its steps, and is new each time.
    """

    def __init__(self, vllm_config, device, is_pin_memory):
        self.rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        process_dict_updates(self.rows, batch_update, self.text_of)

    @staticmethod
    def text_of(params, prompt: list[int] | None, output: list[int]) -> tuple[list[int], list[int]] | None:
        """A new request's text and its tokens so far; None for one that is free."""
        ids = (params.extra_args or {}).get("forced")
        return (ids, output) if ids else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """One step."""
        for row, (ids, output) in self.rows.items():
            if len(output) < len(ids):  # an engine that steps ahead takes one more
                logits[row].fill_(float("-inf"))
                logits[row, ids[len(output)]] = 0.0
        return logits
