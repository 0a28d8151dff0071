// SPDX-License-Identifier: Apache-2.0
//! `kernels/route/segments.cuh` against `LayerPlan`: no slot is left out, no chunk is ever too full.

use nvfp4_moe::activation::Activation;
use nvfp4_moe::config::{Device, KernelChoice, LayerConfig, Mode, ScalePolicy};
use nvfp4_moe::cuda::facts::{self as host, LayerPlan};
use nvfp4_moe_oracle::facts::{self, Routing};

/// The last is as many as slots can be numbered.
const TOKENS: [usize; 13] = [1, 2, 31, 33, 100, 1023, 1024, 1025, 4096, 8192, 12345, 65536, i32::MAX as usize];

/// Layers with their plans, and as the kernels see them.
fn plans() -> impl Iterator<Item = (LayerConfig, LayerPlan, Routing)> {
    let layers = [(7168, 3072, 384, 48, 6), (4096, 2048, 256, 256, 8), (64, 16, 7, 7, 1), (64, 16, 512, 3, 33)];
    let cases = layers.into_iter().flat_map(|layer| TOKENS.map(|tokens| (layer, tokens)));
    cases.flat_map(|(layer, tokens)| {
        let (hidden_size, intermediate_size, num_experts, num_local_experts, top_k) = layer;
        let tokens = tokens.min(i32::MAX as usize / top_k);
        let config = LayerConfig {
            device: Device::Cuda(0, KernelChoice::Own),
            mode: Mode::Bf16,
            scale_policy: ScalePolicy::Dynamic,
            hidden_size,
            intermediate_size,
            num_experts,
            num_local_experts,
            first_local_expert: 0,
            top_k,
            activation: Activation::swiglu(0.0, 0.0, 0.0).expect("plain SwiGLU"),
            has_bias: false,
            tile_rows: None,
            fp8_max_error: 0.0,
            scale_block_size: 16,
        };
        let plans = host::plans(&config, tokens).expect("a plan");
        plans.into_iter().map(move |plan| {
            let routing = Routing {
                num_tokens: tokens as i32,
                top_k: top_k as i32,
                num_local_experts: num_local_experts as i32,
                num_segments: plan.segments as i32,
                segment_tokens: plan.segment_tokens as i32,
                chunk_slots: plan.chunk_slots as i32,
            };
            (config.clone(), plan, routing)
        })
    })
}

#[test]
fn segments_hold_every_slot_once() {
    for (_, plan, routing) in plans() {
        let mut end = 0;
        for segment in 0..plan.segments {
            let slots = facts::slots_of_segment(&routing, segment as i32);
            assert!(slots.first == end && slots.end > slots.first, "{slots:?} after {end}: {routing:?}");
            assert_eq!(slots.first % routing.top_k as u32, 0, "a token lies in one segment");
            end = slots.end;
        }
        assert_eq!(end, (routing.num_tokens * routing.top_k) as u32, "{routing:?}");
    }
}

#[test]
fn chunks_have_room_for_what_is_routed_to_them() {
    // Of a segment's slots, those that are routed here.
    let routings: [fn(u32, u32) -> u32; 5] = [
        |slots, _| slots,
        |_, _| 0,
        |slots, segment| if segment % 2 == 0 { slots } else { 0 },
        |slots, segment| slots.min(segment),
        |slots, segment| segment.wrapping_mul(0x9e37_79b9) % (slots + 1),
    ];
    for (_, plan, routing) in plans() {
        for routed in routings {
            let (mut rows, mut before) = (vec![0; plan.chunks], 0);
            for segment in 0..plan.segments {
                let slots = facts::slots_of_segment(&routing, segment as i32);
                let chunk = facts::chunk_of(&routing, before as i32) as usize;
                assert_eq!(chunk, before as usize / plan.chunk_slots, "{routing:?}");
                let routed = routed(slots.end - slots.first, segment as u32);
                rows[chunk] += routed as usize;
                before += routed;
            }
            assert!(rows.iter().all(|rows| *rows <= plan.rows), "{rows:?} of {}: {routing:?}", plan.rows);
        }
    }
}

#[test]
fn one_block_routing_asks_for_what_its_kernel_keeps() {
    let mut small = 0;
    for (config, plan, routing) in plans() {
        if let Some(bytes) = plan.one_block_routing(&config, host::ROUTE_SHARED_BYTES) {
            assert_eq!(bytes, facts::small_routing_bytes(&routing), "{routing:?}");
            small += 1;
        }
    }
    assert!(small > 20, "only {small} plans route in one block");
}

#[test]
fn cluster_routing_has_a_warp_for_every_segment() {
    let mut clusters = 0;
    for (config, plan, routing) in plans() {
        if let Some((warps, bytes)) = plan.cluster_routing(&config, host::ROUTE_SHARED_BYTES) {
            assert_eq!(bytes, facts::cluster_routing_bytes(&routing, warps), "{routing:?}");
            assert!(
                warps <= 32 && warps as usize * host::ROUTE_CLUSTER_BLOCKS as usize >= plan.segments,
                "{routing:?}"
            );
            clusters += 1;
        }
    }
    assert!(clusters > 20, "only {clusters} plans route in one cluster");
}
