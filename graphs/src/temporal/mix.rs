//! `vldm::Mix`: how much of a temporal layer comes through.

use crate::ir::Function;
use crate::nn::{Scope, Value, function_body};
use crate::ops::{Attr, BinaryKind, Call};

/// Operator type.
const NAME: &str = "Mix";

/// What `sigmoid(mix_factor)` is the weight of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixFactor {
    /// The frame-wise result.
    Spatial,
    /// The temporal layer (diffusers: `switch_spatial_to_temporal_mix`).
    Temporal,
}

/// `α·x + (1 − α)·(x + h)` for a residual temporal layer, with `α = sigmoid(mix_factor)` folded to a constant.
///
/// α = 1 leaves the image network untouched.
///
/// Source: Blattmann et al. 2023, "Align your Latents", §3.1.
pub fn mix<'g>(s: &Scope<'g>, x: Value<'g>, h: Value<'g>) -> Value<'g> {
    mix_by(s, x, h, MixFactor::Spatial)
}

/// [`mix`], with `α = sigmoid(−mix_factor)` when the factor counts for the temporal layer.
///
/// Source: diffusers `AlphaBlender`.
pub fn mix_by<'g>(s: &Scope<'g>, x: Value<'g>, h: Value<'g>, factor: MixFactor) -> Value<'g> {
    let Some(&logit) = s.load("mix_factor").first() else { return x };
    let sign = if factor == MixFactor::Spatial { 1.0 } else { -1.0 };
    let temporal = (1.0 / (1.0 + (sign * f64::from(logit)).exp())) as f32; // 1 − α
    if !temporal.is_finite() {
        s.refuse(format!("mix_factor is {logit}, expected a finite number"));
        return x;
    }
    x.call(Call::vldm(NAME, [("temporal", Attr::Float(temporal))]), body, &[h], x.shape())
}

fn body() -> Function {
    let doc = "x + temporal * h: the mixture of a frame-wise result x and the temporal layer x + h.";
    function_body(doc, &["temporal"], ["x", "h"], |f, [x, h]| {
        let weight = f.float_attribute("temporal");
        let part = f.emit(BinaryKind::Mul, &[h, weight]);
        f.emit(BinaryKind::Add, &[x, part])
    })
}
