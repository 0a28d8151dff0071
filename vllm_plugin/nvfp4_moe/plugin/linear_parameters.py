"""What vLLM's parameters of one NVFP4 linear say, once vLLM has brought all checkpoint formats to one naming."""

import torch


def data(parameter: torch.Tensor) -> torch.Tensor:
    """The data without vLLM's tensor subclass."""
    return parameter.data.as_subclass(torch.Tensor)


def global_scales(layer) -> torch.Tensor:
    """f32 [num_parts], decoding: those that `keep_part_scales` kept, else the one that vLLM reduced them to."""
    kept = getattr(layer, "nvfp4_moe_part_scales", None)
    return data(layer.weight_global_scale).float().reshape(1) if kept is None else kept


def input_scale(layer) -> float:
    """The checkpoint's decoding input scale, the largest of the parts; 0 if there is none."""
    return getattr(layer, "nvfp4_moe_input_scale", 0.0)


def free_weights(layer) -> None:
    """Drop what is held elsewhere by now."""
    for name in ("weight", "weight_scale"):
        setattr(layer, name, torch.nn.Parameter(data(getattr(layer, name)).new_empty(0), requires_grad=False))
