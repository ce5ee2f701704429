//! Convolutions of 3x3 taps with 16 instead of 36 products for each 2x2 outputs, in F(2x2, 3x3): an input tile of 4x4
//! becomes `Bᵀ d B`, the taps `G g Gᵀ`, their products, summed over channels, `Aᵀ m A`. All factors of the tiles are
//! 0 and ±1, so rounding is that of a few more sums.
//!
//! Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", §4.1.
#![allow(unsafe_code)]

use std::ops::Range;

use super::conv::Geometry;
use super::lanes::{Lanes, Level, Work, dispatch};
use super::packed::Weights;
use super::spread::{Parts, Spread, pieces, split, split_rows};
use super::tile::{self, Rows, Tile};

/// Numbers of a transformed tile.
const TILE: usize = 16;
/// Numbers of a cache line: matrices are so much apart that their rows do not fall onto the same lines.
const LINE: usize = 16;
const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// The taps of one convolution, transformed.
#[derive(Clone, Debug)]
pub struct Winograd {
    /// One matrix `[out, channels]` for each number of a tile.
    weights: Vec<Weights>,
}

impl Winograd {
    /// Does it pay? Transforming a tile costs as much as some output channels of products.
    pub fn suits(g: &Geometry, out: usize) -> bool {
        g.kernel == [3, 3] && g.stride == 1 && g.channels >= 16 && out >= 16
    }

    /// `weight` is `[out, channels, 3, 3]`, `bias` `[out]`.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32]) -> Self {
        let channels = weight.len() / bias.len() / 9;
        let order: Vec<usize> = (0..channels).collect();
        let zeros = vec![0.0; bias.len()];
        let matrix = |k: usize| {
            let (rows, columns) = (G[k / 4], G[k % 4]);
            let transformed = |taps: &[f32]| {
                let tap = |i: usize, j: usize| rows[i] * f64::from(taps[i * 3 + j]) * columns[j];
                (0..3).flat_map(|i| (0..3).map(move |j| (i, j))).map(|(i, j)| tap(i, j)).sum::<f64>() as f32
            };
            let weight: Vec<f32> = weight.chunks_exact(9).map(transformed).collect();
            // Number (1, 1) counts once in each of the four outputs: the bias starts there.
            Weights::pack(level, &weight, if k == 5 { bias } else { &zeros }, &order)
        };
        Self { weights: (0..TILE).map(matrix).collect() }
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        self.weights[0].out
    }

    /// Images `[n, c, size]` to `[n, out, output]`, as many at a time as it takes to fill the tiles of every processor.
    pub fn run(&self, spread: &dyn Spread, g: &Geometry, [size, output]: [[usize; 2]; 2], x: &[f32], y: &mut [f32]) {
        let tiles = output.map(|n| n.div_ceil(2));
        let widest = self.weights[0].positions;
        let (from, to) = (g.channels * size[0] * size[1], self.out() * output[0] * output[1]);
        let each = (tiles[0] + 1) * (tiles[1] + 1);
        let together = (widest * 4 * spread.width()).div_ceil(each).clamp(1, x.len() / from);
        let mut grid = Grid { size, output, before: g.before, tiles, images: together, channels: g.channels };
        // Tiles read beyond the last row of the last channel.
        let channel = grid.channel();
        let mut planes = vec![0.0; g.channels * channel + widest + tiles[1] + 2];
        for (x, y) in x.chunks(together * from).zip(y.chunks_mut(together * to)) {
            grid.images = x.len() / from;
            split_rows(spread, &mut planes[..g.channels * channel], channel, channel, &|first, planes| {
                for (c, planes) in (first..).zip(planes.chunks_exact_mut(channel)) {
                    grid.fill(c, channel / 4, x, planes);
                }
            });
            let count = grid.positions().div_ceil(widest);
            let parts = pieces(spread, count, self.weights[0].count());
            let (planes, y) = (&planes[..], Parts::new(y));
            let cost = g.channels * self.out() * widest / parts;
            split(spread, count * parts, 1, cost, &|range| {
                let work = OverTiles { winograd: self, grid, area: channel / 4, x: planes, y, parts, range };
                dispatch(self.weights[0].level, work);
            });
        }
    }
}

