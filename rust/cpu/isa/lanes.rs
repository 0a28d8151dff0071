// SPDX-License-Identifier: Apache-2.0
//! Vectors of f32 that sums are kept in, once for each kind of register; instruction sets share them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A vector of f32 lanes. Functions are inlined into a function compiled for the instruction set.
///
/// # Safety
/// An implementation may use instructions that not every CPU has: whoever names the type has checked.
pub unsafe trait Lanes: Copy {
    /// All 0.
    fn zero() -> Self;

    /// As many f32 as there are lanes, unaligned.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load(from: *const f32) -> Self;

    /// Store all lanes, unaligned.
    ///
    /// # Safety
    /// They are writable.
    unsafe fn store(self, to: *mut f32);

    /// Sum of the lanes, in a fixed order: halves first. In registers, because LLVM makes gathers of sums over lanes in
    /// memory.
    fn sum(self) -> f32;
}

// SAFETY: uses no special instructions.
unsafe impl Lanes for [f32; 8] {
    #[inline(always)]
    fn zero() -> Self {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 8 values are readable, as the caller promises.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 8 values are writable, as the caller promises.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

#[cfg(target_arch = "x86_64")]
// SAFETY: named only by instruction sets with AVX.
unsafe impl Lanes for __m256 {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the CPU has AVX.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 8 values are readable, as the caller promises.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 8 values are writable, as the caller promises.
        unsafe { _mm256_storeu_ps(to, self) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the CPU has AVX.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
// SAFETY: named only by instruction sets with AVX-512 F.
unsafe impl Lanes for __m512 {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the CPU has AVX-512 F.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 16 values are readable, as the caller promises.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 16 values are writable, as the caller promises.
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the CPU has AVX-512 F, and so AVX.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self)));
            _mm256_add_ps(_mm512_castps512_ps256(self), high).sum()
        }
    }
}
