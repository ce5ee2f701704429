//! `vldm::Conv2d`: a convolution over height and width with constant taps.

use crate::ir::Function;
use crate::nn::function_body;
use crate::ops::Conv;

/// `x` is `[n, c, h, w]`, `weight` `[out, c, kh, kw]`, `bias` `[out]`; attributes as the standard operator has them:
/// `strides` (two) and `pads` (top, left, bottom, right).
pub const CONV: &str = "Conv2d";

/// The function.
pub fn conv() -> Function {
    let doc = "Convolution of images [n, c, h, w] by taps [out, c, kh, kw].";
    function_body(doc, &["strides", "pads"], ["x", "weight", "bias"], |f, operands| {
        f.emit_with(Conv::new(&[1, 1], &[0, 0]), &operands, &[("strides", "strides"), ("pads", "pads")])
    })
}
