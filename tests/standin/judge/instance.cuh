// SPDX-License-Identifier: Apache-2.0
// CUTLASS's grouped NVFP4 GEMM with bf16 results, as its own examples configure it: ARCH is 100 (tcgen05, one
// multiprocessor) or 120 (mma.sync, two groups of warps in turns). Nothing of it is changed, and nothing of it ships:
// it is the kernel that is known to work on a Blackwell, by which the stand-in is judged.
#pragma once
#include <cuda_runtime.h>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/thread/linear_combination.h"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/dispatch_policy.hpp"
#include "cutlass/gemm/group_array_problem_shape.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"

namespace instance {
using namespace cute;

#if ARCH == 100
using Arch = cutlass::arch::Sm100;
using Tile = Shape<_128, _128, _256>;
using MainSchedule = cutlass::gemm::KernelPtrArrayTmaWarpSpecialized1SmNvf4Sm100;
using EpilogueSchedule = cutlass::epilogue::PtrArrayTmaWarpSpecialized1Sm;
#else
using Arch = cutlass::arch::Sm120;
using Tile = Shape<_128, _128, _128>;
using MainSchedule = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong;
using EpilogueSchedule = cutlass::epilogue::collective::EpilogueScheduleAuto;
#endif
using Cluster = Shape<_1, _1, _1>;
using Problem = cutlass::gemm::GroupProblemShape<Shape<int, int, int>>;
using Element = cutlass::nv_float4_t<cutlass::float_e2m1_t>;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using Class = cutlass::arch::OpClassBlockScaledTensorOp;
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    Arch, Class, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor*, 8,
    cutlass::bfloat16_t, RowMajor*, 8, EpilogueSchedule>::CollectiveOp;
using Main = typename cutlass::gemm::collective::CollectiveBuilder<
    Arch, Class, Element, RowMajor*, 32, Element, ColumnMajor*, 32, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
    MainSchedule>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Problem, Main, Epilogue>;

}  // namespace instance
