//! Convolutions on slices, without the matrix of patches that engines usually write first:
//! the inner loop reads every tap straight from the input.
#![allow(unsafe_code)]

use std::ops::Range;

use super::lanes::{Lanes, Level, Work, dispatch};
use super::packed::Weights;
use super::spread::{Parts, Spread, pieces, split, split_rows};
use super::temporal_conv::{Clips, over_clips};
use super::tile::{self, Rows, Tile};
use super::winograd::images::Winograd;

/// Sizes of a convolution over height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Input channels.
    pub channels: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// The same in both directions.
    pub stride: usize,
    /// Zeros above and to the left.
    pub before: [usize; 2],
    /// Zeros below and to the right.
    pub after: [usize; 2],
}

impl Geometry {
    /// Height and width of the output, when the kernel fits the input.
    pub fn output(&self, size: [usize; 2]) -> Option<[usize; 2]> {
        let axis = |i: usize| {
            let padded = size[i] + self.before[i] + self.after[i];
            padded.checked_sub(self.kernel[i]).map(|room| room / self.stride + 1)
        };
        Some([axis(0)?, axis(1)?])
    }

    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.before == [0, 0] && self.after == [0, 0]
    }
}

/// A convolution over height and width, `[n, c, h, w] → [n, out, h', w']`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    geometry: Geometry,
    method: Method,
}

/// How it is computed.
#[derive(Clone, Debug)]
enum Method {
    /// As the sum over channels and taps.
    Direct(Weights),
    /// With fewer products.
    Winograd(Winograd),
}

impl Conv2d {
    /// `weight` is `[out, channels, kh, kw]`, `bias` `[out]`. None when sizes do not match.
    pub fn new(geometry: Geometry, weight: &[f32], bias: &[f32]) -> Option<Self> {
        let rows = geometry.channels * geometry.kernel[0] * geometry.kernel[1];
        if rows == 0 || geometry.stride == 0 || bias.is_empty() || weight.len() != rows * bias.len() {
            return None;
        }
        Some(Self::pack(Level::detect(), geometry, weight, bias, Winograd::outputs(&geometry, bias.len())))
    }

    /// `tiles` is the height and width of Winograd's tiles, if it is to be his algorithm.
    fn pack(level: Level, geometry: Geometry, weight: &[f32], bias: &[f32], tiles: Option<usize>) -> Self {
        let order: Vec<usize> = (0..weight.len() / bias.len()).collect();
        let method = match tiles {
            Some(outputs) => Method::Winograd(Winograd::pack(level, weight, bias, outputs)),
            None => Method::Direct(Weights::pack(level, weight, bias, &order)),
        };
        Self { geometry, method }
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        match &self.method {
            Method::Direct(weights) => weights.out,
            Method::Winograd(winograd) => winograd.out(),
        }
    }

    /// Sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `x` is `[n, channels, size]`, `y` `[n, out, output]`.
    ///
    /// # Errors
    /// A sentence when a slice has another length.
    pub fn run(&self, spread: &dyn Spread, size: [usize; 2], x: &[f32], y: &mut [f32]) -> Result<(), String> {
        let g = &self.geometry;
        let output = g.output(size).ok_or_else(|| format!("a kernel of {:?} does not fit {size:?}", g.kernel))?;
        let (from, to) = (g.channels * size[0] * size[1], self.out() * output[0] * output[1]);
        if from == 0 || !x.len().is_multiple_of(from) || y.len() != x.len() / from * to {
            return Err(format!("a convolution of {size:?} by {g:?} got {} numbers for {}", x.len(), y.len()));
        }
        let padded = |i: usize| size[i] + g.before[i] + g.after[i] + g.stride;
        if g.channels.saturating_mul(padded(0)).saturating_mul(padded(1)) > u32::MAX as usize {
            return Err(format!("a convolution of {size:?} by {g:?} is too large"));
        }
        if x.is_empty() {
            return Ok(());
        }
        match &self.method {
            Method::Winograd(winograd) => winograd.run(spread, g.channels, size, x, y),
            Method::Direct(weights) if g.is_pointwise() => {
                let clips = Clips { taps: 1, frames: 1, channels: g.channels, positions: size[0] * size[1] };
                over_clips(spread, weights, clips, x, y);
            }
            Method::Direct(weights) => Planes::new(*g, size, output).run(spread, weights, x, y),
        }
        Ok(())
    }
}

