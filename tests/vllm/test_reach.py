# SPDX-License-Identifier: Apache-2.0
"""Who in vLLM can reach our hooks, read from the source of the vLLM that is installed.

A class that vLLM has grown since fails here until somebody has looked at it: is it served, or does it go back to vLLM?
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

SERVED, LEFT = "ours, where its layer is supported", "left to vLLM"

# Methods that ask the NVFP4 MoE oracle while our experts are on offer, and what derives from them.
MOE_METHODS = {
    "ModelOptNvFp4FusedMoE": SERVED,  # DeepSeek-V4's mixed checkpoints too
    "CompressedTensorsW4A4Nvfp4MoEMethod": SERVED,
    "QuarkNvfp4MoEMethod": LEFT,  # input_scale_2, and bf16 scales
    "Nvfp4OnlineMoEMethod": LEFT,  # quantises at load, for its own kernel
    "MuseSparkModelOptNvFp4FusedMoE": LEFT,  # hooks into its kernel's second GEMM
}
# The same for MXFP4.
MXFP4_METHODS = {
    "Mxfp4MoEMethod": SERVED,  # DeepSeek-V4 as its authors publish it
    "GptOssMxfp4MoEMethod": SERVED,
    "CompressedTensorsW4A4Mxfp4MoEMethod": SERVED,  # asks only for two backends, which are explicit; else we ask for it
    "CompressedTensorsW4A8Mxfp4MoEMethod": LEFT,  # its activations are e4m3 by the file
    "DeepseekV4HeterogeneousMxfp4MoEMethod": LEFT,  # of a layer that is left: shared experts among the routed
    "INCMxfp4MoEMethod": LEFT,
    "MuseSparkOnlineMXFP4FusedMoE": LEFT,
    "MuseSparkQuarkOCPMXFusedMoE": LEFT,
    "Mxfp4OnlineMoEMethod": LEFT,  # quantises at load, for its own kernel
    "QuarkOCP_MX_MoEMethod": LEFT,
}
# Layers. What is left is named in the log, with the reason.
ROUTED_EXPERTS = {
    "RoutedExperts": SERVED,
    "DbrxExperts": LEFT,
    "DeepseekV4HeterogeneousSharedRoutedExperts": LEFT,
    "GptOssRoutedExperts": SERVED,
    "MuseSparkConsolidatedRoutedExperts": LEFT,  # a base of the next
    "MuseSparkRoutedExperts": LEFT,
    "SubstitutedRoutedExperts": LEFT,
    "TransformersRoutedExperts": SERVED,
}
# What asks for an NVFP4 linear kernel.
LINEAR_METHODS = {
    "ModelOptNvFp4LinearMethod": SERVED,  # 0.26
    "ModelOptLinearMethod": SERVED,  # later: through select_linear_kernel
    "CompressedTensorsW4A4Fp4": SERVED,
    "select_linear_kernel": SERVED,
    "QuarkNVFP4": LEFT,
    "_LMHeadNvfp4Method": LEFT,  # W4A16, for which vLLM does not ask plugins
}


@cache
def classes() -> dict[str, tuple[set[str], set[str]]]:
    """Every class and module-level function of vLLM by name: (bases, functions that it calls)."""
    root = Path(importlib.util.find_spec("vllm").origin).parent
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in (*root.glob("model_executor/**/*.py"), *root.glob("models/**/*.py"), *root.glob("lora/**/*.py")):
        text = path.read_text()
        if not any(word in text for word in ("nvfp4", "NvFp4", "Nvfp4", "RoutedExperts", "NVFP4", "mxfp4_moe_backend")):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                bases = {name_of(base) for base in getattr(node, "bases", ())}
                calls = {name_of(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                known = found.setdefault(node.name, (set(), set()))
                known[0].update(bases)
                known[1].update(calls)
    return found


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def callers(*functions: str) -> set[str]:
    return {name for name, (_, calls) in classes().items() if calls & set(functions)}


def with_subclasses(names: set[str]) -> set[str]:
    """And all that derives from them."""
    found = set(names)
    while more := {name for name, (bases, _) in classes().items() if bases & found} - found:
        found |= more
    return found


def test_every_method_that_asks_the_moe_oracle_is_known():
    found = with_subclasses(callers("select_nvfp4_moe_backend"))
    assert found - {"select_nvfp4_moe_backend"} <= set(MOE_METHODS)
    assert {name for name, fate in MOE_METHODS.items() if fate == SERVED} <= found


def test_every_method_that_asks_the_oracle_for_mxfp4_is_known():
    asking = ("select_mxfp4_moe_backend", "select_deepseek_v4_mxfp4_moe_backend")
    found = with_subclasses(callers(*asking)) - set(asking)
    assert found <= set(MXFP4_METHODS)
    assert "Mxfp4MoEMethod" in found


def test_every_layer_of_routed_experts_is_known():
    found = with_subclasses({"RoutedExperts"})
    assert found <= set(ROUTED_EXPERTS)
    assert "RoutedExperts" in found


def test_every_method_that_asks_for_a_linear_kernel_is_known():
    found = with_subclasses(callers("init_nvfp4_linear_kernel")) - {"init_nvfp4_linear_kernel"}
    assert found <= set(LINEAR_METHODS)
    assert callers("select_linear_kernel") <= {"ModelOptLinearMethod", "select_linear_kernel"}


def test_layers_are_served_or_have_a_reason():
    from nvfp4_moe.plugin import moe

    assert set(moe.LAYERS) == {name for name, fate in ROUTED_EXPERTS.items() if fate == SERVED}
    for name, fate in ROUTED_EXPERTS.items():
        refusal = moe.class_refusal(type(name, (), {}))
        assert (refusal is None) == (fate == SERVED)
        assert refusal is None or refusal.startswith(f"{name} is another class of experts")


def test_the_plugin_serves_what_this_list_says():
    from nvfp4_moe import plugin
    from nvfp4_moe.plugin import linear_install, moe

    plugin.register()
    all_methods = MOE_METHODS | MXFP4_METHODS
    assert {cls.__name__ for cls in moe.SPECIALISED} == {n for n, fate in all_methods.items() if fate == SERVED}
    methods = {cls.__name__ for cls in linear_install.known_methods()}
    assert methods <= {name for name, fate in LINEAR_METHODS.items() if fate == SERVED}
    assert len(methods) == 2
