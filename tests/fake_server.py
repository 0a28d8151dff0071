# SPDX-License-Identifier: Apache-2.0
"""A small OpenAI-compatible server with a toy model, and the faults that are planted in it.

A plant is (name, attribute of Engine, what it is replaced with, the finding it must cause). To add one, add a line.
"""

import contextlib
import json
import math
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VOCABULARY = 300


class Engine:
    """Samples as vLLM does: biases, then penalties, then the best."""

    def __init__(self, tokens_of_a_chat: list[int]):
        self.tokens_of_a_chat = tokens_of_a_chat
        self.in_flight, self.asked = 0, 0
        self.lock = threading.Lock()

    def logits(self, ids: list[int], request: dict) -> list[float]:
        """Of the next token: random by the last two ids, with one that leads clearly."""
        generator = random.Random(f"{ids[-2:]}")
        logits = [generator.uniform(-5, 5) for _ in range(VOCABULARY)]
        logits[generator.randrange(VOCABULARY)] += 20
        return logits

    def bias(self, logits: list[float], request: dict) -> None:
        for number, value in (request.get("logit_bias") or {}).items():
            logits[int(number)] += value

    def repeat(self, logits: list[float], prompt: list[int], output: list[int], penalty: float) -> None:
        for number in {*prompt, *output}:
            logits[number] *= 1 / penalty if logits[number] > 0 else penalty

    def count(self, logits: list[float], output: list[int], frequency: float, presence: float) -> None:
        for number in set(output):
            logits[number] -= frequency * output.count(number) + presence

    def choose(self, logits: list[float], request: dict) -> int:
        return max(range(VOCABULARY), key=logits.__getitem__)

    def batch(self, together: int, prompt: list[int]) -> list[int]:
        """What the model sees of a prompt, in a batch."""
        return prompt

    def cached(self, prompt: list[int], request: dict) -> list[int]:
        """What it sees through the prefix cache."""
        return prompt

    def logprob(self, value: float) -> float:
        return value

    def complete(self, request: dict) -> dict:
        given = request["prompt"]
        prompt = given if isinstance(given, list) else [ord(char) % VOCABULARY for char in given]
        seen = self.cached(self.batch(self.together(), prompt), request)
        output, logprobs, tops = [], [], []
        for _ in range(request["max_tokens"]):
            logits = self.logits(seen + output, request)
            self.bias(logits, request)
            self.repeat(logits, prompt, output, request.get("repetition_penalty", 1.0))
            self.count(logits, output, request.get("frequency_penalty", 0), request.get("presence_penalty", 0))
            total = math.log(sum(map(math.exp, (value - max(logits) for value in logits)))) + max(logits)
            best = sorted(range(VOCABULARY), key=logits.__getitem__)[-2:]
            output.append(self.choose(logits, request))
            logprobs.append(self.logprob(logits[output[-1]] - total))
            tops.append({f"t{number}": logits[number] - total for number in best})
        tokens = [f"t{number}" for number in output]
        said = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops}
        return {"choices": [{"text": " ".join(tokens), "finish_reason": "length", "logprobs": said}]}

    def together(self) -> int:
        """How many requests are computed at the same time."""
        with self.lock:
            self.in_flight += 1
            self.asked += 1
        time.sleep(0.02)
        with self.lock:
            together = self.in_flight
        time.sleep(0.02)
        with self.lock:
            self.in_flight -= 1
        return together

    def chat(self, request: dict) -> dict:
        return {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]}

    def tokenize(self, request: dict) -> dict:
        return {"tokens": self.tokens_of_a_chat}


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """Its URL, while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            known = {"/v1/models": {"data": [{"id": "toy", "max_model_len": 2048}]}, "/version": {"version": "0.33"}}
            self.answer(known.get(self.path))

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            does = {
                "/v1/completions": engine.complete,
                "/v1/chat/completions": engine.chat,
                "/tokenize": engine.tokenize,
            }.get(self.path)
            self.answer(does(request) if does else None)

        def answer(self, value):
            error = isinstance(value, Exception) or value is None
            body = json.dumps(value if not error else {"error": str(value)}).encode()
            self.send_response((500 if isinstance(value, Exception) else 404) if error else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


HEALTHY_LOGITS, HEALTHY_REPEAT = Engine.logits, Engine.repeat


def output_only(self, logits, prompt, output, penalty):
    HEALTHY_REPEAT(self, logits, [], output, penalty)


def length(self, request):
    return {"choices": [{"message": {"content": "Paris. " * 200}, "finish_reason": "length"}]}


def looping(self, request):
    return {"choices": [{"message": {"content": "so so so so so so so so so so"}, "finish_reason": "stop"}]}


def empty(self, request):
    message = {"content": "", "reasoning_content": "The user asks for a capital."}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


PLANTED = [
    ("penalty not applied", "repeat", lambda self, *_: None, "penalty-not-applied"),
    ("penalty applied without the prompt", "repeat", output_only, "penalty-does-not-see-the-prompt"),
    ("frequency and presence penalty not applied", "count", lambda self, *_: None, "penalty-not-applied"),
    ("answers depend on the batch", "batch", lambda self, together, prompt: prompt[: 5 - together], "batch-differs"),
    (
        "answers depend on the past",
        "logits",
        lambda self, ids, r: HEALTHY_LOGITS(self, [self.asked], r),
        "greedy-differs",
    ),
    (
        "a cached block of another request",
        "cached",
        lambda self, prompt, request: prompt if "cache_salt" in request else [7],
        "prefix-cache-differs",
    ),
    (
        "chunks of a long prompt are lost",
        "batch",
        lambda self, together, prompt: prompt[:100] if together > 1 else prompt,
        "long-prompt-differs",
    ),
    ("NaN logprobs", "logprob", lambda self, value: float("nan"), "logprobs-not-finite"),
    (
        "NaN that JSON cannot say",
        "complete",
        lambda self, r: ValueError("not JSON compliant: nan"),
        "logprobs-not-finite",
    ),
    ("the engine fails inside", "complete", lambda self, request: RuntimeError("CUDA error"), "server-error"),
    (
        "temperature 0 is ignored",
        "choose",
        lambda self, logits, r: sorted(range(300), key=logits.__getitem__)[-2],
        "temperature-0-is-not-greedy",
    ),
    ("answers never end", "chat", length, "answer-does-not-end"),
    ("answers loop", "chat", looping, "answer-loops"),
    ("answers are empty", "chat", empty, "answer-is-empty"),
    (
        "the chat's prompt lacks its end",
        "tokenize",
        lambda self, r: {"tokens": self.tokens_of_a_chat[:-11]},
        "no-generation-prompt",
    ),
    (
        "the chat's prompt has two BOS",
        "tokenize",
        lambda self, r: {"tokens": [256, *self.tokens_of_a_chat]},
        "bos-doubled",
    ),
]
