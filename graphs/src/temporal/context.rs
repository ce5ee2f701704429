//! The context of a prediction: known frames and their mask, at every resolution of the network.

use crate::ir::Dim;
use crate::nn::{Frames, Scope, Value, conv2d, conv2d_strided};
use crate::ops::Conv;

/// The encoded context by level of the network, `[(b t), channels, ⌈H/2^l⌉, ⌈W/2^l⌉]`.
pub type ContextLevels<'g> = Vec<Value<'g>>;

/// The learned downsampling of `c_S = (m ∘ z, m)`.
///
/// `latents` `[b, t, C, H, W]`, `mask` `[b, t]` with 1 for a given frame.
///
/// Source: Blattmann et al. 2023, "Align your Latents", §3.2; `CondEncoder` of the reference cascade.
pub fn context_encoder<'g>(
    s: &Scope<'g>,
    latents: Value<'g>,
    mask: Value<'g>,
    frames: &Frames,
    width: usize,
    levels: usize,
) -> ContextLevels<'g> {
    let [_, _, channels, height, rows] = std::array::from_fn(|i| latents.dim(i));
    let mask = mask.unsqueeze(&[2, 3, 4]);
    let plane = [frames.batch.clone(), frames.frames.clone(), Dim::fixed(1), height.clone(), rows.clone()];
    let seen = (latents * mask).reshape([frames.total(), channels, height.clone(), rows.clone()]);
    let mask = mask.expand(plane).reshape_by(latents, [frames.total(), Dim::fixed(1), height, rows]);
    let mut c = seen.concat(&[mask], 1);
    (0..levels)
        .map(|level| {
            let s = s.at("convs").at(level);
            c = if level == 0 {
                conv2d(&s, c, width, 3)
            } else {
                conv2d_strided(&s, c.silu(), width, 3, Conv::new(&[2, 2], &[1, 1]))
            };
            c
        })
        .collect()
}
