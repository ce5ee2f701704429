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
    /// The bits that both have: `mask` has all or none of each lane.
    fn and(self, mask: Self) -> Self;
    /// The numbers at even and at odd places of `self` followed by `other`.
    fn unzip(self, other: Self) -> (Self, Self);
    /// The reverse: the lanes of `self` and `other` in turns.
    fn zip(self, other: Self) -> (Self, Self);

    /// The first `LEN` numbers of `x`.
    #[inline(always)]
    fn from_slice(x: &[f32]) -> Self {
        let x = &x[..Self::LEN];
        // SAFETY: `x` holds LEN numbers.
        unsafe { Self::load(x.as_ptr()) }
    }
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

    #[inline(always)]
    fn and(self, mask: Self) -> Self {
        std::array::from_fn(|i| f32::from_bits(self[i].to_bits() & mask[i].to_bits()))
    }

    #[inline(always)]
    fn unzip(self, other: Self) -> (Self, Self) {
        let ([a, b, c, d], [e, f, g, h]) = (self, other);
        ([a, c, e, g], [b, d, f, h])
    }

    #[inline(always)]
    fn zip(self, other: Self) -> (Self, Self) {
        let ([a, b, c, d], [e, f, g, h]) = (self, other);
        ([a, e, b, f], [c, g, d, h])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::{
        __m256, __m512, _mm256_and_ps, _mm256_castpd_ps, _mm256_castps_pd, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_permute2f128_ps, _mm256_permute4x64_pd, _mm256_set1_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_permutex2var_ps, _mm512_set1_ps, _mm512_setr_epi32, _mm512_storeu_ps,
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

        #[inline(always)]
        fn and(self, mask: Self) -> Self {
            // SAFETY: only `super::avx512` uses this type.
            Self(unsafe {
                _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), _mm512_castps_si512(mask.0)))
            })
        }

        #[inline(always)]
        fn unzip(self, other: Self) -> (Self, Self) {
            // SAFETY: only `super::avx512` uses this type.
            unsafe {
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
                (
                    Self(_mm512_permutex2var_ps(self.0, even, other.0)),
                    Self(_mm512_permutex2var_ps(self.0, odd, other.0)),
                )
            }
        }

        #[inline(always)]
        fn zip(self, other: Self) -> (Self, Self) {
            // SAFETY: only `super::avx512` uses this type.
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                (
                    Self(_mm512_permutex2var_ps(self.0, low, other.0)),
                    Self(_mm512_permutex2var_ps(self.0, high, other.0)),
                )
            }
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

        #[inline(always)]
        fn and(self, mask: Self) -> Self {
            // SAFETY: only `super::avx2` uses this type.
            Self(unsafe { _mm256_and_ps(self.0, mask.0) })
        }

        #[inline(always)]
        fn unzip(self, other: Self) -> (Self, Self) {
            // SAFETY: only `super::avx2` uses this type.
            unsafe {
                // Of each half of 128 bits; the halves of 64 are then put in order.
                let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(self.0, other.0));
                let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(self.0, other.0));
                (
                    Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even))),
                    Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd))),
                )
            }
        }

        #[inline(always)]
        fn zip(self, other: Self) -> (Self, Self) {
            // SAFETY: only `super::avx2` uses this type.
            unsafe {
                let (low, high) = (_mm256_unpacklo_ps(self.0, other.0), _mm256_unpackhi_ps(self.0, other.0));
                (Self(_mm256_permute2f128_ps::<0x20>(low, high)), Self(_mm256_permute2f128_ps::<0x31>(low, high)))
            }
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
