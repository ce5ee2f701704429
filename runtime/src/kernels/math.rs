//! Scalar formulas that the compiler turns into vectors, shared by the kernels.

/// `a·b + c`, fused where the instruction set has it.
#[inline(always)]
pub fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Below this, `exp` is zero.
const LEAST: f32 = -87.3;
/// Above this, `exp` stays where it is.
const MOST: f32 = 88.0;

/// `eˣ` to 2 units in the last place; zero below −87.3, `e⁸⁸` above 88.
///
/// Cody–Waite reduction to |r| ≤ ln 2 / 2 and the minimax polynomial of degree 5 for eʳ.
/// Source: Cephes `expf`.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > LEAST { x } else { LEAST };
    let clamped = if clamped < MOST { clamped } else { MOST };
    let shifted = madd::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, -LN2_LO, madd::<FMA>(n, -LN2_HI, clamped));
    let mut p = POLYNOMIAL[0];
    for &coefficient in &POLYNOMIAL[1..] {
        p = madd::<FMA>(p, r, coefficient);
    }
    let value = madd::<FMA>(p * r, r, r + 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x > LEAST { value * power } else { 0.0 }
}

/// `x · sigmoid(x)`
#[inline(always)]
pub fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `x · Φ(x)`, with the error function itself.
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The error function to 4e-7 of its value: a rational function, odd over even.
/// Source: Eigen's `generic_fast_erf_float` (3 units in the last place); here rounding takes nothing beyond ±1.
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    const ODD: [f32; 5] = [2.290_506_6e-4, 3.408_291e-3, 0.050_955_695, 0.185_208_32, std::f32::consts::FRAC_2_SQRT_PI];
    const EVEN: [f32; 7] =
        [-1.179_160_3e-7, 2.354_796_6e-5, 1.017_962_5e-3, 0.014_070_47, 0.110_985_05, 0.497_469_25, 1.0];
    /// From here on, erf is one.
    const END: f32 = 3.832_507;
    let x = if x < END { x } else { END };
    let x = if x > -END { x } else { -END };
    let s = x * x;
    let mut odd = ODD[0];
    for &c in &ODD[1..] {
        odd = madd::<FMA>(odd, s, c);
    }
    let mut even = EVEN[0];
    for &c in &EVEN[1..] {
        even = madd::<FMA>(even, s, c);
    }
    let y = x * odd / even;
    let y = if y < 1.0 { y } else { 1.0 };
    if y > -1.0 { y } else { -1.0 }
}

/// `Σ f(x)` in 64 running sums, so that rounding grows with the logarithm of the length only
/// and the compiler may use vectors.
#[inline(always)]
pub fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 64;
    const BLOCK: usize = 64 * LANES;
    let block = |x: &[f32]| {
        let mut sums = [0.0; LANES];
        let rows = x.chunks_exact(LANES);
        let rest: f32 = rows.remainder().iter().map(|&x| f(x)).sum();
        for row in rows {
            for (s, &x) in sums.iter_mut().zip(row) {
                *s += f(x);
            }
        }
        let mut n = LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                sums[i] += sums[i + n];
            }
        }
        sums[0] + rest
    };
    x.chunks(BLOCK).map(block).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_agrees_with_the_library() {
        for i in -87_000..=87_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            for got in [exp::<false>(x), exp::<true>(x)] {
                assert!((f64::from(got) / want - 1.0).abs() < 2.5e-7, "{x}: {got} {want}");
            }
        }
        assert_eq!((exp::<true>(f32::NEG_INFINITY), exp::<true>(-88.0)), (0.0, 0.0));
        assert!(exp::<true>(1e9).is_finite() && exp::<false>(f32::INFINITY).is_finite());
    }

    #[test]
    fn silu_is_right_at_both_ends() {
        for (x, want) in [(0.0, 0.0), (1.0, 0.731_058_6), (-1.0, -0.268_941_43), (100.0, 100.0), (-200.0, 0.0)] {
            assert!((silu::<true>(x) - want).abs() < 1e-6, "{x}");
        }
    }

    /// `erf(x)` and `erfc(|x|)` from the series of the first or the continued fraction of the second.
    fn reference(x: f64) -> f64 {
        if x.abs() < 2.5 {
            let (mut term, mut sum) = (x, x);
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let fraction = (1..60).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (x.abs() + f));
        let tail = (-x * x).exp() / (std::f64::consts::PI.sqrt() * (x.abs() + fraction));
        (1.0 - tail).copysign(x)
    }

    #[test]
    fn the_error_function_agrees_with_its_series() {
        for i in -50_000..=50_000 {
            let x = i as f32 * 1e-4;
            let want = reference(f64::from(x));
            for got in [erf::<false>(x), erf::<true>(x)] {
                assert!((f64::from(got) - want).abs() <= 4e-7 * want.abs(), "{x}: {got} {want}");
            }
        }
        assert_eq!((erf::<true>(30.0), erf::<true>(-30.0), erf::<true>(0.0)), (1.0, -1.0, 0.0));
    }

    #[test]
    fn gelu_is_right_at_both_ends() {
        for (x, want) in [(0.0, 0.0), (1.0, 0.841_344_7), (-1.0, -0.158_655_26), (50.0, 50.0), (-50.0, 0.0)] {
            assert!((gelu::<true>(x) - want).abs() < 1e-6, "{x}");
        }
    }
}
