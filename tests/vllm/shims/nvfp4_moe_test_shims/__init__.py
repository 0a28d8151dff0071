# SPDX-License-Identifier: Apache-2.0
"""Test-only: what vLLM's CPU build lacks for DeepSeek-V4 and NVFP4, one function for each, and a test control.

Nothing here touches the NVFP4 path under test except the control, which only acts when its variable is set.
"""

import contextlib
import importlib
import importlib.abc
import os
import sys
from collections import defaultdict

from . import collectives, deepseek_v4, eplb, linears

ZERO_MOE = "NVFP4_MOE_TEST_ZERO_MOE"


def register() -> None:
    """vLLM calls this in every process, beside the plugin under test."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for name, patch in PatchOnImport.patches.items():
        if name in sys.modules:  # a worker may have unpickled something that imports it
            patch(sys.modules[name])
    sys.meta_path.insert(0, PatchOnImport())
    torch_topk_softmax()
    plain_workspaces()
    collectives.install()
    experts_without_a_gate()
    linears.unquantised()
    linears.fp8_blocks()
    with contextlib.suppress(ImportError):  # vLLM 0.26 has no such router
        deepseek_v4.patch_router(importlib.import_module("vllm.model_executor.layers.fused_moe.router.cpu_router"))
    if os.environ.get(eplb.VARIABLE) == "1":
        eplb.install()
    if os.environ.get(ZERO_MOE) == "1":
        zero_moe()


def zero_moe() -> None:
    """Negative control: the experts add nothing. A model whose tokens do not change did not run them."""
    from nvfp4_moe.plugin.experts import Nvfp4MoeExperts

    Nvfp4MoeExperts.apply = lambda self, output, *args, **kwargs: output.zero_()


def torch_topk_softmax() -> None:
    """vLLM 0.26: the CPU build has no topk_softmax, which its modular MoE asks for."""
    import torch
    import vllm._custom_ops as custom_ops

    if hasattr(torch.ops, "_moe_C") and hasattr(torch.ops._moe_C, "topk_softmax"):
        return

    def topk_softmax(topk_weights, topk_ids, token_expert_indices, gating_output, renormalize=False, bias=None, *_):
        scores = gating_output.float().softmax(-1)
        chosen = (scores if bias is None else scores + bias).topk(topk_weights.shape[-1]).indices
        weights = scores.gather(-1, chosen)
        topk_weights.copy_(weights / weights.sum(-1, keepdim=True) if renormalize else weights)
        topk_ids.copy_(chosen)

    custom_ops.topk_softmax = topk_softmax


def plain_workspaces() -> None:
    """vLLM 0.26: the CPU worker never makes the workspace manager that modular kernels use."""
    import torch
    from vllm.v1.worker import workspace

    class PlainWorkspaces:
        def get_simultaneous(self, *shapes_and_dtypes):
            return [torch.empty(shape, dtype=dtype) for shape, dtype in shapes_and_dtypes]

        def lock(self):
            pass

        unlock = lock

    if workspace._manager is None:
        workspace._manager = PlainWorkspaces()


def experts_without_a_gate() -> None:
    """vLLM refuses them on a CPU before it asks who could compute them, with the last line of its check."""
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

    check = FusedMoEConfig.__post_init__

    def checked(self):
        try:
            check(self)
        except NotImplementedError as refusal:
            if "is_act_and_mul=False" not in str(refusal):
                raise

    FusedMoEConfig.__post_init__ = checked


def sparse_attention_schedule(module) -> None:
    """vLLM 0.32, 0.33: the CPU metadata builder lacks the keys that sparse_swa reads (KeyError 'c1a')."""
    builder = module.DeepseekV4CPUSparseSWAMetadataBuilder
    builder.build_tile_scheduler = lambda self, num_tokens: defaultdict(lambda: None)


def unread_window_indices(module) -> None:
    """Indices for vLLM's own attention, which `deepseek_v4.patch_attention` replaces: 0.3 s a step when interpreted."""
    kernel = getattr(module, "_COMPUTE_SWA_INDICES_AND_LENS_KERNEL", None)
    if kernel is not None:  # 0.26 has none, and its tests no DeepSeek-V4
        type(kernel).__call__ = lambda *args, **kwargs: None


def input_scale_names(module) -> None:
    """vLLM 0.32, 0.33: the CPU model renames `.input_scale`, a rule for another vendor's files that loses NVFP4's."""
    original = module._make_deepseek_v4_weights_mapper

    def mapper(*args, **kwargs):
        made = original(*args, **kwargs)
        made.orig_to_new_suffix.pop(".input_scale", None)
        return made

    module._make_deepseek_v4_weights_mapper = mapper
    module.DeepseekV4ForCausalLM.hf_to_vllm_mapper.orig_to_new_suffix.pop(".input_scale", None)


class PatchOnImport(importlib.abc.MetaPathFinder):
    """Patches modules of models when vLLM imports them: a general plugin runs before it may import them itself."""

    patches = {  # noqa: RUF012
        "vllm.model_executor.layers.mhc": deepseek_v4.patch_mhc,
        "vllm.models.deepseek_v4.cpu.cpu_mla": sparse_attention_schedule,
        "vllm.models.deepseek_v4.cpu.cpu_sparse": deepseek_v4.patch_attention,
        "vllm.models.deepseek_v4.cpu.model": input_scale_names,
        "vllm.v1.attention.backends.mla.sparse_swa": unread_window_indices,
    }

    def find_spec(self, name, path, target=None):
        patch = self.patches.get(name)
        if patch is None:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec
