// SPDX-License-Identifier: Apache-2.0
//! The first step of a call: from router choices to rows grouped by expert, chunk by chunk.

use super::forward::LayerCall;
use super::kernels::{Kernel, ROUTE_CLUSTER, ROUTE_COUNT, ROUTE_SCAN, ROUTE_SCATTER, ROUTE_SMALL, THREADS, params};
use crate::call::TopkIds;
use crate::error::Result;

impl LayerCall<'_> {
    /// What routing reads and writes.
    pub fn route_params(&self) -> params::RouteParams {
        let (plan, args, config) = (self.plan, self.args, self.config);
        let (topk_ids, topk_ids_are_i64) = match args.topk_ids {
            TopkIds::I32(ids) => (ids.cast(), 0),
            TopkIds::I64(ids) => (ids.cast(), 1),
        };
        params::RouteParams {
            tables: params::RoutingTables {
                slot_to_row: plan.slot_to_row.pointer(self.base),
                row_to_slot: plan.row_to_slot.pointer(self.base),
                row_offsets: plan.row_offsets.pointer(self.base),
                row_counts: plan.row_counts.pointer(self.base),
                groups: plan.groups.pointer(self.base),
                chunk_first_token: plan.chunk_first_token.pointer(self.base),
            },
            segment_counts: plan.segment_counts.pointer(self.base),
            segment_totals: plan.segment_totals.pointer(self.base),
            status: self.layer.device.status(),
            topk_ids,
            topk_ids_row_stride: args.topk_ids_row_stride as i64,
            expert_map: args.expert_map,
            topk_ids_are_i64,
            num_tokens: args.num_tokens as i32,
            top_k: config.top_k as i32,
            num_experts: config.num_experts as i32,
            num_local_experts: config.num_local_experts as i32,
            first_local_expert: config.first_local_expert as i32,
            num_segments: plan.segments as i32,
            segment_tokens: plan.segment_tokens as i32,
            chunk_slots: plan.chunk_slots as i32,
            num_chunks: plan.chunks as i32,
            chunk_rows: plan.rows as i32,
            row_alignment: plan.row_alignment as i32,
            tile_rows: plan.tile_rows as i32,
            widest_first: plan.widest_first.into(),
        }
    }

    /// Enqueue the routing of all chunks.
    ///
    /// # Safety
    /// Ids and map are device memory as the header states, and the device is entered.
    pub unsafe fn route(&self) -> Result<()> {
        let (plan, config, params) = (self.plan, self.config, self.route_params());
        let local = config.num_local_experts as u32;
        let (warp_bytes, routing_bytes) = (local * 4, self.layer.device.routing_bytes());
        // SAFETY: the tables are regions of the workspace; the caller vouches for ids and map.
        unsafe {
            if let Some(shared) = plan.one_block_routing(config, routing_bytes) {
                // A warp for each segment, and a thread for each expert.
                let threads =
                    (plan.segments as u32 * 32).max(local.next_multiple_of(32).min(params::ROUTE_SMALL_THREADS));
                return self.launch(ROUTE_SMALL.over([1, 1, 1]).with_threads(threads).sharing(shared), &params);
            }
            if let Some((warps, shared)) = plan.cluster_routing(config, self.layer.device.cluster_routing_bytes()) {
                let launch = ROUTE_CLUSTER.over([params::ROUTE_CLUSTER_BLOCKS, 1, 1]).with_threads(warps * 32);
                return self.launch(launch.sharing(shared), &params);
            }
            let warps = (routing_bytes / warp_bytes).clamp(1, THREADS / 32);
            let blocks = [(plan.segments as u32).div_ceil(warps), 1, 1];
            let by_segments = |kernel: Kernel| kernel.over(blocks).with_threads(warps * 32).sharing(warps * warp_bytes);
            self.launch(by_segments(ROUTE_COUNT), &params)?;
            self.launch(ROUTE_SCAN.over([1, 1, 1]), &params)?;
            self.launch(by_segments(ROUTE_SCATTER), &params)
        }
    }
}
