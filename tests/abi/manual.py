# SPDX-License-Identifier: Apache-2.0
"""Is every statement of the C headers held by a test? The answer is the table statements.md, checked here."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "include/nvfp4_moe.h"
PART = ROOT / "include/nvfp4_moe_checkpoint.h"
TABLE = Path(__file__).with_name("statements.md")
# A comment, and the code before it on its line: `int32_t top_k;` gives the comment its subject.
COMMENT = re.compile(r"^(?P<code>[^\n]*?)/\*(?P<text>.*?)\*/", re.MULTILINE | re.DOTALL)
SUBJECT = re.compile(r"(?:#define (\w+)|(\w+);)")
NO_TEST = {"caller", "definition", "heading"}  # statements.md says what they mean


def statements_of_header() -> str:
    """All comments as one text; one behind a field or a macro begins with its name."""
    texts = []
    for comment in COMMENT.finditer(HEADER.read_text() + PART.read_text()):
        subject = SUBJECT.search(comment["code"])
        lines = [re.sub(r"^\s*\*", "", line) for line in comment["text"].split("\n")]
        name = next((f"{group}:" for group in subject.groups() if group), "") if subject else ""
        texts.append(" ".join([name, *lines]))
    return " ".join(" ".join(texts).split())


def example() -> str:
    """A program around the lines of "One layer, start to end": a layer of one expert on the CPU, of zeros."""
    text = HEADER.read_text().split("-----\n")[1].split(" *\n")[0]
    lines = [line.removeprefix(" * ").rstrip() for line in text.splitlines()]
    sizes = ".intermediate_size = 16, .num_experts = 1, .num_local_experts = 1, .top_k = 1"
    body = "\n".join(line.replace("...", sizes) for line in lines)
    calls = re.sub(
        r"^ *(nvfp4_moe_layer_(?!destroy)\w+\()(.*)\);", r"  if (\1\2) != NVFP4_MOE_OK) return 1;", body, flags=re.M
    )
    return EXAMPLE.replace("BODY", calls)


EXAMPLE = r"""
#include <stdio.h>
#include <string.h>
#include "nvfp4_moe.h"

static uint8_t w13[32 * 2048], w13_scale[32 * 256], w2[4096 * 8], w2_scale[4096];
static float w13_global[2] = {1, 1}, w2_global[1] = {1};
static uint16_t x[4096], out[4096];
static int32_t ids[1];

int main(void) {
  nvfp4_moe_layer_weights weights = {sizeof weights, 0, w13,       w13_scale, w13_global, w2,
                                     w2_scale,       w2_global, 0, 0,         NULL,       NULL};
  nvfp4_moe_layer_args args = {.struct_size = sizeof args, .num_tokens = 1, .x = x, .topk_ids = ids, .out = out};
  uint64_t storage_bytes = 1, workspace_bytes = 0;
  int32_t max_tokens = 1;
  void *storage = NULL;
  struct CUstream_st *stream = NULL;
  memset(out, 0xff, sizeof out);
BODY
  for (int i = 0; i < 4096; i++)
    if (out[i] != 0) return 2;
  if (storage_bytes != 0 || workspace_bytes == 0) return 3;
  puts("compiles, links, runs");
  return 0;
}
"""


def rows() -> list[tuple[str, list[str]]]:
    """The table: each statement, and the tests that hold it."""
    cells = [line.strip("|").rsplit(" | ", 1) for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [(text.strip().replace(r"\|", "|"), held.strip().split(", ")) for text, held in cells[1:]]


def first_difference(table: str, header: str) -> str:
    at = next((i for i, pair in enumerate(zip(table, header)) if pair[0] != pair[1]), min(len(table), len(header)))
    return f"the table has `{table[max(0, at - 60) : at + 60]}`, the header `{header[max(0, at - 60) : at + 60]}`"


def missing_tests(names: list[str]) -> list[str]:
    """Those of the form `file test` for which no file of that name has such a word."""
    files = [path for folder in ("tests", "rust") for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    missing = []
    for name in set(names) - NO_TEST:
        file, _, test = name.partition(" ")
        word = re.compile(rf"\b{re.escape(test)}\b")
        if not test or not any(word.search(path.read_text()) for path in files if path.name == file):
            missing.append(name)
    return sorted(missing)


def check() -> str:
    """The table's statements, read downwards, are the header's text, and their tests exist."""
    table = rows()
    text, header = " ".join(text for text, _ in table), statements_of_header()
    if text != header:
        raise ValueError(f"statements.md is not the header's text: {first_difference(text, header)}")
    if missing := missing_tests([name for _, held in table for name in held]):
        raise ValueError(f"statements.md names tests that are not there: {missing}")
    held = sum(NO_TEST.isdisjoint(tests) for _, tests in table)
    return f"{held} statements held by tests, {len(table) - held} duties of the caller, definitions and headings"
