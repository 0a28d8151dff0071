// SPDX-License-Identifier: Apache-2.0
//! The tile algorithm, over any instruction set.

use super::lanes::Lanes;
use super::rows::Rows;
use super::tile::{CACHE_LINE, MAX_TILE_TOKENS, TILE_ROWS, Tile, TileOut};
use std::mem::MaybeUninit;

/// Groups decoded at a time: 8 rows x 512 f32 values are half of a 32 KiB L1.
const CHUNK_GROUPS: usize = 4;

/// Values that an instruction set may reorder among themselves: operand rows hold each group in the order in which
/// weights are decoded.
pub const GROUP: usize = 128;

/// What an instruction set adds. All functions are inlined into one function compiled for it.
///
/// # Safety
/// An implementation may use instructions that not every CPU has; callers check. Pointers carry one `Op`,
/// unaligned.
pub unsafe trait Simd {
    /// Bytes of one operand vector.
    const OP_BYTES: usize;
    /// Bytes of one value in an operand vector: 4 (f32) or 2 (bf16).
    const VALUE_BYTES: usize;
    /// Operand vectors of a group.
    const GROUP_VECTORS: usize = GROUP * Self::VALUE_BYTES / Self::OP_BYTES;
    /// Weight rows and tokens (at most 3) whose accumulators fit the registers together.
    const ROWS: usize;
    /// See `ROWS`.
    const TOKENS: usize;
    /// Sums.
    type Acc: Lanes;
    /// Operand values.
    type Op: Copy;
    /// A group on its way from codes to operands, in registers.
    type Cursor;

    /// Load an operand vector.
    unsafe fn load_op(from: *const u8) -> Self::Op;
    /// `acc + w * x`, lane by lane.
    unsafe fn multiply_add(acc: Self::Acc, w: Self::Op, x: Self::Op) -> Self::Acc;
    /// Store an operand vector.
    unsafe fn store_op(to: *mut u8, value: Self::Op);
    /// Load one group: 64 code bytes and 8 scales.
    unsafe fn open_group(codes: *const u8, block_scales: *const u8) -> Self::Cursor;
    /// Operand vector `index` of the group, `e2m1 * block_scale`; called for each index in turn.
    unsafe fn decode(cursor: &mut Self::Cursor, index: usize) -> Self::Op;
}

/// One chunk of each row as operands, f32 being the larger, a cache line apart in the L1. Left uninitialised: clearing
/// it would cost a quarter of a tile of one token.
#[repr(align(64))]
struct Scratch([[MaybeUninit<u8>; SCRATCH_ROW]; TILE_ROWS]);

const SCRATCH_ROW: usize = CHUNK_GROUPS * GROUP * 4 + CACHE_LINE;

/// Widest accumulators.
const MAX_LANES: usize = 16;

/// `[token][row][lane]`
#[repr(align(64))]
struct Accumulators([MaybeUninit<TokenSums>; MAX_TILE_TOKENS]);

type TokenSums = [[f32; MAX_LANES]; TILE_ROWS];

/// Rows decoded side by side where few tokens share them: enough to hide the latency of the sums.
const FEW_TOKEN_ROWS: usize = 4;

/// [`super::Isa::tile`] for `S`; see the pseudocode in [`super`].
///
/// # Safety
/// The CPU has `S`'s instructions, and `tile` keeps its promises.
#[inline(always)]
pub unsafe fn tile<S: Simd>(tile: &Tile, out: &mut TileOut) {
    let rows = Rows::new(tile);
    // SAFETY: x has operand rows of this reduction.
    unsafe {
        match tile.x.len() {
            0 => {}
            1 => few_tokens::<S, 1>(&rows, tile.x, out),
            2 => few_tokens::<S, 2>(&rows, tile.x, out),
            3 => few_tokens::<S, 3>(&rows, tile.x, out),
            4 => few_tokens::<S, 4>(&rows, tile.x, out),
            _ => many_tokens::<S>(&rows, tile.x, out),
        }
    }
}

#[inline(always)]
unsafe fn open_group<S: Simd>(rows: &Rows<GROUP>, row: usize, group: usize) -> S::Cursor {
    let (codes, block_scales) = rows.group(row, group);
    // SAFETY: a whole group.
    unsafe { S::open_group(codes, block_scales) }
}

