//! Vectors of f32 for the instruction sets that pay. Code that is generic over [`Lanes`]
//! is compiled once for each; [`Level`] says which the processor has.
#![allow(unsafe_code)]

/// An instruction set, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// 16 lanes, 32 registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, 16 registers, fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the architecture has.
    Plain,
}

impl Level {
    /// The best that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Plain
    }
}

/// Work that is generic over the instruction set.
pub trait Work {
    /// Does it; `FMA` tells whether fused multiply-add is fast.
    fn run<V: Lanes, const FMA: bool>(self);
}

/// Does `work`, compiled for `level`.
pub fn dispatch(level: Level, work: impl Work) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Level` is what `detect` found.
        Level::Avx512 => unsafe { avx512(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Level` is what `detect` found.
        Level::Avx2 => unsafe { avx2(work) },
        Level::Plain => work.run::<[f32; 4], false>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn avx512(work: impl Work) {
    work.run::<x86::F512, true>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(work: impl Work) {
    work.run::<x86::F256, true>();
}

/// A vector of f32. All methods want to be inlined into code compiled for the instruction
/// set; [`dispatch`] is the only way there.
pub trait Lanes: Copy {
    /// Lanes.
    const LEN: usize;
    /// Vectors that a tile keeps side by side, and output channels: as many products in
    /// flight as there are registers.
    const WIDE: usize;
    /// See [`WIDE`](Self::WIDE).
    const HIGH: usize;

    /// The same number in each lane.
    fn splat(x: f32) -> Self;
    /// The first `LEN` numbers from `p`.
    ///
    /// # Safety
    /// `p` points to `LEN` numbers.
    unsafe fn load(p: *const f32) -> Self;
    /// Writes the lanes to the first `LEN` numbers of `to`.
    fn store(self, to: &mut [f32]);
    /// `self · b + c`
    fn madd(self, b: Self, c: Self) -> Self;
}

impl Lanes for [f32; 4] {
    const LEN: usize = 4;
    const WIDE: usize = 2;
    const HIGH: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise; arrays of f32 are aligned like f32.
        unsafe { *p.cast::<[f32; 4]>() }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..4].copy_from_slice(&self);
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|i| self[i] * b[i] + c[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    /// 512 bits.
    #[derive(Clone, Copy)]
    pub struct F512(__m512);

    impl Lanes for F512 {
        const LEN: usize = 16;
        const WIDE: usize = 3;
        const HIGH: usize = 8;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: only `super::avx512` uses this type.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: only `super::avx512` uses this type; the pointer is the caller's promise.
            Self(unsafe { _mm512_loadu_ps(p) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f32]) {
            let to = &mut to[..16];
            // SAFETY: only `super::avx512` uses this type; `to` holds 16 numbers.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn madd(self, b: Self, c: Self) -> Self {
            // SAFETY: only `super::avx512` uses this type.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
    }

    /// 256 bits.
    #[derive(Clone, Copy)]
    pub struct F256(__m256);

    impl Lanes for F256 {
        const LEN: usize = 8;
        const WIDE: usize = 3;
        const HIGH: usize = 4;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: only `super::avx2` uses this type.
            Self(unsafe { _mm256_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: only `super::avx2` uses this type; the pointer is the caller's promise.
            Self(unsafe { _mm256_loadu_ps(p) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f32]) {
            let to = &mut to[..8];
            // SAFETY: only `super::avx2` uses this type; `to` holds 8 numbers.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn madd(self, b: Self, c: Self) -> Self {
            // SAFETY: only `super::avx2` uses this type.
            Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
        }
    }
}

/// Every level that this processor can run, for tests that compare them.
#[cfg(test)]
pub fn levels() -> Vec<Level> {
    let mut all = vec![Level::Plain];
    #[cfg(target_arch = "x86_64")]
    match Level::detect() {
        Level::Avx512 => all.extend([Level::Avx2, Level::Avx512]),
        Level::Avx2 => all.push(Level::Avx2),
        Level::Plain => {}
    }
    all
}
