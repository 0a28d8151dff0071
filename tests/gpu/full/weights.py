# SPDX-License-Identifier: Apache-2.0
"""vLLM's load format `full_random`: valid random weights, made on the device, the same whatever kernels will read them.

Experts are NVFP4 with scales that are powers of two, block scales equal in pairs, as every cast of MXFP4 is: mode fp8
takes them as well, and so do kernels of MXFP4. What a tensor holds depends on its name and its shape, and an
expert's also on the rank that has it.
Rows have the size that keeps activations near 1, so that no kernel meets values that a trained model would not give it.
"""

import importlib
import math
import os
import zlib

import torch

from . import ahead

# Root mean square of uniformly random e2m1 codes.
E2M1_RMS = math.sqrt((0.5**2 + 1 + 1.5**2 + 2**2 + 3**2 + 4**2 + 6**2) / 8)
# Block scales, as e4m3 bits of 1, 2, 4 and 8, and their root mean square.
SCALE_BITS = (0x38, 0x40, 0x48, 0x50)
SCALE_RMS = math.sqrt((1 + 4 + 16 + 64) / 4)
# What a calibration would have seen: normalised inputs, and clamped activations.
INPUT_AMAX = {"w13": 8.0, "w2": 100.0}
PACKED_COLUMNS = 2


def generator_of(name: str, rank: int, device: torch.device) -> torch.Generator:
    """Random numbers of one tensor."""
    generator = torch.Generator(device)
    generator.manual_seed(zlib.crc32(f"{rank} {name}".encode()))
    return generator


def fill(name: str, tensor: torch.Tensor, columns: int, generator: torch.Generator) -> None:
    """Random values into a parameter; `columns` is K of a matrix, or the experts of a router."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf.endswith("weight_scale_2"):
        tensor.fill_(2.0 ** round(math.log2(columns**-0.5 / (E2M1_RMS * SCALE_RMS))))
    elif leaf.endswith("input_scale"):
        tensor.fill_(INPUT_AMAX["w2" if leaf.startswith("w2") else "w13"] / (6 * 448))
    elif leaf in ("w13_weight_scale", "w2_weight_scale"):
        pairs = torch.randint(0, len(SCALE_BITS), (*tensor.shape[:-1], tensor.shape[-1] // 2), device=tensor.device,
                              generator=generator)  # fmt: skip
        bits = torch.tensor(SCALE_BITS, dtype=torch.uint8, device=tensor.device)[pairs].repeat_interleave(2, -1)
        tensor.view(torch.uint8).copy_(bits)
    elif tensor.dtype == torch.uint8:
        tensor.random_(0, 256, generator=generator)
    elif leaf == "tid2eid":  # distinct experts of each token
        first = torch.randint(0, columns, (tensor.shape[0], 1), device=tensor.device, generator=generator)
        step = columns // tensor.shape[1]
        tensor.copy_((first + step * torch.arange(tensor.shape[1], device=tensor.device)) % columns)
    elif not tensor.is_floating_point():
        raise TypeError(f"{name} is {tensor.dtype}; this loader knows no values for it. Add a rule to weights.py.")
    elif tensor.dtype == torch.float8_e4m3fn:
        tensor.copy_(normal(tensor.shape, tensor.device, generator).mul_(64).clamp_(-448, 448))
    elif "scale" in leaf and "weight" in leaf:  # of 128 x 128 tiles of e4m3: a power of two, as ue8m0 asks
        power = -round(math.log2(64 * math.sqrt(128 * tensor.shape[-1])))
        tensor.copy_(torch.full(tensor.shape, 2.0**power, device=tensor.device))  # e8m0 knows copies alone
    elif leaf.endswith("_scale"):
        tensor.fill_(0.5)
    elif tensor.dim() < 2:
        tensor.fill_(0.0 if leaf in ("attn_sink", "e_score_correction_bias", "bias") or "base" in leaf else 1.0)
    else:
        gain = 1.0 if "embed" in name else tensor.shape[-1] ** -0.5
        tensor.copy_(normal(tensor.shape, tensor.device, generator).mul_(gain))


def normal(shape: torch.Size, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers; bf16, because whole matrices are made at once."""
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=generator)


def columns_of(name: str, tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> int:
    """What `fill` needs to know beside the tensor, from the one that goes with it."""
    if name.endswith("weight_scale_2"):
        return state[name.removesuffix("_scale_2")].shape[-1] * PACKED_COLUMNS
    if name.endswith("tid2eid"):
        return state[name.replace("tid2eid", "weight")].shape[0]
    return tensor.shape[-1] if tensor.dim() else 1


def is_made(name: str, tensor: torch.Tensor) -> bool:
    """Integers that are no parameter are the model's own, such as the map of a rank's experts."""
    is_index = tensor.dtype in (torch.int32, torch.int64) and not isinstance(tensor, torch.nn.Parameter)
    return not is_index or name.endswith("tid2eid")


def fill_model(model: torch.nn.Module, rank: int) -> None:
    """Fill every parameter, and the buffers that a checkpoint holds. What ranks share is the same in all."""
    tensors = {name: value for name, value in model.state_dict(keep_vars=True).items() if torch.is_tensor(value)}
    state = {name: tensor for name, tensor in tensors.items() if is_made(name, tensor)}
    for name, tensor in state.items():
        generator = generator_of(name, rank if ".experts." in name else 0, tensor.device)
        fill(name, tensor.data, columns_of(name, tensor, state), generator)


def register() -> None:
    """vLLM's entry point: name the load format, in every process; and import what the user asked for beside it.

    A process that will touch the GPU waits here for its turn.
    """
    ahead.wait()
    for name in filter(None, os.environ.get("FULL_PLUGINS", "").split(",")):
        importlib.import_module(name)
    from vllm.distributed.parallel_state import get_ep_group
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader("full_random")
    class RandomLoader(BaseModelLoader):
        """Fills what the model has made."""

        def download_model(self, model_config) -> None:
            """Nothing to download."""

        def load_weights(self, model, model_config) -> None:
            """Random values, by name."""
            with torch.no_grad():
                fill_model(model, get_ep_group().rank_in_group)
            model.load_weights(iter(()))  # nothing more, but what the model does once all is there
