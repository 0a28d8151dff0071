# SPDX-License-Identifier: Apache-2.0
"""What stands in for each instruction: a table of patterns of opcodes, and a function for each.

A function gets the statement and the options, and returns the text that takes its place. To add an instruction, add a
row to FORMS, and where it needs a function of its own, one to device/standin.cu.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ptx import Bytes, Predicate, Refused, Statement, Value, call, call_for, call_for_words, fresh, vector

SLOT = "%standin_slot"  # the running CTA's, a register of each kernel


@dataclass
class Options:
    """What the text of the PTX does not say."""

    # Two-dimensional tensor copies read maps of 4-bit elements, which are maps of bytes here.
    u4_loads: bool = False
    # Which tensormap.replace groups, in the order of the text, are such maps.
    u4_maps: tuple[int, ...] = ()
    map_index: int = -1
    # Are loads from tensor memory waited for before their registers are used?
    strict: bool = True


def arguments(statement: Statement, *values: Value | Bytes) -> list[Value | Bytes]:
    """What every function takes: the slot first, the line last."""
    return [Value(32, SLOT), *values, Value(32, str(statement.line))]


def refuse(statement: Statement, why: str = "it has no stand-in") -> Refused:
    return Refused(f"line {statement.line}: {statement.name}: {why}")


def require(statement: Statement, pattern: str) -> re.Match[str]:
    match = re.fullmatch(pattern, statement.name)
    if not match:
        raise refuse(statement)
    return match


def original(statement: Statement) -> str:
    return f"{statement.name} {', '.join(statement.operands)};"


# ---- tcgen05


def alloc(s: Statement, _: Options) -> str:
    require(s, r"tcgen05\.alloc\.cta_group::1\.sync\.aligned\.shared::cta\.b32")
    return call("standin_alloc", arguments(s, Value(32, s.operands[0]), Value(32, s.operands[1])), uniform=True)


def dealloc(s: Statement, _: Options) -> str:
    require(s, r"tcgen05\.dealloc\.cta_group::1\.sync\.aligned\.b32")
    return call("standin_dealloc", arguments(s, Value(32, s.operands[0]), Value(32, s.operands[1])), uniform=True)


def relinquish(s: Statement, _: Options) -> str:
    require(s, r"tcgen05\.relinquish_alloc_permit\.cta_group::1\.sync\.aligned")
    return call("standin_relinquish", [Value(32, SLOT)], uniform=True)


# As enum Kind and Op::flags of device/standin.h.
KINDS = {"mxf4nvf4.block_scale.block16": 0, "mxf4nvf4.block_scale.scale_vec::4X": 0, "f16": 1, "f8f6f4": 2}
A_IN_TMEM, KIND_SHIFT = 2, 4


def mma(s: Statement, _: Options) -> str:
    kinds = "|".join(map(re.escape, KINDS))
    kind = KINDS[require(s, rf"tcgen05\.mma\.cta_group::1\.kind::({kinds})(\.collector::a::(discard|lastuse))?")[1]]
    scaled = kind == 0
    if len(s.operands) != (7 if scaled else 5):
        raise refuse(s, f"{len(s.operands)} operands: a form without stand-in")
    d, a, b, instruction = s.operands[:4]
    scales = s.operands[4:6] if scaled else ["0", "0"]
    flags = kind << KIND_SHIFT
    a_value, before = Value(64, a), ""
    if a.startswith("["):
        flags |= A_IN_TMEM
        wide, narrow = fresh("%stA"), fresh("%stA")
        before = f".reg .b64 {wide};\n.reg .b32 {narrow};\n{Value(32, a).load(narrow)}\ncvt.u64.u32 {wide}, {narrow};\n"
        a_value = Value(64, wide)
    values = [Value(32, d), a_value, Value(64, b), Value(32, instruction), *(Value(32, it) for it in scales)]
    text = call("standin_mma", arguments(s, *values, Predicate(s.operands[-1]), Value(32, str(flags))))
    return f"{{\n{before}{text}\n}}" if before else text


def copy(s: Statement, _: Options) -> str:
    require(s, r"tcgen05\.cp\.cta_group::1\.32x128b\.warpx4")
    return call("standin_copy", arguments(s, Value(32, s.operands[0]), Value(64, s.operands[1])))


def commit(s: Statement, _: Options) -> str:
    require(s, r"tcgen05\.commit\.cta_group::1\.mbarrier::arrive::one(\.shared::cluster)?\.b64")
    if ".shared::cluster" in s.name:
        return call("standin_commit", arguments(s, Value(32, s.operands[0])))
    wide, narrow = fresh("%stG"), fresh("%stG")
    to_shared = f"cvta.to.shared.u64 {wide}, {s.operands[0].strip('[] ')};\ncvt.u32.u64 {narrow}, {wide};"
    text = call("standin_commit", arguments(s, Value(32, narrow)))
    return f"{{\n.reg .b64 {wide};\n.reg .b32 {narrow};\n{to_shared}\n{text}\n}}"


def registers_of(s: Statement, operand: str, columns: int) -> list[str]:
    registers = vector(operand)
    if len(registers) != columns:
        raise refuse(s, f"{len(registers)} registers for {columns} columns")
    return registers


def load(s: Statement, _: Options) -> str:
    columns = int(require(s, r"tcgen05\.ld\.sync\.aligned\.32x32b\.x(\d+)\.b32")[1])
    registers = registers_of(s, s.operands[0], columns)
    then = [f"ld.volatile.b32 {register}, [$R+{512 * i}];" for i, register in enumerate(registers)]
    values = arguments(s, Value(32, s.operands[1]), Value(32, str(columns)))
    return call_for("standin_load", values, 64, then, uniform=True)


def store(s: Statement, _: Options) -> str:
    columns = int(require(s, r"tcgen05\.st\.sync\.aligned\.32x32b\.x(\d+)\.b32")[1])
    registers = registers_of(s, s.operands[1], columns)
    then = [f"st.volatile.b32 [$R+{512 * i}], {register};" for i, register in enumerate(registers)]
    values = arguments(s, Value(32, s.operands[0]), Value(32, str(columns)))
    return call_for("standin_store", values, 64, then, uniform=True)


def by_slot(function: str, *, uniform: bool) -> Callable[[Statement, Options], str]:
    return lambda s, _: call(function, [Value(32, SLOT)], uniform=uniform)


# ---- mma.sync with block scales


def mma_sync(s: Statement, _: Options) -> str:
    kind, shape = r"kind::mxf4nvf4\.block_scale\.scale_vec::4X", r"m16n8k64\.row\.col"
    require(s, rf"mma\.sync\.aligned\.({shape}\.{kind}|{kind}\.{shape})\.f32\.e2m1\.e2m1\.f32\.ue4m3")
    d, a, b, c, scale_a, selector_a, scale_b, selector_b = s.operands
    (byte_a, thread_a), (byte_b, thread_b) = vector(selector_a), vector(selector_b)
    if any(byte != "0" and not byte.startswith("%") for byte in (byte_a, byte_b)):
        raise refuse(s, "byte ids must be 0 with scale_vec::4X")
    name = fresh("%stS")
    half = f"{name}h"
    selectors = [
        f".reg .b32 {name}, {name}b; .reg .b16 {half};",
        f"mov.b16 {half}, {thread_a};", f"cvt.u32.u16 {name}, {half};",
        f"mov.b16 {half}, {thread_b};", f"cvt.u32.u16 {name}b, {half};",
        f"shl.b32 {name}b, {name}b, 1;", f"or.b32 {name}, {name}, {name}b;",
    ]  # fmt: skip
    one = lambda operand: Value(32, operand.strip("{} "))  # noqa: E731
    values = [Bytes(vector(c), 16), Bytes(vector(a), 16), Bytes(vector(b), 8), one(scale_a), one(scale_b)]
    text = call_for_words("standin_mma_sync", arguments(s, *values, Value(32, name)), vector(d))
    return "\n".join(["{", *selectors, text, "}"])


# ---- what Hopper has, watched


def wait(s: Statement, _: Options) -> str:
    if ".parity" not in s.name or ".shared" not in s.name or len(s.operands) < 3:
        raise refuse(s, "another form of wait")
    done, barrier, parity = s.operands[:3]
    after = call("standin_waited", arguments(s, Value(32, barrier), Value(32, parity), Predicate(done)))
    return f"{original(s)}\n{after}"


def arrive(s: Statement, _: Options) -> str:
    return f"{call('standin_arrive', arguments(s))}\n{original(s)}"


def bulk(s: Statement, options: Options) -> str:
    is_tensor = ".tensor." in s.name
    size = "0" if is_tensor else s.operands[2]
    before = call("standin_bulk", arguments(s, Value(32, s.operands[0]), Value(32, size)))
    if not (options.u4_loads and ".tensor.2d." in s.name):
        return f"{before}\n{original(s)}"
    map_, first, rest = re.fullmatch(r"\[([^,]+), \{([^,]+), ([^}]+)\}\]", s.operands[1]).groups()
    half = fresh("%stU")
    s.operands[1] = f"[{map_}, {{{half}, {rest}}}]"
    return f"{before}\n{{\n.reg .b32 {half};\nshr.s32 {half}, {first}, 1;\n{original(s)}\n}}"


def replace_map(s: Statement, options: Options) -> str:
    if s.operands[1] == "0":
        options.map_index += 1
        if options.map_index in options.u4_maps:
            half = fresh("%stU")
            s.operands[2], whole = half, s.operands[2]
            return f"{{\n.reg .b32 {half};\nshr.u32 {half}, {whole}, 1;\n{original(s)}\n}}"
    return original(s)


def nothing(_s: Statement, _: Options) -> str:
    return ""


def leave(s: Statement, _: Options) -> str:
    return f"{call('standin_leave', [Value(32, SLOT)])}\n{s.name};"


def refused(s: Statement, _: Options) -> str:
    raise refuse(s)


FORMS: list[tuple[str, Callable[[Statement, Options], str]]] = [
    (r"tcgen05\.alloc\b", alloc),
    (r"tcgen05\.dealloc\b", dealloc),
    (r"tcgen05\.relinquish_alloc_permit\b", relinquish),
    (r"tcgen05\.mma\.", mma),
    (r"tcgen05\.cp\.", copy),
    (r"tcgen05\.commit\.", commit),
    (r"tcgen05\.ld\.", load),
    (r"tcgen05\.st\.", store),
    (r"tcgen05\.wait::ld\b", by_slot("standin_wait_load", uniform=True)),
    (r"tcgen05\.wait::st\b", by_slot("standin_wait_store", uniform=True)),
    (r"tcgen05\.fence::after_thread_sync$", by_slot("standin_fence_after", uniform=False)),
    (r"tcgen05\.fence::before_thread_sync$", by_slot("standin_fence_before", uniform=False)),
    (r"tcgen05\.", refused),
    (r"mma\.sync\..*block_scale", mma_sync),
    (r"mbarrier\.(try|test)_wait\.", wait),
    (r"mbarrier\.arrive", arrive),
    (r"cp\.async\.bulk\.(tensor\.\dd\.)?shared::(cta|cluster)\.global", bulk),
    (r"tensormap\.replace\.tile\.global_dim", replace_map),
    (r"setmaxnreg\.", nothing),  # called functions need registers
]
# Of a kernel that has any of the above.
ENDS = re.compile(r"ret|exit")
# Those alone do not make a module one for the stand-in.
HOPPER_HAS = re.compile(r"mbarrier|cp\.async|tensormap|setmaxnreg")


def form_of(name: str) -> Callable[[Statement, Options], str] | None:
    return next((form for pattern, form in FORMS if re.match(pattern, name)), None)