/// How images lie in the planes: for each channel four, of the even and odd rows and columns, in which the images, each
/// with a row and column more than it has tiles, stand one below the other. So the numbers of a tile are at the same
/// distances everywhere, and those of neighbouring tiles side by side.
#[derive(Clone, Copy)]
struct Grid {
    size: [usize; 2],
    output: [usize; 2],
    before: [usize; 2],
    /// Rows and columns of tiles.
    tiles: [usize; 2],
    images: usize,
    channels: usize,
}

impl Grid {
    fn pitch(&self) -> usize {
        self.tiles[1] + 1
    }

    /// Numbers of one channel.
    fn channel(&self) -> usize {
        4 * self.images * (self.tiles[0] + 1) * self.pitch()
    }

    /// Positions up to the last tile.
    fn positions(&self) -> usize {
        (self.images * (self.tiles[0] + 1) - 2) * self.pitch() + self.tiles[1]
    }

    /// Writes one channel of all images into its planes of `area` numbers; what is padding stays zero.
    fn fill(&self, channel: usize, area: usize, x: &[f32], planes: &mut [f32]) {
        let [height, width] = self.size;
        for image in 0..self.images {
            let x = &x[(image * self.channels + channel) * height * width..][..height * width];
            for (v, row) in (self.before[0]..).zip(x.chunks_exact(width)) {
                let start = v % 2 * 2 * area + (image * (self.tiles[0] + 1) + v / 2) * self.pitch();
                for (u, &value) in (self.before[1]..).zip(row) {
                    planes[start + u % 2 * area + u / 2] = value;
                }
            }
        }
    }
}

struct OverTiles<'a> {
    winograd: &'a Winograd,
    grid: Grid,
    area: usize,
    x: &'a [f32],
    y: Parts<'a>,
    /// Into how many the output channels are cut.
    parts: usize,
    /// Of (block of tiles, part of the output channels).
    range: Range<usize>,
}

impl Work for OverTiles<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { winograd, grid, area, x, y, parts, range } = self;
        let (widest, weights) = (V::WIDE * V::LEN, &winograd.weights[0]);
        let mut panel = vec![0.0; TILE * (grid.channels * widest + LINE)];
        let mut sums = vec![0.0; TILE * V::HIGH * widest];
        let mut outputs = vec![0.0; 4 * widest];
        let mut transformed = None;
        for item in range {
            let (block, part) = (item / parts, item % parts);
            let start = block * widest;
            let wide = (grid.positions() - start).div_ceil(V::LEN).min(V::WIDE);
            let full = wide * V::LEN;
            if transformed.replace(block) != Some(block) {
                for c in 0..grid.channels {
                    let x = &x[c * 4 * area + start..];
                    tiles_in::<V>(x, [area, grid.pitch(), wide], &mut panel[c * full..], grid.channels * full + LINE);
                }
            }
            let offsets: Vec<u32> = (0..grid.channels).map(|c| (c * full) as u32).collect();
            let rows = Rows::new(&offsets);
            for i in part * weights.count() / parts..(part + 1) * weights.count() / parts {
                let mut first = 0;
                for (k, weights) in winograd.weights.iter().enumerate() {
                    for (channel, w, bias) in weights.blocks(i..i + 1, 0..weights.rows) {
                        let x = &panel[k * (grid.channels * full + LINE)..];
                        let tile = Tile { weights: tile::Weights::Packed(w), rows, bias, x };
                        tile.compute::<V>(wide, &mut sums[k * V::HIGH * full..], full);
                        first = channel;
                    }
                }
                for m in 0..V::HIGH.min(weights.out - first) {
                    tiles_out::<V>(&sums[m * full..], V::HIGH * full, wide, &mut outputs);
                    store(&grid, &outputs[..4 * full], start, |image, range: Range<usize>| {
                        let to = (image * weights.out + first + m) * grid.output[0] * grid.output[1];
                        // SAFETY: items differ in tiles or channels.
                        unsafe { y.part(to + range.start..to + range.end) }
                    });
                }
            }
        }
    }
}

