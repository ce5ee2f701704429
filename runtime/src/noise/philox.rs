//! A generator without state: numbers are a function of a key and a counter.

use std::f64::consts::TAU;

/// Philox4x32 with ten rounds.
///
/// Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"; Random123 `philox.h`.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

const ROUNDS: usize = 10;
const MULTIPLIERS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

impl Philox {
    /// The generator whose key is the low and the high half of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The four random words of one counter.
    pub fn words(&self, counter: [u32; 4]) -> [u32; 4] {
        let (mut c, mut key) = (counter, self.key);
        for _ in 0..ROUNDS {
            let [a, b] = [MULTIPLIERS[0] * u64::from(c[0]), MULTIPLIERS[1] * u64::from(c[2])];
            c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c
    }
}

/// `n` standard normal numbers of draw `draw` of a segment of a stage.
///
/// Elements `4k` to `4k + 3`, in memory order, come from the words `w` of the counter
/// `(k, draw, segment mod 2^32, stage + 2^16 · ⌊segment / 2^32⌋)`. In f64, with `u = (w + ½) / 2^32`, they are
/// `r₀ cos θ₁`, `r₀ sin θ₁`, `r₂ cos θ₃`, `r₂ sin θ₃`, where `r = √(−2 ln u)` and `θ = 2πu`; then they are rounded to
/// f32.
///
/// Source: Box & Muller 1958.
pub fn normal(philox: &Philox, n: usize, draw: u32, segment: u64, stage: u32) -> Vec<f32> {
    let high = ((segment >> 32) as u32) << 16;
    let mut out = Vec::with_capacity(n.next_multiple_of(4));
    for k in 0..n.div_ceil(4) {
        let words = philox.words([k as u32, draw, segment as u32, stage.wrapping_add(high)]);
        let [a, b, c, d] = words.map(|w| (f64::from(w) + 0.5) / 4_294_967_296.0);
        for (radius, angle) in [(a, b), (c, d)] {
            let (r, (sin, cos)) = ((-2.0 * radius.ln()).sqrt(), (TAU * angle).sin_cos());
            out.extend([(r * cos) as f32, (r * sin) as f32]);
        }
    }
    out.truncate(n);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source: Random123, `tests/kat_vectors`, the three lines `philox4x32 10`.
    #[test]
    fn words_are_those_of_the_published_vectors() {
        for (counter, key, expected) in [
            ([0; 4], 0, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], u64::MAX, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                0x299f_31d0_a409_3822,
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(Philox::new(key).words(counter), expected);
        }
    }

    /// The first words of key 0 and counter 0, through the documented transformation by hand.
    #[test]
    fn normal_numbers_are_those_of_the_documented_transformation() {
        let x = normal(&Philox::new(0), 4, 0, 0, 0);
        let u = [0x6627_e8d5u32, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8].map(|w| (f64::from(w) + 0.5) / 2f64.powi(32));
        let r = (-2.0 * u[0].ln()).sqrt();
        assert!((f64::from(x[0]) - r * (TAU * u[1]).cos()).abs() < 1e-7);
        assert!((f64::from(x[1]) - r * (TAU * u[1]).sin()).abs() < 1e-7);
        let r = (-2.0 * u[2].ln()).sqrt();
        assert!((f64::from(x[3]) - r * (TAU * u[3]).sin()).abs() < 1e-7);
    }

    #[test]
    fn moments_are_those_of_a_standard_normal() {
        let x = normal(&Philox::new(42), 1_000_000, 1, 7, 3);
        let moment = |k: i32| x.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 4e-3 && (moment(2) - 1.0).abs() < 6e-3, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.05);
        assert!(x.iter().all(|v| v.is_finite() && v.abs() < 7.0));
    }
}
