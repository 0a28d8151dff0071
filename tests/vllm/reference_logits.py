# SPDX-License-Identifier: Apache-2.0
"""A served model's tokens against Hugging Face transformers in float32 on the decoded weights, teacher-forced.

    python tests/vllm/reference_logits.py FLOAT32_MODEL SERVED_JSON [LOGITS_NPY]

Each served token is judged on its own: the reference sees the prompt and the served tokens before it. Prints one JSON
line with, for every token, in units of the standard deviation of what is compared:

    deficit  how far its reference logit lies below the best one
    margin   how far the reference's second choice does
    routing  how far the first expert that was not chosen lies below the last that was, least over the layers

LOGITS_NPY gets the logits of every token themselves, [prompts, tokens, vocabulary]; prompts have equally many tokens.
"""

import json
import sys

import numpy
import torch


class RoutingGaps:
    """Watches the routers of a model: the least gap at each position of the last forward."""

    def __init__(self, model):
        self.gaps: torch.Tensor | None = None
        for module in model.modules():
            if type(module).__name__.lower().endswith("topkrouter"):  # hash routers choose by the token alone
                module.register_forward_hook(self.observe)

    def observe(self, router, inputs, outputs) -> None:
        scores = outputs[0].float()
        bias = getattr(router, "e_score_correction_bias", None)
        if bias is not None:
            is_sigmoid = type(router).__name__.startswith("NemotronH")  # else DeepSeek-V4's
            scores = (scores.sigmoid() if is_sigmoid else torch.nn.functional.softplus(scores).sqrt()) + bias
        best = scores.topk(router.top_k + 1).values
        gaps = (best[:, -2] - best[:, -1]) / scores.std(-1)
        self.gaps = gaps if self.gaps is None else torch.minimum(self.gaps, gaps)


def logits_of(model, routing: RoutingGaps, prompt: list[int], tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """For every token: a row of logits, and the routing gap."""
    routing.gaps = None
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0].float()
    at = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    return logits[at], routing.gaps[at]


def judge(rows: torch.Tensor, gaps: torch.Tensor, tokens: list[int]) -> list[dict[str, float]]:
    judged = []
    for row, gap, token in zip(rows, gaps, tokens, strict=True):
        best, second = row.topk(2).values
        judged.append(
            {
                "deficit": float((best - row[token]) / row.std()),
                "margin": float((best - second) / row.std()),
                "routing": float(gap),
            }
        )
    return judged


def main() -> None:
    from transformers import AutoModelForCausalLM

    directory, served_file, *logits = sys.argv[1:]
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with open(served_file) as file:
        served = json.load(file)
    routing = RoutingGaps(model)
    prompts, tokens = served["prompts"], served["tokens"]
    found = [logits_of(model, routing, *pair) for pair in zip(prompts, tokens, strict=True)]
    judged = [judge(*rows, chosen) for rows, chosen in zip(found, tokens, strict=True)]
    for file in logits:
        numpy.save(file, torch.stack([rows for rows, _ in found]).numpy())
    print("JUDGED " + json.dumps(judged))


if __name__ == "__main__":
    main()