/// `Bᵀ d B` of `wide` vectors of tiles: number `k` of them at `k · pitch` of `to`.
#[inline(always)]
fn tiles_in<V: Lanes>(x: &[f32], [area, row, wide]: [usize; 3], to: &mut [f32], pitch: usize) {
    assert!(x.len() >= 3 * area + row + 1 + wide * V::LEN, "tiles stay inside their planes");
    for i in 0..wide {
        let mut d = [[V::splat(0.0); 4]; 4];
        for (u, numbers) in d.iter_mut().enumerate() {
            for (v, number) in numbers.iter_mut().enumerate() {
                let at = (u % 2 * 2 + v % 2) * area + u / 2 * row + v / 2 + i * V::LEN;
                // SAFETY: at + LEN ≤ 3 · area + row + 1 + wide · LEN, checked above.
                *number = unsafe { V::load(x.as_ptr().add(at)) };
            }
            *numbers = forward(*numbers);
        }
        for column in 0..4 {
            let numbers = forward([d[0][column], d[1][column], d[2][column], d[3][column]]);
            for (r, number) in numbers.iter().enumerate() {
                number.store(&mut to[(r * 4 + column) * pitch + i * V::LEN..]);
            }
        }
    }
}

/// `Bᵀ d`
#[inline(always)]
fn forward<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 4] {
    [minus(a, c), plus(b, c), minus(c, b), minus(b, d)]
}

/// `Aᵀ m`
#[inline(always)]
fn backward<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 2] {
    [plus(plus(a, b), c), minus(minus(b, c), d)]
}

#[inline(always)]
fn plus<V: Lanes>(a: V, b: V) -> V {
    V::splat(1.0).madd(b, a)
}

#[inline(always)]
fn minus<V: Lanes>(a: V, b: V) -> V {
    V::splat(-1.0).madd(b, a)
}

/// `Aᵀ m A` of `wide` vectors of tiles, number `k` of which is at `k · pitch`: the four outputs one after the other.
#[inline(always)]
fn tiles_out<V: Lanes>(m: &[f32], pitch: usize, wide: usize, to: &mut [f32]) {
    let full = wide * V::LEN;
    assert!(m.len() >= (TILE - 1) * pitch + full, "all sums of the tiles are there");
    for i in 0..wide {
        let mut rows = [[V::splat(0.0); 2]; 4];
        for (u, row) in rows.iter_mut().enumerate() {
            let mut d = [V::splat(0.0); 4];
            for (v, d) in d.iter_mut().enumerate() {
                // SAFETY: u · 4 + v < TILE, checked above.
                *d = unsafe { V::load(m.as_ptr().add((u * 4 + v) * pitch + i * V::LEN)) };
            }
            *row = backward(d);
        }
        for column in 0..2 {
            let [above, below] = backward([rows[0][column], rows[1][column], rows[2][column], rows[3][column]]);
            above.store(&mut to[column * full + i * V::LEN..]);
            below.store(&mut to[(2 + column) * full + i * V::LEN..]);
        }
    }
}

/// Takes the outputs of the tiles at positions `start..` to the rows of the images that `to` gives.
#[inline(always)]
fn store<'a>(grid: &Grid, outputs: &[f32], start: usize, to: impl Fn(usize, Range<usize>) -> &'a mut [f32]) {
    let (pitch, [rows, columns]) = (grid.pitch(), grid.output);
    let full = outputs.len() / 4;
    let end = (start + full).min(grid.positions());
    let mut position = start;
    while position < end {
        let (row, column) = (position / pitch, position % pitch);
        let (image, tile) = (row / (grid.tiles[0] + 1), row % (grid.tiles[0] + 1));
        let next = end.min((row + 1) * pitch);
        let last = grid.tiles[1].min(column + next - position);
        if column < last {
            for v in (2 * tile..rows).take(2) {
                let from = (v - 2 * tile) * 2 * full + position - start;
                let (left, right) = (&outputs[from..][..last - column], &outputs[from + full..][..last - column]);
                let y = to(image, v * columns + 2 * column..v * columns + columns.min(2 * last));
                let (pairs, rest) = y.as_chunks_mut::<2>();
                for (pair, (&l, &r)) in pairs.iter_mut().zip(left.iter().zip(right)) {
                    *pair = [l, r];
                }
                if let ([rest], Some(&l)) = (rest, left.last()) {
                    *rest = l;
                }
            }
        }
        position = next;
    }
}
