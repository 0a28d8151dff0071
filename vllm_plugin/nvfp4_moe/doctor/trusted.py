# SPDX-License-Identifier: Apache-2.0
"""Run by path, as a process of its own, and only with --trust: ask the checkpoint's own encoder, which is its code.

argv: the encoder's file; stdin: a list of {"messages", "thinking_mode", "reasoning_effort"}; stdout as of render.py.
"""

import importlib.util
import json
import sys


def main() -> None:
    """`encode_messages` is what DeepSeek calls it."""
    spec = importlib.util.spec_from_file_location("encoder", sys.argv[1])
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    results = []
    for run in json.load(sys.stdin):
        try:
            results.append({"text": encoder.encode_messages(run.pop("messages"), **run)})
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