/// How one image is laid out, padded, so that every tap of every output is at a fixed
/// distance: for stride `s`, `s²` planes a channel hold every `s`-th row and column.
struct Planes {
    geometry: Geometry,
    size: [usize; 2],
    output: [usize; 2],
    /// Height and width of a plane.
    plane: [usize; 2],
    offsets: Vec<u32>,
}

impl Planes {
    fn new(geometry: Geometry, size: [usize; 2], output: [usize; 2]) -> Self {
        let s = geometry.stride;
        let plane: [usize; 2] = std::array::from_fn(|i| (size[i] + geometry.before[i] + geometry.after[i]).div_ceil(s));
        let area = plane[0] * plane[1];
        let mut offsets = Vec::with_capacity(geometry.channels * geometry.kernel[0] * geometry.kernel[1]);
        for c in 0..geometry.channels {
            for (i, j) in (0..geometry.kernel[0]).flat_map(|i| (0..geometry.kernel[1]).map(move |j| (i, j))) {
                let phase = (c * s + i % s) * s + j % s;
                offsets.push((phase * area + i / s * plane[1] + j / s) as u32);
            }
        }
        Self { geometry, size, output, plane, offsets }
    }

    /// Numbers of one channel's planes.
    fn channel(&self) -> usize {
        self.geometry.stride * self.geometry.stride * self.plane[0] * self.plane[1]
    }

    /// The convolution of all images, as many at a time as it takes to keep every processor busy.
    fn run(&self, spread: &dyn Spread, weights: &Weights, x: &[f32], y: &mut [f32]) {
        let (channels, [rows, columns], widest) = (self.geometry.channels, self.output, weights.positions);
        let (from, to) = (channels * self.size[0] * self.size[1], weights.out * rows * columns);
        let end = (rows - 1) * self.plane[1] + columns;
        let tiles = end.div_ceil(widest);
        let together = pieces(spread, tiles, x.len() / from);
        let parts = pieces(spread, tiles * together, weights.count());
        let image = channels * self.channel();
        // Tiles read beyond the last row of the last channel.
        let reach = Rows::new(&self.offsets).needs((tiles * widest).max(rows * self.plane[1]));
        let mut planes = vec![0.0; (together - 1) * image + image.max(reach)];
        for (x, y) in x.chunks(together * from).zip(y.chunks_mut(together * to)) {
            let images = x.len() / from;
            split_rows(spread, &mut planes[..images * image], self.channel(), 2 * self.channel(), &|first, planes| {
                self.fill(&x[first * self.size[0] * self.size[1]..], planes);
            });
            let (planes, y) = (&planes, Parts::new(y));
            let cost = weights.rows * weights.out * widest / parts / 16;
            split(spread, images * tiles * parts, 1, cost, &|range| {
                let work = OverPlanes { weights, planes: self, x: planes, y, parts, tiles, range };
                dispatch(weights.level, work);
            });
        }
    }

    /// Writes channels `[h, w]` into their padded planes; what is padding stays zero.
    fn fill(&self, channels: &[f32], planes: &mut [f32]) {
        let (s, [height, width], [top, left]) = (self.geometry.stride, self.size, self.geometry.before);
        let area = self.plane[0] * self.plane[1];
        for (channel, planes) in channels.chunks_exact(height * width).zip(planes.chunks_exact_mut(s * s * area)) {
            for (v, values) in (top..).zip(channel.chunks_exact(width)) {
                let start = v % s * s * area + v / s * self.plane[1];
                if s == 1 {
                    planes[start + left..start + left + width].copy_from_slice(values);
                    continue;
                }
                for (u, &value) in (left..).zip(values) {
                    planes[start + u % s * area + u / s] = value;
                }
            }
        }
    }
}

