//! The tile algorithm, over any instruction set.

use super::{GROUP, MAX_TILE_TOKENS, TILE_ROWS, Tile, TileOut};
use crate::format::BLOCK_SIZE;
use std::mem::MaybeUninit;

/// Groups decoded at a time: 4 rows x 1024 f32 values are half of a 32 KiB L1.
const CHUNK_GROUPS: usize = 8;

/// What an instruction set adds. All functions are inlined into one function compiled for it.
///
/// # Safety
/// An implementation may use instructions that not every CPU has; callers check. Pointers carry `LANES` f32 values
/// (`Acc`) or one `Op`, unaligned.
pub unsafe trait Simd {
    /// f32 accumulators of one output.
    const LANES: usize;
    /// Bytes of one operand vector.
    const OP_BYTES: usize;
    /// Bytes of one value in an operand vector: 4 (f32) or 2 (bf16).
    const VALUE_BYTES: usize;
    /// Tokens whose accumulators fit the registers beside [`TILE_ROWS`] rows.
    const TOKENS: usize;
    /// f32 lanes.
    type Acc: Copy;
    /// Operand values.
    type Op: Copy;

    /// Load accumulators.
    unsafe fn load_acc(from: *const f32) -> Self::Acc;
    /// Store accumulators.
    unsafe fn store_acc(to: *mut f32, value: Self::Acc);
    /// Load an operand vector.
    unsafe fn load_op(from: *const u8) -> Self::Op;
    /// `acc + w * x`, lane by lane.
    unsafe fn multiply_add(acc: Self::Acc, w: Self::Op, x: Self::Op) -> Self::Acc;
    /// Decode `groups` groups to operand values `e2m1 * block_scale`. Reads 64 codes bytes and 8 scales a group.
    unsafe fn dequantize(codes: *const u8, block_scales: *const u8, groups: usize, out: *mut u8);
}

/// Widest accumulator row: 16 lanes.
const MAX_LANES: usize = 16;

/// One chunk of each row as operands, f32 being the larger. Left uninitialised: clearing it would cost a quarter of
/// a tile of one token.
#[repr(align(64))]
struct Scratch([[MaybeUninit<u8>; CHUNK_GROUPS * GROUP * 4]; TILE_ROWS]);

/// `[token][row][lane]`
#[repr(align(64))]
struct Accumulators([MaybeUninit<TokenSums>; MAX_TILE_TOKENS]);

type TokenSums = [[f32; MAX_LANES]; TILE_ROWS];

/// [`super::Isa::tile`] for `S`; see the pseudocode in [`super`].
///
/// # Safety
/// The CPU has `S`'s instructions, and `tile` keeps its promises.
#[inline(always)]
pub unsafe fn tile<S: Simd>(tile: &Tile, out: &mut TileOut) {
    assert!(tile.rows >= 1 && tile.rows <= TILE_ROWS && tile.x.len() <= MAX_TILE_TOKENS);
    let (code_stride, scale_stride) = (tile.reduction / 2, tile.reduction / BLOCK_SIZE);
    assert!(tile.codes.len() >= tile.rows * code_stride && tile.block_scales.len() >= tile.rows * scale_stride);

    let mut scratch = Scratch([[MaybeUninit::uninit(); CHUNK_GROUPS * GROUP * 4]; TILE_ROWS]);
    for row in &mut scratch.0[tile.rows..] {
        row.fill(MaybeUninit::new(0)); // rows that are not there: computed with the others, never read
    }
    let mut acc = Accumulators([MaybeUninit::uninit(); MAX_TILE_TOKENS]);
    let acc = &mut acc.0[..tile.x.len()];
    for sums in acc.iter_mut() {
        sums.write([[0.0; MAX_LANES]; TILE_ROWS]);
    }
    // SAFETY: just written.
    let acc: &mut [TokenSums] = unsafe { &mut *(std::ptr::from_mut(acc) as *mut [TokenSums]) };
    let groups = tile.reduction.div_ceil(GROUP);
    let mut group = 0;
    while group < groups {
        let chunk = (groups - group).min(CHUNK_GROUPS);
        for (row, scratch) in scratch.0.iter_mut().enumerate().take(tile.rows) {
            let codes = &tile.codes[row * code_stride..][..code_stride];
            let block_scales = &tile.block_scales[row * scale_stride..][..scale_stride];
            // SAFETY: scratch holds CHUNK_GROUPS groups of the widest operands.
            unsafe { dequantize_chunk::<S>(codes, block_scales, group, chunk, scratch.as_mut_ptr().cast()) };
        }
        for (first, x) in tile.x.chunks(S::TOKENS).enumerate() {
            let acc = &mut acc[first * S::TOKENS..];
            let offset = group * GROUP * S::VALUE_BYTES;
            let vectors = chunk * GROUP * S::VALUE_BYTES / S::OP_BYTES;
            // SAFETY: an operand row reaches to the end of the last group, scratch to the end of the chunk.
            unsafe {
                match x.len() {
                    1 => dot::<S, 1>(&scratch, x, offset, vectors, acc),
                    2 => dot::<S, 2>(&scratch, x, offset, vectors, acc),
                    3 => dot::<S, 3>(&scratch, x, offset, vectors, acc),
                    4 => dot::<S, 4>(&scratch, x, offset, vectors, acc),
                    5 => dot::<S, 5>(&scratch, x, offset, vectors, acc),
                    6 => dot::<S, 6>(&scratch, x, offset, vectors, acc),
                    tokens => unreachable!("{tokens} tokens in registers"),
                }
            }
        }
        group += chunk;
    }
    for (out, sums) in out.iter_mut().zip(acc.iter()) {
        for (out, lanes) in out.iter_mut().zip(sums) {
            *out = sum_lanes(lanes, S::LANES);
        }
    }
}

