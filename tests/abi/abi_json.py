# SPDX-License-Identifier: Apache-2.0
"""The C ABI as data: every constant, struct layout and prototype of include/*.h, read with libclang."""

import json
import subprocess
from pathlib import Path

from clang.cindex import Cursor, CursorKind, Index, TranslationUnit

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "include/nvfp4_moe.h"  # which includes its parts
GOLDEN = ROOT / "tests/golden/abi.json"


def struct_layout(cursor: Cursor) -> dict:
    """Size in bytes, and [name, type, offset] of each field. Padding is refused: bytes without a meaning."""
    fields, end = [], 0
    for field in cursor.type.get_fields():
        offset = cursor.type.get_offset(field.spelling) // 8
        if offset != end:
            raise ValueError(f"{cursor.spelling}.{field.spelling} is at byte {offset}; the field before ends at {end}.")
        fields.append([field.spelling, field.type.spelling, offset])
        end += field.type.get_size()
    if end != cursor.type.get_size():
        raise ValueError(f"{cursor.spelling} has {cursor.type.get_size()} bytes; its fields end at {end}.")
    if fields[0][:2] != ["struct_size", "uint32_t"]:
        raise ValueError(f"{cursor.spelling} starts with {fields[0]}; it must start with uint32_t struct_size.")
    return {"size": end, "fields": fields}


def read_header() -> dict:
    include = subprocess.run(["cc", "-print-file-name=include"], capture_output=True, text=True, check=True)
    unit = Index.create().parse(
        str(HEADER),
        args=["-xc", "-std=c11", f"-isystem{include.stdout.strip()}"],
        options=TranslationUnit.PARSE_DETAILED_PROCESSING_RECORD,
    )
    errors = [d.spelling for d in unit.diagnostics if d.severity >= 3]
    if errors:
        raise ValueError(f"{HEADER.name} does not parse: {errors}")
    constants, structs, functions = {}, {}, {}
    for cursor in unit.cursor.get_children():
        if cursor.location.file is None or Path(cursor.location.file.name).parent != HEADER.parent:
            continue
        tokens = [token.spelling for token in cursor.get_tokens()]
        if cursor.kind == CursorKind.MACRO_DEFINITION and len(tokens) == 2 and "_VERSION_" not in tokens[0]:
            constants[tokens[0]] = int(tokens[1], 0)
        elif cursor.kind == CursorKind.STRUCT_DECL and cursor.is_definition():
            structs[cursor.spelling] = struct_layout(cursor)
        elif cursor.kind == CursorKind.FUNCTION_DECL:
            functions[cursor.spelling] = cursor.type.spelling
    return {"constants": constants, "structs": structs, "functions": functions}


def as_text(abi: dict) -> str:
    """JSON with one constant, field and function on a line, so that a change of the ABI is a small diff."""
    lines = ["{", '  "constants": {']
    lines += [f"    {json.dumps(name)}: {value}," for name, value in abi["constants"].items()]
    lines[-1] = lines[-1].rstrip(",")
    lines += ["  },", '  "structs": {']
    for name, struct in abi["structs"].items():
        lines.append(f'    {json.dumps(name)}: {{"size": {struct["size"]}, "fields": [')
        lines += [f"      {json.dumps(field)}," for field in struct["fields"]]
        lines[-1] = lines[-1].rstrip(",")
        lines.append("    ]},")
    lines[-1] = lines[-1].rstrip(",")
    lines += ["  },", '  "functions": {']
    lines += [f"    {json.dumps(name)}: {json.dumps(prototype)}," for name, prototype in abi["functions"].items()]
    lines[-1] = lines[-1].rstrip(",")
    return "\n".join([*lines, "  }", "}", ""])
