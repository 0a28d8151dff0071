# SPDX-License-Identifier: Apache-2.0
"""The library's C ABI by ctypes, for host_time.py: a layer's forward without torch. Structs as in nvfp4_moe.h."""

import ctypes
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p

CUDA, BF16 = 1, 1  # NVFP4_MOE_DEVICE_CUDA, NVFP4_MOE_MODE_BF16


def struct(name: str, **fields) -> type[ctypes.Structure]:
    """A struct of the header, whose first member is its size."""
    return type(name, (ctypes.Structure,), {"_fields_": [("struct_size", c_uint32), *fields.items()]})


def made(kind: type[ctypes.Structure], **values) -> ctypes.Structure:
    return kind(struct_size=ctypes.sizeof(kind), **values)


Desc = struct(
    "Desc", device_kind=c_int32, device_ordinal=c_int32, mode=c_int32, scale_policy=c_int32, hidden_size=c_int32,
    intermediate_size=c_int32, num_experts=c_int32, num_local_experts=c_int32, first_local_expert=c_int32,
    top_k=c_int32, swiglu_limit=c_float, swiglu_alpha=c_float, swiglu_beta=c_float,
)  # fmt: skip
Weights = struct(
    "Weights", up_first=c_int32, w13=c_void_p, w13_block_scale=c_void_p, w13_global_scale=c_void_p, w2=c_void_p,
    w2_block_scale=c_void_p, w2_global_scale=c_void_p, w13_input_scale=c_float, w2_input_scale=c_float,
)  # fmt: skip
Args = struct(
    "Args", num_tokens=c_int32, x=c_void_p, x_row_stride=c_int64, topk_ids=c_void_p, topk_ids_row_stride=c_int64,
    topk_ids_dtype=c_int32, num_experts_mapped=c_int32, topk_weights=c_void_p, topk_weights_row_stride=c_int64,
    expert_map=c_void_p, out=c_void_p, out_row_stride=c_int64, workspace=c_void_p, workspace_size=c_uint64,
)  # fmt: skip


class Library:
    """libnvfp4_moe.so with the few exports that a forward needs."""

    def __init__(self, path):
        self.c = ctypes.CDLL(str(path))
        self.c.nvfp4_moe_layer_create.argtypes = [c_void_p, POINTER(c_void_p)]
        self.c.nvfp4_moe_layer_prepare.argtypes = [c_void_p, c_void_p, c_void_p, c_uint64, c_void_p]
        self.c.nvfp4_moe_layer_forward.argtypes = [c_void_p, c_void_p, c_void_p]
        self.c.nvfp4_moe_layer_destroy.argtypes = [c_void_p]

    def check(self, status: int) -> None:
        if status:
            text = ctypes.create_string_buffer(1000)
            self.c.nvfp4_moe_last_error(text, ctypes.c_size_t(len(text)))
            raise RuntimeError(text.value.decode())

    def make_layer(self, weights: list[int], storage, stream: int, **desc: int) -> c_void_p:
        """A prepared layer over the addresses of the six tensors, and a tensor that holds its storage."""
        handle = c_void_p()
        self.check(self.c.nvfp4_moe_layer_create(byref(made(Desc, device_kind=CUDA, mode=BF16, **desc)), byref(handle)))
        given = Weights(ctypes.sizeof(Weights), 0, *weights)
        self.check(
            self.c.nvfp4_moe_layer_prepare(handle, byref(given), storage.data_ptr(), storage.numel(), c_void_p(stream))
        )
        return handle

    def forward(self, handle: c_void_p, stream: int, **arguments: int):
        """A call of the layer with these arguments, to be repeated, and one of the same kind that does nothing."""
        args, at = made(Args, **arguments), c_void_p(stream)
        run, address, nothing = self.c.nvfp4_moe_layer_forward, byref(args), self.c.nvfp4_moe_layer_destroy
        self.check(run(handle, address, at))
        return (lambda: run(handle, address, at)), (lambda: nothing(None))