/// Decode a chunk of one row. A last, partial group is copied out first, so that nothing is read past the row.
#[inline(always)]
unsafe fn dequantize_chunk<S: Simd>(codes: &[u8], block_scales: &[u8], group: usize, chunk: usize, out: *mut u8) {
    let (code, scale) = (group * GROUP / 2, group * GROUP / BLOCK_SIZE);
    let whole = chunk.min((codes.len() - code) / (GROUP / 2));
    // SAFETY: `whole` groups lie inside the row and inside the scratch.
    unsafe { S::dequantize(codes.as_ptr().add(code), block_scales.as_ptr().add(scale), whole, out) };
    if whole < chunk {
        let mut tail_codes = [0u8; GROUP / 2];
        let mut tail_scales = [0u8; GROUP / BLOCK_SIZE];
        let (codes, scales) = (&codes[code + whole * GROUP / 2..], &block_scales[scale + whole * GROUP / BLOCK_SIZE..]);
        tail_codes[..codes.len()].copy_from_slice(codes);
        tail_scales[..scales.len()].copy_from_slice(scales);
        // SAFETY: the tail is one padded group, and `whole < chunk` leaves room for it.
        unsafe {
            S::dequantize(tail_codes.as_ptr(), tail_scales.as_ptr(), 1, out.add(whole * GROUP * S::VALUE_BYTES));
        }
    }
}

/// `acc[token][row] += scratch[row] * x[token]` over one chunk, accumulators in registers.
#[inline(always)]
unsafe fn dot<S: Simd, const TOKENS: usize>(
    scratch: &Scratch,
    x: &[*const u8],
    x_offset: usize,
    vectors: usize,
    acc: &mut [TokenSums],
) {
    // SAFETY: see `tile`; each pointer advances by whole operand vectors inside its row.
    unsafe {
        let w: [*const u8; TILE_ROWS] = std::array::from_fn(|row| scratch.0[row].as_ptr().cast());
        let x: [*const u8; TOKENS] = std::array::from_fn(|token| x[token].add(x_offset));
        let mut sums: [[S::Acc; TILE_ROWS]; TOKENS] =
            std::array::from_fn(|token| std::array::from_fn(|row| S::load_acc(acc[token][row].as_ptr())));
        for vector in 0..vectors {
            let at = vector * S::OP_BYTES;
            let x: [S::Op; TOKENS] = std::array::from_fn(|token| S::load_op(x[token].add(at)));
            for row in 0..TILE_ROWS {
                let w = S::load_op(w[row].add(at));
                for token in 0..TOKENS {
                    sums[token][row] = S::multiply_add(sums[token][row], w, x[token]);
                }
            }
        }
        for token in 0..TOKENS {
            for row in 0..TILE_ROWS {
                S::store_acc(acc[token][row].as_mut_ptr(), sums[token][row]);
            }
        }
    }
}

/// Sum of the lanes, halving: a fixed order.
#[inline(always)]
fn sum_lanes(lanes: &[f32; MAX_LANES], count: usize) -> f32 {
    let mut lanes = *lanes;
    let mut half = count / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// [`super::Isa::add_scaled`]: compiled to vector instructions where the caller's instruction set has fused ones.
#[inline(always)]
pub fn add_scaled(sum: &mut [f32], weight: f32, y: &[f32]) {
    for (sum, y) in sum.iter_mut().zip(y) {
        *sum = weight.mul_add(*y, *sum);
    }
}