struct OverPlanes<'a> {
    weights: &'a Weights,
    planes: &'a Planes,
    /// The padded planes of some images.
    x: &'a [f32],
    y: Parts<'a>,
    /// Into how many the output channels are cut.
    parts: usize,
    tiles: usize,
    /// Of (image, tile of positions, part of the output channels).
    range: Range<usize>,
}

impl Work for OverPlanes<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { weights, planes, x, y, parts, tiles, range } = self;
        let ([rows, columns], pitch) = (planes.output, planes.plane[1]);
        let all = Rows::new(&planes.offsets);
        let widest = V::WIDE * V::LEN;
        let mut out = vec![0.0; V::HIGH * widest];
        let end = (rows - 1) * pitch + columns;
        for item in range {
            let (image, tile, part) = (item / parts / tiles, item / parts % tiles, item % parts);
            let start = tile * widest;
            let wide = (end - start).div_ceil(V::LEN).min(V::WIDE);
            let x = &x[image * planes.geometry.channels * planes.channel() + start..];
            let blocks = part * weights.count() / parts..(part + 1) * weights.count() / parts;
            for (first, w, bias) in weights.blocks(blocks, 0..weights.rows) {
                let tile = Tile { weights: tile::Weights::Packed(w), rows: all, bias, x };
                tile.compute::<V>(wide, &mut out, wide * V::LEN);
                let sums = out.chunks_exact(wide * V::LEN).take(V::HIGH.min(weights.out - first));
                for (sums, channel) in sums.zip(first..) {
                    let to = (image * weights.out + channel) * rows * columns;
                    store_rows(sums, start, [pitch, rows, columns], |range| {
                        // SAFETY: items differ in image, positions or channels.
                        unsafe { y.part(to + range.start..to + range.end) }
                    });
                }
            }
        }
    }
}

