# SPDX-License-Identifier: Apache-2.0
"""What vLLM's own code makes of layers that the plugin must not touch, as on an H100; see select_on_cuda.py.

    python tests/vllm/left_alone_on_cuda.py

Prints one JSON line: for each case the class that serves the layer, and what the log says.
"""

import json
import logging

import select_on_cuda as on_cuda
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.kernels import linear as vllm_linear
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config
from vllm.model_executor.layers.quantization.quark.quark import QuarkConfig

from nvfp4_moe import plugin
from nvfp4_moe.plugin import linear_parameters, support

FP4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 16, "ch_axis": -1, "symmetric": True}
FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
QUARK = {
    "quant_method": "quark", "exclude": [], "layer_quant_config": {}, "layer_type_quant_config": {},
    "kv_cache_quant_config": {}, "global_quant_config": {
        "weight": [FP4 | {"is_dynamic": False}, FP8], "input_tensors": [FP4 | {"is_dynamic": True}, FP8],
        "output_tensors": None, "bias": None,
    },
    "export": {"kv_cache_group": [], "min_kv_scale": 0.0, "pack_method": "reorder", "weight_format": "real_quantized"},
}  # fmt: skip


def quark() -> QuarkConfig:
    config = QuarkConfig.from_config(QUARK)
    config.packed_modules_mapping = {}
    return config


def experts(quantization, **changes) -> dict:
    """Which experts a layer gets."""
    layer = object.__new__(RoutedExperts)
    torch.nn.Module.__init__(layer)
    layer.moe_config = on_cuda.moe_config(swiglu_limit=None, **changes)
    on_cuda.logged.clear()
    method = layer._get_quant_method("model.layers.1.mlp.experts", quantization, layer.moe_config)
    return {"class": method.experts_cls.__name__, "method": type(method).__name__, "logged": list(on_cuda.logged)}


def linear(dtype: torch.dtype, known: bool) -> dict:
    """Which kernel a linear gets once it is looked at; vLLM's own does not run here, so its work is left out."""
    on_cuda.logged.clear()
    with set_current_vllm_config(VllmConfig()):
        kernel = vllm_linear.init_nvfp4_linear_kernel()
        layer = torch.nn.Module()
        layer.params_dtype, layer.prefix = dtype, "model.layers.0.o_proj"
        if known:
            linear_parameters.keep(layer, torch.ones(1), {})
        chosen = type(kernel).vllms_own

        def without_its_work(self, refusal):
            found = chosen(self, refusal)
            found.process_weights_after_loading = lambda layer: None
            return found

        type(kernel).vllms_own = without_its_work
        kernel.process_weights_after_loading(layer)
        type(kernel).vllms_own = chosen
    return {"class": type(kernel.instead).__name__, "logged": list(on_cuda.logged)}


def main() -> None:
    plugin.register()
    logger = logging.getLogger("vllm.nvfp4_moe")
    logger.addHandler(on_cuda.Logged())
    logger.setLevel(logging.INFO)
    support.device_refusal = lambda device_type: None
    support.layer_refusal = lambda device_type, **options: None
    modelopt = ModelOptNvFp4Config(is_checkpoint_nvfp4_serialized=True)
    cases = {
        "modelopt": lambda: experts(modelopt),
        "quark": lambda: experts(quark()),
        "float16 experts": lambda: experts(modelopt, in_dtype=torch.float16),
        "float16 linear": lambda: linear(torch.float16, known=True),
        "linear of an unknown method": lambda: linear(torch.bfloat16, known=False),
    }
    print("LEFT " + json.dumps({name: ask() for name, ask in cases.items()}))


if __name__ == "__main__":
    main()
