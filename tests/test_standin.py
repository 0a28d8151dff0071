# SPDX-License-Identifier: Apache-2.0
"""The stand-in for Blackwell's tensor core, as far as it shows without a GPU: what is replaced, and what is refused."""

import ctypes
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/standin"))

import build
import forms
import ptx
import rewrite

STANDIN = """
.visible .func standin_commit(
	.param .b32 a, .param .b32 b, .param .b32 c
)
{
ret;
}
"""  # the declarations that a kernel gets are those of this text
KERNEL = """\
.version 9.0
.target sm_100f
.address_size 64
.visible .entry work(.param .b64 p)
{{
.reg .pred %p<4>; .reg .b32 %r<40>; .reg .b64 %rd<8>; .reg .f32 %f<8>;
{body}
ret;
}}
"""
MMA = "tcgen05.mma.cta_group::1.kind::"
SCALED_MMA_SYNC = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"
# Every form that our kernels and CUTLASS's have, and the function that stands in for it.
REPLACED = {
    "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 512;": "standin_alloc",
    "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r1, 512;": "standin_dealloc",
    "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;": "standin_relinquish",
    MMA + "mxf4nvf4.block_scale.block16 [%r1], %rd1, %rd2, %r2, [%r3], [%r4+4], %p1;": "standin_mma",
    MMA + "mxf4nvf4.block_scale.scale_vec::4X [%r1], %rd1, %rd2, %r2, [%r3], [%r4], !%p1;": "standin_mma",
    MMA + "f16 [%r1], [%r2+8], %rd2, %r3, %p1;": "standin_mma",
    MMA + "f16.collector::a::discard [%r1], %rd1, %rd2, %r3, %p1;": "standin_mma",
    MMA + "f8f6f4 [%r1], %rd1, %rd2, %r3, %p1;": "standin_mma",
    "tcgen05.cp.cta_group::1.32x128b.warpx4 [%r1], %rd1;": "standin_copy",
    "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r1];": "standin_commit",
    "tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%rd1];": "standin_commit",
    "tcgen05.ld.sync.aligned.32x32b.x2.b32{%r10, %r11}, [%r1];": "standin_load",
    "tcgen05.st.sync.aligned.32x32b.x1.b32 [%r1], {%r10};": "standin_store",
    "tcgen05.wait::ld.sync.aligned;": "standin_wait_load",
    "tcgen05.wait::st.sync.aligned;": "standin_wait_store",
    "tcgen05.fence::after_thread_sync;": "standin_fence_after",
    "tcgen05.fence::before_thread_sync;": "standin_fence_before",
    SCALED_MMA_SYNC + " {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4}, {%r7}, {0, 1}, {%r8}, {0, 3};":  # noqa: E501
        "standin_mma_sync",
    SCALED_MMA_SYNC.replace(".m16n8k64.row.col", "").replace("4X", "4X.m16n8k64.row.col")
    + " {%f1,%f2,%f3,%f4},{%r1,%r2,%r3,%r4},{%r5,%r6},{%f1,%f2,%f3,%f4},{%r7},{%rs1,%rs2},{%r8},{%rs1,%rs2};":
        "standin_mma_sync",
}  # fmt: skip
# With something beside it that makes the kernel one for the stand-in.
WATCHED = {
    "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2;": "standin_waited",
    "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2, 100;": "standin_waited",
    "mbarrier.arrive.shared::cta.b64 _, [%r1];": "standin_arrive",
    "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r3];": "standin_bulk",
    "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];":
        "standin_bulk",
}  # fmt: skip
REFUSED = (
    "tcgen05.shift.cta_group::1.down [%r1];",
    "tcgen05.cp.cta_group::1.128x256b [%r1], %rd1;",
    "tcgen05.mma.cta_group::2.kind::f16 [%r1], %rd1, %rd2, %r3, %p1;",
    "tcgen05.mma.cta_group::1.kind::i8 [%r1], %rd1, %rd2, %r3, %p1;",
    MMA + "f16 [%r1], %rd1, %rd2, %r3, {%r4, %r5, %r6, %r7}, %p1;",
    "tcgen05.ld.sync.aligned.16x256b.x1.b32 {%r1, %r2, %r3, %r4}, [%r5];",
    "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r1, %r2, %r3}, [%r5];",
    "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%r1], %r2;",
    SCALED_MMA_SYNC.replace("mxf4nvf4", "mxf4") + " {%f1}, {%r1}, {%r5}, {%f1}, {%r7}, {0, 1}, {%r8}, {0, 3};",
)
FENCE = "tcgen05.fence::after_thread_sync;\n"


