# SPDX-License-Identifier: Apache-2.0
"""A running OpenAI-compatible server, asked with the standard library alone."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

from .finding import WrongUse
from .model import printable

SECONDS = 300  # for one answer: a cold server compiles in its first
MAX_ANSWER_BYTES = 1 << 26


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, text: str):
        super().__init__(f"HTTP {status}: {printable(text, 200)}")
        self.status = status


class Answer(NamedTuple):
    """One completion."""

    tokens: list[str]
    logprobs: list[float | None]  # of the chosen tokens
    tops: list[dict[str, float]]  # of the best few at each place
    text: str
    finish_reason: str | None

    def margin(self, at: int) -> float | None:
        """How far the best token leads the second there, in nats; None if the server did not say."""
        best = sorted((v for v in self.tops[at].values() if v is not None), reverse=True) if at < len(self.tops) else []
        return best[0] - best[1] if len(best) > 1 else None


class Server:
    """By its URL, with or without /v1."""

    def __init__(self, url: str, api_key: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise WrongUse(f"{printable(url)} is no URL of a server; it begins with http:// or https://.")
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        models = self.get("/v1/models").get("data") or [{}]
        self.model: str = models[0].get("id", "")
        self.max_model_len: int = models[0].get("max_model_len") or 4096

    @cached_property
    def is_vllm(self) -> bool:
        """Only vLLM answers /version; what order its sampler has is known."""
        try:
            return isinstance(self.get("/version").get("version"), str)
        except (OSError, ValueError, Refused):
            return False

    def get(self, path: str) -> dict[str, Any]:
        """A JSON object."""
        return self._answer(urllib.request.Request(self.url + path, headers=self.headers))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A JSON object for another."""
        data = json.dumps({"model": self.model} | body).encode()
        return self._answer(urllib.request.Request(self.url + path, data=data, headers=self.headers))

    def _answer(self, request: urllib.request.Request) -> dict[str, Any]:
        """Refused with the server's words; OSError if there is none; ValueError if it speaks no JSON."""
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                value = json.loads(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read(2000).decode(errors="replace")) from None
        if not isinstance(value, dict):
            raise ValueError(f"the answer to {request.selector} is a {type(value).__name__}; it must be a JSON object.")
        return value

    def complete(self, prompt: str | list[int], tokens: int = 24, **sampling) -> Answer:
        """Greedy, unless `sampling` says otherwise; ends of a turn are passed, so that all answers are as long."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 2, "ignore_eos": True}
        return completion(self.post("/v1/completions", body | sampling))

    def together(self, prompts: list, **sampling) -> list[Answer]:
        """All at the same time."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.complete(prompt, **sampling), prompts))


def completion(answer: dict) -> Answer:
    """Of /v1/completions; where there are no logprobs, letters stand for tokens."""
    try:
        choice = answer["choices"][0]
        text, said = choice.get("text") or "", choice.get("logprobs") or {}
        tokens = said.get("tokens") or list(text)
        tops = [top if isinstance(top, dict) else {} for top in said.get("top_logprobs") or []]
        return Answer(tokens, said.get("token_logprobs") or [], tops, text, choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer to /v1/completions lacks {error}; it must be OpenAI's.") from None
