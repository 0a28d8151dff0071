#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The GEMMs of kernels/sm120/ alone, on Hopper with the stand-in, against float64. Ends with PASS or FAIL.

    LD_PRELOAD=standin_driver.so STANDIN_CALLERS=_ctypes check.py sm120_few.cubin sm120_prepare.cubin

Ragged groups of rows that are gathered by slot; an expert without rows; fewer columns than slabs hold; gates and ups,
biases; h quantised within GEMM1, whose bytes are compared with those of the law; NaN in all that must not be read.
"""

import ctypes
import sys
from pathlib import Path

import torch

POINTER, I32, I64, F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
TILE_BYTES, SHARED_BYTES = 2304, 101376
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
TOP_K = 3
SWIGLU, NONE = 0, 7


def struct(name: str, **fields: object) -> type:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# As in kernels/params.h, tile_params.h and sm120/params.h.
TileList = struct("TileList", groups=POINTER, m_tiles=I32, num_rows=I32, tile_rows=I32, last_group=I32)
Activation = struct("Activation", kind=I32, limit=F32, alpha=F32, beta=F32)
GemmParams = struct(
    "GemmParams", list=TileList, tiles=POINTER, expert_stride=I64, alphas=POINTER, x=POINTER, x_row_stride=I64,
    row_scale=POINTER, row_to_slot=POINTER, out=POINTER, bias=POINTER, out_row_stride=I64, top_k=I32, k_valid=I32,
    num_slabs=I32, features=I32, activation=Activation, tiles_known=I32,
)  # fmt: skip
RowSource = struct(
    "RowSource", slot_to_row=POINTER, row_to_slot=POINTER, first_row_on_device=POINTER, end_row_on_device=POINTER,
    num_rows=I32, top_k=I32, rows_known=I32, reserved=I32,
)  # fmt: skip
QuantizerInput = struct(
    "QuantizerInput", source=RowSource, status=POINTER, row_to_token_slot=POINTER, x=POINTER, x_row_stride=I64
)
QuantizeParams = struct(
    "QuantizeParams", input=QuantizerInput, decoded=POINTER, packed=POINTER, block_scale=POINTER, row_scale=POINTER,
    static_scale=POINTER, next_scale=POINTER, next_scale_copy=POINTER, num_cols=I32, line_rows=I32,
)  # fmt: skip
WaitBound = struct("WaitBound", record=POINTER, nanoseconds=I64, kernel=I32, reserved=I32)
GemmSm120Params = struct("GemmSm120Params", gemm=GemmParams, x_block_scale=POINTER, h=QuantizeParams, wait=WaitBound)
PrepareSource = struct("PrepareSource", codes=POINTER, block_scale=POINTER, expert_stride=I64, rows=I32, cols=I32)
PrepareParams = struct(
    "PrepareParams", source=PrepareSource, tiles=POINTER, scales=POINTER, num_slabs=I32, row_order=I32, rounded=I32,
    reserved=I32,
)  # fmt: skip


class Driver:
    """Modules of cubins, and launches that are waited for."""

    def __init__(self, *paths: str):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.modules = []
        for path in paths:
            module = POINTER()
            self.must("cuModuleLoadData", ctypes.byref(module), Path(path).read_bytes())
            self.modules.append(module)

    def must(self, call: str, *arguments: object) -> None:
        if status := getattr(self.cuda, call)(*arguments):
            raise SystemExit(f"{call} is {status}; it must be 0.\nFAIL")

    def launch(self, kernel: str, grid: tuple[int, ...], threads: int, shared: int, params: ctypes.Structure) -> None:
        function = POINTER()
        if all(self.cuda.cuModuleGetFunction(ctypes.byref(function), it, kernel.encode()) for it in self.modules):
            raise SystemExit(f"no module has {kernel}.\nFAIL")
        if shared:
            self.must("cuFuncSetAttribute", function, 8, shared)
        torch.cuda.synchronize()
        arguments = (POINTER * 1)(ctypes.addressof(params))
        self.must("cuLaunchKernel", function, *grid, threads, 1, 1, shared, None, arguments, None)
        self.must("cuCtxSynchronize")


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.float8_e4m3fn).to(torch.float64)


def poison(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda").view(dtype).view(shape)


def swizzled_offset(row: torch.Tensor, col: torch.Tensor, cols: int) -> torch.Tensor:
    tile = row // 128 * ((cols + 3) // 4) + col // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + col % 4


class Nvfp4:
    """Random rows of codes and block scales, and what they stand for."""

    def __init__(self, generator: torch.Generator, *shape: int):
        *rows, cols = shape
        random = lambda low, high, *size: torch.randint(low, high, size, generator=generator, dtype=torch.uint8)  # noqa: E731
        self.packed = random(0, 256, *rows, cols // 2)
        self.scale = random(0x20, 0x48, *rows, cols // 16)
        codes = torch.stack([self.packed & 15, self.packed >> 4], dim=-1).reshape(*rows, cols).long()
        self.values = E2M1[codes] * e4m3(self.scale).repeat_interleave(16, dim=-1)

    def swizzled(self) -> torch.Tensor:
        rows, cols = self.scale.shape
        out = poison(-(-rows // 128) * 128 * (-(-cols // 4) * 4))
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        out[swizzled_offset(row, col, cols).cuda()] = self.scale.cuda()
        return out


class Weights:
    """A matrix of each expert in tiles, as the kernel that prepares leaves it."""

    def __init__(self, driver: Driver, generator: torch.Generator, experts: int, rows: int, cols: int, gated: bool):
        self.source = Nvfp4(generator, experts, rows, cols)
        self.m_tiles, self.slabs = -(-rows // 64), -(-cols // 64)
        self.tiles = poison(experts, self.m_tiles * self.slabs * TILE_BYTES)
        codes, scales = self.source.packed.cuda(), self.source.scale.cuda()
        source = PrepareSource(codes.data_ptr(), scales.data_ptr(), self.tiles.shape[1], rows, cols)
        params = PrepareParams(source, self.tiles.data_ptr(), None, self.slabs, int(gated))
        driver.launch("prepare_tiles_sm120", (-(-self.slabs // 4), self.m_tiles, experts), 128, 0, params)


class Case:
    """A GEMM over ragged groups, in one of its forms."""

    def __init__(self, driver: Driver, kind: str, mode: str, n: int, cols: int, features: int, group_rows: list[int]):
        generator = torch.Generator().manual_seed(n + cols + features)
        gated, experts, total = kind == "gemm1", len(group_rows), sum(group_rows)
        rows = features * (2 if gated else 1)
        self.driver, self.kind, self.mode, self.n, self.cols, self.features = driver, kind, mode, n, cols, features
        self.weights = Weights(driver, generator, experts, rows, cols, gated)
        tokens = total // 2 + 1
        slots = torch.randint(0, tokens * TOP_K, (total,), generator=generator, dtype=torch.int32)
        self.slots = slots.cuda()
        groups, first_row, first_tile, self.expert_of_row = [], 0, 0, torch.zeros(total, dtype=torch.long)
        for expert, count in enumerate(group_rows):
            if count:
                groups.append([expert, first_row, count, first_tile])
            self.expert_of_row[first_row : first_row + count] = expert
            first_row, first_tile = first_row + count, first_tile - (-count // n)
        groups += [[-1, first_row, 0, first_tile]] * (experts + 2 - len(groups))
        self.groups, self.last_group = torch.tensor(groups, dtype=torch.int32).cuda(), experts + 1
        self.alphas = torch.rand(experts, 2, generator=generator) + 0.5
        self.bias = torch.randn(experts, rows, generator=generator).bfloat16()
        self.row_scale = torch.rand(tokens, generator=generator) + 0.5
        if mode == "nvfp4":
            x = Nvfp4(generator, tokens, cols)
            self.x, self.x_scale, values = x.packed.cuda(), x.swizzled(), x.values * self.row_scale[:, None]
        else:  # a view, of a linear such that 16 bytes may be copied, else not
            skip, extra = (0, 8) if kind == "linear" else (1, 3)
            view = poison(tokens, cols + extra, dtype=torch.bfloat16)[:, skip : cols + skip]
            view.copy_(torch.randn(tokens, cols, generator=generator))
            self.x, values = view, view.cpu().double()
        self.wanted = self.reference(values[slots.long() // TOP_K])

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        weights, expert = self.weights.source.values, self.expert_of_row
        sums = torch.stack([x[row] @ weights[e].T for row, e in enumerate(expert)])
        if self.kind == "linear":
            return sums * self.alpha_of_feature().double() + self.bias[0].double()
        half = self.features
        if self.kind == "gemm2":
            return sums * self.alphas[expert, :1].double() + self.bias[expert].double()
        both = sums.view(-1, 2, half) * self.alphas[expert][:, :, None].double() + self.bias[expert].view(-1, 2, half)
        gate, up = both[:, 0].clamp(max=7.0), both[:, 1].clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.7 * gate) * (up + 1.0)

    def alpha_of_feature(self) -> torch.Tensor:
        return torch.linspace(0.5, 1.5, self.features)

    def run(self, fused: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total, linear = len(self.slots), self.kind == "linear"
        out = poison(total, self.features, dtype=torch.bfloat16)
        # One slice an expert, of tiles, factors and biases, as rust/cuda/storage.rs has it.
        parts = [self.weights.tiles, self.alphas.cuda().view(torch.uint8), self.bias.cuda().view(torch.uint8)]
        offsets, width = [], 0
        for part in parts:
            offsets.append(width)
            width = -(-(width + part.shape[1]) // 256) * 256
        storage = poison(len(self.alphas), width)
        for at, part in zip(offsets, parts, strict=True):
            storage[:, at : at + part.shape[1]] = part
        tiles, alphas, bias = (storage.data_ptr() + at for at in offsets)
        row_scale, by_feature = self.row_scale.cuda(), self.alpha_of_feature().cuda()
        nvfp4 = self.mode == "nvfp4"
        params = GemmSm120Params()
        params.gemm = GemmParams(
            TileList(self.groups.data_ptr(), self.weights.m_tiles, 0, self.n, self.last_group), tiles, width,
            by_feature.data_ptr() if linear else alphas, self.x.data_ptr(), self.cols if nvfp4 else self.x.stride(0),
            row_scale.data_ptr() if nvfp4 else None, self.slots.data_ptr(), out.data_ptr(), bias, self.features, TOP_K,
            self.cols, self.weights.slabs, self.features,
            Activation(SWIGLU, 7.0, 1.7, 1.0) if self.kind == "gemm1" else Activation(NONE), 1,
        )  # fmt: skip
        if nvfp4:
            params.x_block_scale = self.x_scale.data_ptr()
        blocks = self.features // 16
        packed, scales = poison(total, self.features // 2), poison(-(-total // 128) * 128 * (-(-blocks // 4) * 4))
        status, h_scale = torch.zeros(5, dtype=torch.int64).cuda(), torch.tensor([self.h_scale()]).cuda()
        of_rows, record = poison(total, dtype=torch.float32), torch.zeros(2, dtype=torch.int64).cuda()
        if fused:
            params.h.input.status, params.h.input.row_to_token_slot = status.data_ptr(), self.slots.data_ptr()
            params.h.input.source.top_k, params.h.num_cols = TOP_K, self.features
            params.h.packed, params.h.block_scale = packed.data_ptr(), scales.data_ptr()
            params.h.row_scale, params.h.static_scale = of_rows.data_ptr(), h_scale.data_ptr()
        params.wait = WaitBound(record.data_ptr(), 5_000_000_000, 1, 0)
        threads = 384 if self.n >= 64 else 256
        name = f"{self.kind}_{self.mode}_sm120_n{self.n}"
        self.driver.launch(name, (7, 1, 1), threads, SHARED_BYTES, params)
        if not fused:
            return out
        assert torch.all(of_rows == h_scale), "row scales of h"
        row, col = torch.meshgrid(torch.arange(total), torch.arange(blocks), indexing="ij")
        return packed, scales[swizzled_offset(row, col, blocks).cuda()], status

    def h_scale(self) -> float:
        return float(self.wanted.abs().max()) / (6 * 448) / 2  # so that some blocks saturate

    def check(self) -> bool:
        out = self.run().cpu().double()
        # bf16's rounding of the result, and f32's of the sum.
        bound = self.wanted.abs() / 256 + 2e-3
        bad = int((~((out - self.wanted).abs() <= bound)).sum())
        ok, text = bad == 0, f"{bad} of {out.numel()} beyond rounding"
        if self.kind == "gemm1" and self.mode == "nvfp4":
            packed, scales, status = self.run(fused=True)
            wanted = quantize(out, self.h_scale())
            differ = int((packed.cpu() != wanted[0]).sum()), int((scales.cpu() != wanted[1]).sum())
            saturated = int(status[0]) == int(wanted[2])
            ok, text = ok and differ == (0, 0) and saturated, f"{text}; h: codes and scales that differ: {differ}, "
            text += f"saturated blocks {int(status[0])} of {int(wanted[2])}"
        what = f"{self.kind} {self.mode} n{self.n} K {self.cols} M {self.features} rows {self.groups[:, 2].tolist()}"
        print(f"{'ok  ' if ok else 'BAD '} {what}: {text}")
        return ok


def quantize(h: torch.Tensor, global_scale: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """By the law of rust/format/block.rs: codes, block scales, how many saturated."""
    one = torch.tensor(1.0, dtype=torch.float32)
    encode = one / torch.tensor(global_scale, dtype=torch.float32)
    sixth = encode / torch.tensor(6.0, dtype=torch.float32)
    blocks = h.float().view(h.shape[0], -1, 16)
    wanted = blocks.abs().amax(-1) * sixth
    scale = wanted.clamp(max=448.0).to(torch.float8_e4m3fn)
    decoded = scale.float()
    factor = torch.where(decoded == 0, torch.zeros_like(decoded), encode / decoded)
    x = (blocks * factor[..., None]).clamp(-6.0, 6.0)
    borders = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    below = (x.abs()[..., None] > borders).sum(-1)
    tie = (x.abs()[..., None] == borders).any(-1) & (below % 2 == 1)  # to the even code
    codes = below + tie.long() + 8 * torch.signbit(x).long()
    codes = codes.view(h.shape[0], -1, 2)
    packed = (codes[..., 0] | codes[..., 1] << 4).to(torch.uint8)
    return packed, scale.view(torch.uint8), int((wanted > 448.0).sum())


def main() -> int:
    torch.zeros(1, device="cuda")
    driver = Driver(*sys.argv[1:])
    ok = True
    for mode in ("nvfp4", "bf16"):
        for n, rows in ((16, [5, 0, 16, 37]), (64, [64, 3, 0, 150])):
            ok &= Case(driver, "gemm1", mode, n, 272, 208, rows).check()
            ok &= Case(driver, "gemm2", mode, n, 1072, 144, rows).check()
            ok &= Case(driver, "linear", mode, n, 640, 328, [sum(rows)]).check()
    print("PASS" if ok else "FAIL")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
