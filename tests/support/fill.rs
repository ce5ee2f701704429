//! Numbers that Python and Rust make alike: the twin of `tests/golden/fill.py`.

const SQRT_3: f64 = 1.732_050_807_568_877_2;

/// `n` values, uniform in ±√3 (mean 0, variance 1): splitmix64 over a counter.
///
/// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the mixing constants).
pub fn uniform(seed: u64, n: usize) -> Vec<f32> {
    (1..=n as u64).map(|i| (SQRT_3 * draw(seed, i)) as f32).collect()
}

fn draw(seed: u64, i: u64) -> f64 {
    let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    2.0 * ((z >> 40) as f64 / f64::from(1u32 << 24)) - 1.0
}

/// FNV-1a, 64 bits.
pub fn name_seed(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The weight `name` of `file`, every value exact in half precision; `tests/golden/fill.py` gives the distributions.
pub fn weight(file: &str, name: &str, shape: &[usize], queries: f64) -> Vec<f32> {
    let values = uniform(name_seed(&format!("{file}:{name}")), shape.iter().product());
    let (offset, scale) = if name.strip_suffix(".alpha").is_some() {
        (3.0, 0.0)
    } else if name.ends_with("mix_factor") {
        (0.0, 2.0 / SQRT_3)
    } else if name.ends_with(".weight") && shape.len() == 1 {
        (1.0, 0.1)
    } else if ["embedding.weight", "attention_bias.weight"].iter().any(|end| name.ends_with(end))
        || file.starts_with("conditions/")
    {
        (0.0, 1.0)
    } else if [".to_q.", ".to_k.", ".q_proj.", ".k_proj."].iter().any(|q| name.contains(q))
        && !name.contains(".attn_temp")
    {
        (0.0, if file.starts_with("image_unet/") { 0.2 } else { queries })
    } else {
        (0.0, if shape.len() == 2 { 0.15 } else { 0.05 })
    };
    let scale = if file == "checkpoint.safetensors" && shape.len() > 1 { 0.5 * scale } else { scale };
    let round = |u: f32| half::f16::from_f32((offset + scale * f64::from(u)) as f32).to_f32();
    values.into_iter().map(round).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by `fill.py`.
    #[test]
    fn python_makes_the_same_numbers() {
        assert_eq!(uniform(1, 4), [0.230_575_87, 0.851_412_83, 1.631_601_2, -0.192_745_45]);
        assert_eq!(name_seed("tiny"), 0x1E49_89EF_2E95_92CB);
        assert_eq!(
            weight("unet/x", "a.to_q.weight", &[2, 2], 0.4),
            [-0.442_871_1, -0.502_929_7, 0.352_539_06, 0.341_552_73]
        );
    }
}