def rewritten(body: str) -> str:
    return rewrite.rewrite(KERNEL.format(body=body), STANDIN)[0]


@pytest.mark.parametrize("instruction", REPLACED)
def test_what_only_blackwell_has_becomes_a_call(instruction):
    text = rewritten(instruction)
    assert f"{REPLACED[instruction]}, (" in text
    assert "tcgen05" not in text
    assert "block_scale" not in text


@pytest.mark.parametrize("instruction", WATCHED)
def test_what_hopper_has_stays_and_is_watched(instruction):
    text = rewritten(FENCE + instruction)
    assert f"{WATCHED[instruction]}, (" in text
    assert re.sub(r"\s+", " ", instruction) in re.sub(r"\s+", " ", text)
    assert rewritten(instruction) == KERNEL.format(body=instruction).replace("sm_100f", "sm_90a"), "alone it is left"


@pytest.mark.parametrize("instruction", REFUSED)
def test_unknown_forms_are_refused_with_their_line(instruction):
    with pytest.raises(ptx.Refused, match=rf"line 7: {re.escape(instruction.split()[0])}"):
        rewritten(instruction)


def test_a_kernel_claims_a_slot_and_gives_it_back_wherever_it_ends():
    text = rewritten(FENCE + "@%p1 ret;\n@!%p2 exit;")
    assert text.count("standin_enter, (") == 1
    assert text.count("standin_leave, (") == 3
    assert re.search(r"@!%p1 bra (\$STANDIN_\d+);\n\{[^}]*standin_leave[^}]*\}\nret;\n\1:", text)
    assert re.search(r"@%p2 bra (\$STANDIN_\d+);\n\{[^}]*standin_leave[^}]*\}\nexit;\n\1:", text)


def test_a_load_used_before_it_was_waited_for_is_refused():
    load = "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r10, %r11}, [%r1];\n"
    use, wait = "add.s32 %r5, %r11, 1;\n", "tcgen05.wait::ld.sync.aligned;\n"
    rewritten(load + wait + use)
    rewritten(load + "mov.b32 %f1, %r11;\n" + wait + use)
    with pytest.raises(ptx.Refused, match="%f1 is used before"):
        rewritten(load + "mov.b32 %f1, %r11;\nadd.f32 %f2, %f1, %f1;\n" + wait)
    with pytest.raises(ptx.Refused, match=r"line 8: %r11 is used before tcgen05.wait::ld; line 7 loads it"):
        rewritten(load + use + wait)


def test_a_function_that_is_not_inlined_is_refused():
    kernel = KERNEL.format(body="ret;") + ".func helper()\n{\n" + FENCE + "ret;\n}\n"
    with pytest.raises(ptx.Refused, match="in function helper, which is no kernel"):
        rewrite.rewrite(kernel, STANDIN)


def test_comments_and_line_information_change_nothing():
    body = '.loc 1 7 3, function_name $L__info, inlined_at 1 9 1\n// tcgen05.shift\n/* "x;" */ ' + FENCE
    assert "standin_fence_after" in rewritten(body)
    places = ptx.source_lines('.file 1 "a/gemm.cu"\n.loc 1 7 3\nx;\ny;\n.loc 1 9 1\nz;\n')
    assert places == {3: "gemm.cu:7", 6: "gemm.cu:9"}


