//! Embeddings of timesteps and other scalars.

use super::{Scope, Value, linear};

/// Sines and cosines of falling frequency: `[N] → [N, width]`, cosines first when `flip`.
///
/// Source: diffusers `get_timestep_embedding` with `downscale_freq_shift = shift`, maximum period 10 000.
pub fn sinusoidal_embedding(t: Value<'_>, width: usize, flip: bool, shift: f64) -> Value<'_> {
    let half = width / 2;
    // Single precision throughout, as in the source: its rounding is what networks were trained with.
    let rate = |k: usize| (-(10_000f64.ln()) as f32 * k as f32 / (half as f64 - shift) as f32).exp();
    let rates: Vec<f32> = (0..half).map(rate).collect();
    let angles = t.unsqueeze(&[1]) * t.vector(&rates);
    let (sin, cos) = (angles.sin(), angles.cos());
    if flip { cos.concat(&[sin], 1) } else { sin.concat(&[cos], 1) }
}

/// `linear_2(SiLU(linear_1(x)))`: `[N, C] → [N, width]`.
///
/// Source: diffusers `TimestepEmbedding`.
pub fn timestep_mlp<'g>(s: &Scope<'g>, x: Value<'g>, width: usize) -> Value<'g> {
    let h = linear(&s.at("linear_1"), x, width).silu();
    linear(&s.at("linear_2"), h, width)
}