/// Weights go from decoding straight into the sums: nothing is stored.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // constant indices keep cursors and sums in registers
unsafe fn few_tokens<S: Simd, const TOKENS: usize>(rows: &Rows<GROUP>, x: &[*const u8], out: &mut TileOut) {
    let x = &x[..TOKENS];
    for first in (0..TILE_ROWS).step_by(FEW_TOKEN_ROWS) {
        let mut sums = [[S::Acc::zero(); FEW_TOKEN_ROWS]; TOKENS];
        for group in 0..rows.groups {
            // SAFETY: an operand row reaches to the end of the last group.
            unsafe {
                let mut cursors = [
                    open_group::<S>(rows, first, group),
                    open_group::<S>(rows, first + 1, group),
                    open_group::<S>(rows, first + 2, group),
                    open_group::<S>(rows, first + 3, group),
                ];
                for vector in 0..S::GROUP_VECTORS {
                    let at = group * GROUP * S::VALUE_BYTES + vector * S::OP_BYTES;
                    for row in 0..FEW_TOKEN_ROWS {
                        let w = S::decode(&mut cursors[row], vector);
                        for token in 0..TOKENS {
                            sums[token][row] = S::multiply_add(sums[token][row], w, S::load_op(x[token].add(at)));
                        }
                    }
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out[first..].iter_mut().zip(sums) {
                *out = sum.sum();
            }
        }
    }
}

/// Weights are decoded once, a chunk of the reduction at a time, for all tokens.
#[inline(always)]
unsafe fn many_tokens<S: Simd>(rows: &Rows<GROUP>, x: &[*const u8], out: &mut TileOut) {
    let mut scratch = Scratch([[MaybeUninit::uninit(); SCRATCH_ROW]; TILE_ROWS]);
    let mut acc = Accumulators([MaybeUninit::uninit(); MAX_TILE_TOKENS]);
    let acc = &mut acc.0[..x.len()];
    for sums in acc.iter_mut() {
        sums.write([[0.0; MAX_LANES]; TILE_ROWS]);
    }
    // SAFETY: just written.
    let acc: &mut [TokenSums] = unsafe { &mut *(std::ptr::from_mut(acc) as *mut [TokenSums]) };

    let groups = rows.groups;
    for group in (0..groups).step_by(CHUNK_GROUPS) {
        let chunk = (groups - group).min(CHUNK_GROUPS);
        for (row, scratch) in scratch.0.iter_mut().enumerate() {
            let to: *mut u8 = scratch.as_mut_ptr().cast();
            for i in 0..chunk {
                let offset = i * GROUP * S::VALUE_BYTES;
                // SAFETY: scratch holds CHUNK_GROUPS groups of the widest operands.
                unsafe {
                    let mut cursor = open_group::<S>(rows, row, group + i);
                    for vector in 0..S::GROUP_VECTORS {
                        S::store_op(to.add(offset + vector * S::OP_BYTES), S::decode(&mut cursor, vector));
                    }
                }
            }
        }
        let offset = group * GROUP * S::VALUE_BYTES;
        let vectors = chunk * GROUP * S::VALUE_BYTES / S::OP_BYTES;
        for (x, acc) in x.chunks(S::TOKENS).zip(acc.chunks_mut(S::TOKENS)) {
            // SAFETY: an operand row reaches to the end of the last group, scratch to the end of the chunk.
            unsafe {
                match (S::ROWS, x.len()) {
                    (8, 1) => dot::<S, 8, 1>(&scratch, x, offset, vectors, acc),
                    (8, 2) => dot::<S, 8, 2>(&scratch, x, offset, vectors, acc),
                    (8, 3) => dot::<S, 8, 3>(&scratch, x, offset, vectors, acc),
                    (4, 1) => dot::<S, 4, 1>(&scratch, x, offset, vectors, acc),
                    (4, 2) => dot::<S, 4, 2>(&scratch, x, offset, vectors, acc),
                    (4, 3) => dot::<S, 4, 3>(&scratch, x, offset, vectors, acc),
                    (rows, tokens) => unreachable!("{rows} rows x {tokens} tokens in registers"),
                }
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(acc.iter()) {
        for (out, lanes) in out.iter_mut().zip(sums) {
            // SAFETY: accumulators of the widest instruction set.
            *out = unsafe { S::Acc::load(lanes.as_ptr()) }.sum();
        }
    }
}

/// `acc[token][row] += scratch[row] * x[token]` over one chunk, ROWS x TOKENS accumulators in registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // constant indices keep the accumulators in registers
unsafe fn dot<S: Simd, const ROWS: usize, const TOKENS: usize>(
    scratch: &Scratch,
    x: &[*const u8],
    x_offset: usize,
    vectors: usize,
    acc: &mut [TokenSums],
) {
    // Plain loops: closures that call intrinsics may stay calls, because they do not inherit the target's features.
    for first in (0..TILE_ROWS).step_by(ROWS) {
        // SAFETY: see `tile`; each pointer advances by whole operand vectors inside its row.
        unsafe {
            let mut sums = [[S::Acc::zero(); ROWS]; TOKENS];
            for token in 0..TOKENS {
                for row in 0..ROWS {
                    sums[token][row] = S::Acc::load(acc[token][first + row].as_ptr());
                }
            }
            for vector in 0..vectors {
                let at = vector * S::OP_BYTES;
                let mut xs = [S::load_op(x[0].add(x_offset + at)); TOKENS];
                for token in 1..TOKENS {
                    xs[token] = S::load_op(x[token].add(x_offset + at));
                }
                for row in 0..ROWS {
                    let w = S::load_op(scratch.0[first + row].as_ptr().cast::<u8>().add(at));
                    for token in 0..TOKENS {
                        sums[token][row] = S::multiply_add(sums[token][row], w, xs[token]);
                    }
                }
            }
            for token in 0..TOKENS {
                for row in 0..ROWS {
                    sums[token][row].store(acc[token][first + row].as_mut_ptr());
                }
            }
        }
    }
}

/// [`super::Isa::add_scaled`]: compiled to vector instructions where the caller's instruction set has fused ones.
#[inline(always)]
pub fn add_scaled(sum: &mut [f32], weight: f32, y: &[f32]) {
    for (sum, y) in sum.iter_mut().zip(y) {
        *sum = weight.mul_add(*y, *sum);
    }
}