def test_maps_of_4_bits_become_maps_of_bytes():
    copy = "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];"
    replace = "tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%rd1], 0, %r5;\n"
    text, _ = rewrite.rewrite(KERNEL.format(body=FENCE + copy + replace * 2), STANDIN, forms.Options(True, (1,)))
    assert len(re.findall(r"shr\.s32 %stU\d+, %r2, 1;", text)) == 1
    assert len(re.findall(r"shr\.u32 %stU\d+, %r5, 1;", text)) == 1


def test_threads_of_a_cta_see_whole_things_of_one_another(tmp_path):
    """What one asks of another's operations while they go on; each false alarm would be a mistake of nobody's."""
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    source = ROOT / "tests/standin/layouts/races.cpp"
    subprocess.run(["g++", *flags, source, "-o", tmp_path / "races"], check=True)
    done = subprocess.run([tmp_path / "races"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- with nvcc

SOURCES = [("100f", "kernels/sm100/gemm.cu"), ("120f", "tests/standin/sm120/few.cu")]


@pytest.fixture(scope="module")
def _nvcc():
    try:
        build.tool("nvcc")
        build.tool("nvlink")
    except SystemExit as missing:
        pytest.skip(str(missing))


@pytest.mark.usefixtures("_nvcc")
@pytest.mark.parametrize(("arch", "source"), SOURCES)
def test_our_kernels_assemble_for_hopper_with_the_stand_in(arch, source, tmp_path):
    if not (ROOT / source).exists():
        pytest.skip(f"{source} is not here")
    build.build(ROOT / source, arch, tmp_path / "out.cubin")
    assert b"standin_config" in (tmp_path / "out.cubin").read_bytes()
    assert (tmp_path / "out.lines").read_text()


def mutants_of(family: str):
    path = ROOT / "tests/standin" / family / "mutants.py"
    if not path.exists():
        pytest.skip(f"{family} has none")
    spec = importlib.util.spec_from_file_location(f"{family}_mutants", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # which its dataclasses ask for
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["sm100", "sm120"])
def test_planted_mistakes_are_where_their_list_says(family):
    """And those that have a name have one that there is. What finds them runs on Hopper: make gpu-standin."""
    module = mutants_of(family)
    names = set(re.findall(r"of\([\s\\]*(\w+),", (ROOT / "tests/standin/device/standin.h").read_text()))
    names |= {"", getattr(module, "WRONG", "")}
    assert len({row.name for row in module.MUTANTS}) == len(module.MUTANTS) >= 15
    for row in module.MUTANTS:
        assert (ROOT / "kernels" / family / row.file).read_text().count(row.old) == 1, row.name
        assert getattr(row, "found", "") in names, row.name


def sizes(source: str, folder: Path) -> list[int]:
    """What a C program prints that includes the kernels' parameters."""
    (folder / "sizes.c").write_text(source)
    subprocess.run(["cc", "-I", ROOT / "kernels", folder / "sizes.c", "-o", folder / "sizes"], check=True)
    return [int(word) for word in subprocess.run([folder / "sizes"], capture_output=True, text=True).stdout.split()]


def test_what_checks_the_kernels_of_12_x_hands_them_their_parameters(tmp_path):
    """check.py lays the structs out by itself: each field lies where the headers have it."""
    path = ROOT / "tests/standin/sm120/check.py"
    check = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("check", path))
    spec.loader.exec_module(check)
    structs = [check.GemmParams, check.QuantizeParams, check.GemmSm120Params, check.PrepareParams]
    parts = [f"sizeof({it.__name__})" for it in structs]
    parts += [f"offsetof({it.__name__}, {name})" for it in structs for name, _ in it._fields_]
    lines = "".join(f'printf("%zu\\n", (size_t){part});' for part in [*parts, "ACTIVATION_NONE"])
    head = '#include <stddef.h>\n#include <stdio.h>\n#include "all_params.h"\n'
    ours = [ctypes.sizeof(it) for it in structs]
    ours += [getattr(it, name).offset for it in structs for name, _ in it._fields_]
    assert sizes(f"{head}int main(void) {{ {lines} }}", tmp_path) == [*ours, check.NONE]