/// Takes the sums at positions `start..` of rows of `pitch`, of which `columns` count, to the parts of
/// `[rows, columns]` that `to` gives.
#[inline(always)]
fn store_rows<'a>(
    sums: &[f32],
    start: usize,
    [pitch, rows, columns]: [usize; 3],
    to: impl Fn(Range<usize>) -> &'a mut [f32],
) {
    let (mut row, mut at) = (start / pitch, 0);
    let mut column = start % pitch;
    while at < sums.len() && row < rows {
        if column < columns {
            let n = (columns - column).min(sums.len() - at);
            let place = row * columns + column;
            to(place..place + n).copy_from_slice(&sums[at..at + n]);
        }
        at += pitch - column;
        (row, column) = (row + 1, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::levels;
    use crate::kernels::spread::{Alone, Backwards};

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| ((i + 1) as f32 * f).sin()).collect()
    }

    /// The definition, in f64.
    fn naive(g: &Geometry, size: [usize; 2], weight: &[f32], bias: &[f32], x: &[f32]) -> Vec<f64> {
        let ([height, width], [rows, columns]) = (size, g.output(size).unwrap());
        let mut y = Vec::new();
        for image in x.chunks_exact(g.channels * height * width) {
            for (kernel, &b) in weight.chunks_exact(weight.len() / bias.len()).zip(bias) {
                for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    let tap = |k: usize| {
                        let (c, u, v) = (k / g.kernel[1] / g.kernel[0], k / g.kernel[1] % g.kernel[0], k % g.kernel[1]);
                        let row = (i * g.stride + u).checked_sub(g.before[0]).filter(|&r| r < height);
                        let column = (j * g.stride + v).checked_sub(g.before[1]).filter(|&r| r < width);
                        let (Some(row), Some(column)) = (row, column) else { return 0.0 };
                        f64::from(image[(c * height + row) * width + column]) * f64::from(kernel[k])
                    };
                    y.push(f64::from(b) + (0..kernel.len()).map(tap).sum::<f64>());
                }
            }
        }
        y
    }

    fn check(g: Geometry, n: usize, out: usize, size: [usize; 2]) {
        let (weight, bias) = (wave(out * g.channels * g.kernel[0] * g.kernel[1], 0.37), wave(out, 1.1));
        let x = wave(n * g.channels * size[0] * size[1], 0.71);
        let want = naive(&g, size, &weight, &bias, &x);
        let ways = if g == same(g.channels, [3, 3], 1) { &[None, Some(2), Some(4)][..] } else { &[None] };
        for (level, &tiles) in levels().into_iter().flat_map(|level| ways.iter().map(move |w| (level, w))) {
            let conv = Conv2d::pack(level, g, &weight, &bias, tiles);
            let mut y = vec![f32::NAN; want.len()];
            conv.run(&Alone, size, &x, &mut y).unwrap();
            let mut again = vec![f32::NAN; want.len()];
            conv.run(&Backwards(3), size, &x, &mut again).unwrap();
            assert!(y == again, "{level:?} {tiles:?} {g:?} {size:?} depends on threads");
            for (i, (a, b)) in y.iter().zip(&want).enumerate() {
                assert!((f64::from(*a) - b).abs() < 1e-4, "{level:?} {tiles:?} {g:?} {size:?} at {i}: {a} {b}");
            }
        }
    }

    fn same(channels: usize, kernel: [usize; 2], stride: usize) -> Geometry {
        let pad = [kernel[0] / 2, kernel[1] / 2];
        Geometry { channels, kernel, stride, before: pad, after: pad }
    }

    #[test]
    fn every_instruction_set_computes_the_definition_for_any_sizes() {
        for size in [[1, 1], [4, 6], [5, 7], [3, 50], [16, 24], [9, 64]] {
            check(same(3, [3, 3], 1), 2, 5, size);
            check(same(5, [1, 1], 1), 2, 9, size);
            check(same(2, [3, 3], 2), 1, 8, size);
        }
        check(same(40, [3, 3], 1), 3, 33, [12, 20]);
        check(same(2, [3, 1], 1), 1, 4, [6, 20]);
        check(same(2, [5, 3], 1), 1, 4, [6, 20]);
        check(Geometry { after: [1, 1], before: [0, 0], ..same(3, [3, 3], 2) }, 2, 3, [8, 10]);
        check(Geometry { after: [0, 0], before: [0, 0], ..same(3, [2, 2], 2) }, 2, 3, [9, 10]);
    }

    /// Root mean square error over root mean square, of numbers spread evenly in ±1.
    #[test]
    fn larger_tiles_round_little_more_than_the_sum_does() {
        let mut state = 1u32;
        let mut numbers = |n: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..n).map(|_| next()).collect()
        };
        let (g, size, out) = (same(128, [3, 3], 1), [16, 16], 8);
        let (weight, x) = (numbers(out * 128 * 9), numbers(128 * 256));
        let bias = vec![0.0; out];
        let want = naive(&g, size, &weight, &bias, &x);
        let error = |tiles: Option<usize>| {
            let mut y = vec![0.0; want.len()];
            Conv2d::pack(Level::detect(), g, &weight, &bias, tiles).run(&Alone, size, &x, &mut y).unwrap();
            let errors = y.iter().zip(&want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>();
            (errors / want.iter().map(|b| b * b).sum::<f64>()).sqrt()
        };
        let [direct, two, four] = [None, Some(2), Some(4)].map(error);
        assert!(direct < 8e-7 && two < 6e-7 && four < 1.3e-6, "{direct:.2e} {two:.2e} {four:.2e}");
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let g = same(2, [3, 3], 1);
        assert!(Conv2d::new(g, &[0.0; 17], &[0.0]).is_none());
        let conv = Conv2d::new(g, &[0.0; 18], &[0.0]).unwrap();
        assert!(conv.run(&Alone, [4, 4], &[0.0; 31], &mut [0.0; 16]).is_err());
        assert!(conv.run(&Alone, [4, 4], &[0.0; 32], &mut [0.0; 15]).is_err());
    }
}
