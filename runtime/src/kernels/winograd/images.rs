//! 3x3 convolutions over height and width: 16 instead of 36 products for each 2x2 outputs, or 36 instead of 144 for 4x4.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Four, LINE, Transforms, Two, pays};
use crate::kernels::conv::Geometry;
use crate::kernels::lanes::{Lanes, Level, Work, dispatch};
use crate::kernels::packed::Weights;
use crate::kernels::scratch::Scratch;
use crate::kernels::spread::{Parts, Spread, pieces, split, split_rows};
use crate::kernels::tile::{self, Rows, Tile};

/// Taps up to which tiles are of 4x4 outputs, whose weights are four times the taps: 38 MB here. More go with tiles of
/// 2x2, 1.8 times the taps.
const LARGE: usize = 512 * 512;

/// The taps of one convolution, transformed.
#[derive(Clone, Debug)]
pub struct Winograd {
    /// One matrix `[out, channels]` for each number of a tile.
    weights: Vec<Weights>,
    bias: Vec<f32>,
    /// Height and width of a tile's outputs, 2 or 4.
    outputs: usize,
}

impl Winograd {
    /// Height and width of the tiles for a convolution, when that pays.
    pub fn outputs(g: &Geometry, out: usize) -> Option<usize> {
        let same = Geometry { channels: g.channels, kernel: [3, 3], stride: 1, before: [1, 1], after: [1, 1] };
        (*g == same && pays(g.channels, out)).then_some(if g.channels * out <= LARGE { 4 } else { 2 })
    }

    /// `weight` is `[out, channels, 3, 3]`, `bias` `[out]`, `outputs` 2 or 4.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32], outputs: usize) -> Self {
        let weights = if outputs == 2 {
            transformed::<Two, 4, 2>(level, weight, bias.len())
        } else {
            transformed::<Four, 6, 4>(level, weight, bias.len())
        };
        Self { weights, bias: bias.to_vec(), outputs }
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        self.bias.len()
    }

    /// Images `[n, channels, size]` to `[n, out, size]`, as many at a time as it takes to fill the tiles of every
    /// processor.
    pub fn run(&self, spread: &dyn Spread, channels: usize, size: [usize; 2], x: &[f32], y: &mut [f32]) {
        let tiles = size.map(|n| n.div_ceil(self.outputs));
        let widest = self.weights[0].positions;
        let area = size[0] * size[1];
        let together = (widest * 4 * spread.width()).div_ceil(tiles[0] * tiles[1]);
        let together = together.clamp(1, x.len() / (channels * area));
        let mut grid = Grid { size, tiles, images: together, channels, outputs: self.outputs };
        let all = grid.guard() + channels * grid.channel() + grid.guard() + widest;
        let mut planes = Scratch::take(all);
        for (x, y) in x.chunks(together * channels * area).zip(y.chunks_mut(together * self.out() * area)) {
            grid.images = x.len() / (channels * area);
            let (guard, channel) = (grid.guard(), grid.channel());
            let inner = &mut planes[guard..guard + channels * channel];
            split_rows(spread, inner, channel, channel, &|first, planes| {
                dispatch(self.weights[0].level, Fill { grid, x, first, planes });
            });
            let count = grid.positions().div_ceil(widest);
            let parts = pieces(spread, count, self.weights[0].count());
            let cost = channels * self.out() * widest / parts;
            let (planes, y) = (&*planes, Parts::new(y));
            split(spread, count * parts, 1, cost, &|range| {
                let level = self.weights[0].level;
                let work = Blocks { winograd: self, grid, x: planes, y, parts, range };
                if self.outputs == 2 {
                    dispatch(level, OverTiles::<Two, 4, 2>(work, Two));
                } else {
                    dispatch(level, OverTiles::<Four, 6, 4>(work, Four));
                }
            });
        }
    }
}

/// `G g Gᵀ`, a matrix `[out, channels]` for each number.
fn transformed<T: Transforms<I, O>, const I: usize, const O: usize>(
    level: Level,
    weight: &[f32],
    out: usize,
) -> Vec<Weights> {
    let mut matrices = vec![vec![0.0; weight.len() / 9]; I * I];
    for (place, taps) in weight.as_chunks::<9>().0.iter().enumerate() {
        let columns: [[f64; 3]; I] =
            std::array::from_fn(|k| std::array::from_fn(|j| T::tap(k, |i| f64::from(taps[i * 3 + j]))));
        for (k, matrix) in matrices.iter_mut().enumerate() {
            matrix[place] = T::tap(k % I, |j| columns[k / I][j]) as f32;
        }
    }
    let (order, zeros): (Vec<usize>, _) = ((0..weight.len() / out / 9).collect(), vec![0.0; out]);
    matrices.iter().map(|matrix| Weights::pack(level, matrix, &zeros, &order)).collect()
}

/// How some images lie in planes. A channel has one for every place within a tile, `outputs²`; in it, the tiles of all
/// images follow one another without a gap. A neighbouring tile's number is then at a fixed distance, and is masked
/// where there is no such tile.
#[derive(Clone, Copy)]
struct Grid {
    size: [usize; 2],
    /// Rows and columns of tiles.
    tiles: [usize; 2],
    images: usize,
    channels: usize,
    outputs: usize,
}

impl Grid {
    /// Tiles of all images.
    fn positions(&self) -> usize {
        self.images * self.tiles[0] * self.tiles[1]
    }

    /// Numbers of one channel's planes.
    fn channel(&self) -> usize {
        self.outputs * self.outputs * self.positions()
    }

    /// How far from its own place a tile reads.
    fn guard(&self) -> usize {
        self.tiles[1] + 1
    }

    /// For each border, left, right, above, below, all bits where the tile at a position has a neighbour beyond it.
    fn masks(&self, start: usize, masks: [&mut [f32]; 4]) {
        let [rows, columns] = self.tiles;
        let bits = |inner: bool| f32::from_bits(if inner { u32::MAX } else { 0 });
        let [left, right, above, below] = masks;
        for (i, position) in (0..left.len()).zip(start..) {
            let (row, column) = (position / columns % rows, position % columns);
            left[i] = bits(column > 0);
            right[i] = bits(column + 1 < columns);
            above[i] = bits(row > 0);
            below[i] = bits(row + 1 < rows);
        }
    }
}

/// Takes channels from `first` on to their planes, with zeros beyond the images.
struct Fill<'a> {
    grid: Grid,
    x: &'a [f32],
    first: usize,
    planes: &'a mut [f32],
}

impl Work for Fill<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { grid, x, first, planes } = self;
        let Grid { size: [height, width], tiles: [rows, columns], outputs, .. } = grid;
        let mut lines = vec![0.0; rows * columns * outputs];
        for (c, planes) in (first..).zip(planes.chunks_exact_mut(grid.channel())) {
            for image in 0..grid.images {
                let x = &x[(image * grid.channels + c) * height * width..][..height * width];
                for u in 0..outputs {
                    for (row, line) in lines.chunks_exact_mut(columns * outputs).enumerate() {
                        let y = row * outputs + u;
                        let n = if y < height { width } else { 0 };
                        tile::copy(&x[y.min(height) * width..][..n], line);
                        line[n..].fill(0.0);
                    }
                    let planes = &mut planes[u * outputs * grid.positions()..][..outputs * grid.positions()];
                    part::<V>(&lines, outputs, planes, image * rows * columns, grid.positions());
                }
            }
        }
    }
}

/// Number `k · outputs + v` of `lines` becomes number `start + k` of plane `v`; planes are `pitch` apart.
#[inline(always)]
fn part<V: Lanes>(lines: &[f32], outputs: usize, planes: &mut [f32], start: usize, pitch: usize) {
    let count = lines.len() / outputs;
    let full = count / V::LEN * V::LEN;
    for k in (0..full).step_by(V::LEN) {
        let at = |i: usize| V::from_slice(&lines[k * outputs + i * V::LEN..]);
        let (even, odd) = at(0).unzip(at(1));
        if outputs == 2 {
            even.store(&mut planes[start + k..]);
            odd.store(&mut planes[pitch + start + k..]);
        } else {
            let (more_even, more_odd) = at(2).unzip(at(3));
            let ((zero, two), (one, three)) = (even.unzip(more_even), odd.unzip(more_odd));
            zero.store(&mut planes[start + k..]);
            one.store(&mut planes[pitch + start + k..]);
            two.store(&mut planes[2 * pitch + start + k..]);
            three.store(&mut planes[3 * pitch + start + k..]);
        }
    }
    for k in full..count {
        for v in 0..outputs {
            planes[v * pitch + start + k] = lines[k * outputs + v];
        }
    }
}

#[derive(Clone)]
struct Blocks<'a> {
    winograd: &'a Winograd,
    grid: Grid,
    /// Planes of all channels between guards.
    x: &'a [f32],
    y: Parts<'a>,
    /// Into how many the output channels are cut.
    parts: usize,
    /// Of (block of tiles, part of the output channels).
    range: Range<usize>,
}

struct OverTiles<'a, T, const I: usize, const O: usize>(Blocks<'a>, T);

impl<T: Transforms<I, O>, const I: usize, const O: usize> Work for OverTiles<'_, T, I, O> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Blocks { winograd, grid, x, y, parts, range } = self.0;
        let (widest, weights) = (V::WIDE * V::LEN, &winograd.weights[0]);
        let panel = I * I * (grid.channels * widest + LINE);
        let sums = I * I * V::HIGH * widest;
        let mut masks = vec![0.0; 4 * widest];
        let mut transformed = None;
        let mut scratch = Scratch::take(panel + sums + O * O * widest);
        let (panel, rest) = scratch.split_at_mut(panel);
        let (sums, outputs) = rest.split_at_mut(sums);
        for item in range {
            let (block, part) = (item / parts, item % parts);
            let start = block * widest;
            let wide = (grid.positions() - start).div_ceil(V::LEN).min(V::WIDE);
            let full = wide * V::LEN;
            let pitch = grid.channels * full + LINE;
            if transformed.replace(block) != Some(block) {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| i * full..(i + 1) * full);
                if let Ok(borders) = masks.get_disjoint_mut([a, b, c, d]) {
                    grid.masks(start, borders);
                }
                for c in 0..grid.channels {
                    let x = &x[c * grid.channel() + start..];
                    tiles_in::<V, T, I, O>(x, &grid, (&masks[..4 * full], wide), &mut panel[c * full..], pitch);
                }
            }
            let offsets: Vec<u32> = (0..grid.channels).map(|c| (c * full) as u32).collect();
            let rows = Rows::new(&offsets);
            for i in part * weights.count() / parts..(part + 1) * weights.count() / parts {
                let mut first = 0;
                for (k, weights) in winograd.weights.iter().enumerate() {
                    for (channel, w, _) in weights.blocks(i..i + 1, 0..weights.rows) {
                        let tile = Tile { weights: tile::Weights::Packed(w), rows, bias: &[], x: &panel[k * pitch..] };
                        tile.compute::<V>(wide, &mut sums[k * V::HIGH * full..], full);
                        first = channel;
                    }
                }
                for (m, &bias) in winograd.bias[first..].iter().enumerate().take(V::HIGH) {
                    tiles_out::<V, T, I, O>(&sums[m * full..], V::HIGH * full, (wide, bias), outputs);
                    store(&grid, &outputs[..O * O * full], start, |image, range: Range<usize>| {
                        let to = (image * weights.out + first + m) * grid.size[0] * grid.size[1];
                        // SAFETY: items differ in tiles or channels.
                        unsafe { y.part(to + range.start..to + range.end) }
                    });
                }
            }
        }
    }
}

/// `Bᵀ d B` of `wide` vectors of one channel's tiles, `x` from the guard before the first: number `k` of them at
/// `k · pitch` of `to`.
#[inline(always)]
fn tiles_in<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(
    x: &[f32],
    grid: &Grid,
    (masks, wide): (&[f32], usize),
    to: &mut [f32],
    pitch: usize,
) {
    let (plane, row, guard, full) = (grid.positions(), grid.tiles[1], grid.guard(), wide * V::LEN);
    assert!(x.len() >= guard + (O * O - 1) * plane + guard + full, "tiles stay inside their planes");
    assert!(to.len() >= (I * I - 1) * pitch + full && masks.len() == 4 * full, "there is room for all tiles");
    for i in 0..wide {
        let mask = |border: usize| V::from_slice(&masks[border * full + i * V::LEN..]);
        let [left, right, above, below] = [mask(0), mask(1), mask(2), mask(3)];
        let mut d = [[V::splat(0.0); I]; I];
        for v in 0..I {
            // The plane of a number, and how far from the tile's own place it is there.
            let (column, right_of) = ((v + O - 1) % O, guard - usize::from(v == 0) + usize::from(v == I - 1));
            let mut numbers = [V::splat(0.0); I];
            for (u, number) in numbers.iter_mut().enumerate() {
                let (line, below_of) = ((u + O - 1) % O, right_of + row * usize::from(u == I - 1));
                let at = (line * O + column) * plane + below_of - row * usize::from(u == 0) + i * V::LEN;
                // SAFETY: at ≤ (O² − 1) · plane + 2 · guard + full − LEN, checked above.
                *number = unsafe { V::load(x.as_ptr().add(at)) };
            }
            numbers[0] = numbers[0].and(above);
            numbers[I - 1] = numbers[I - 1].and(below);
            let numbers = T::forward(numbers);
            for (row, number) in d.iter_mut().zip(numbers) {
                row[v] = number;
            }
        }
        for (r, row) in d.into_iter().enumerate() {
            let mut row = row;
            row[0] = row[0].and(left);
            row[I - 1] = row[I - 1].and(right);
            for (c, number) in T::forward(row).into_iter().enumerate() {
                number.store(&mut to[(r * I + c) * pitch + i * V::LEN..]);
            }
        }
    }
}

/// `Aᵀ m A` of `wide` vectors of tiles, number `k` of which is at `k · pitch`: `O` rows of outputs one after the other,
/// in each the outputs of one tile side by side.
#[inline(always)]
fn tiles_out<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(
    m: &[f32],
    pitch: usize,
    (wide, bias): (usize, f32),
    to: &mut [f32],
) {
    let full = wide * V::LEN;
    assert!(m.len() >= (I * I - 1) * pitch + full, "all sums of the tiles are there");
    let (one, bias) = (V::splat(1.0), V::splat(bias));
    for i in 0..wide {
        let mut columns = [[V::splat(0.0); I]; O];
        for v in 0..I {
            let mut numbers = [V::splat(0.0); I];
            for (u, number) in numbers.iter_mut().enumerate() {
                // SAFETY: u · I + v < I², checked above.
                *number = unsafe { V::load(m.as_ptr().add((u * I + v) * pitch + i * V::LEN)) };
            }
            for (row, number) in columns.iter_mut().zip(T::backward(numbers)) {
                row[v] = number;
            }
        }
        for (row, to) in columns.into_iter().zip(to.chunks_exact_mut(O * full)) {
            let mut outputs = T::backward(row);
            for output in &mut outputs {
                *output = one.madd(*output, bias);
            }
            join(outputs, &mut to[i * O * V::LEN..]);
        }
    }
}

/// Lane `k` of vector `v` becomes number `k · O + v`.
#[inline(always)]
fn join<V: Lanes, const O: usize>(vectors: [V; O], to: &mut [f32]) {
    if O == 2 {
        let (a, b) = vectors[0].zip(vectors[1]);
        a.store(to);
        b.store(&mut to[V::LEN..]);
    } else {
        let ((even, more_even), (odd, more_odd)) = (vectors[0].zip(vectors[2]), vectors[1].zip(vectors[3]));
        let ((a, b), (c, d)) = (even.zip(odd), more_even.zip(more_odd));
        for (i, vector) in [a, b, c, d].into_iter().enumerate() {
            vector.store(&mut to[i * V::LEN..]);
        }
    }
}

/// Takes the outputs of the tiles at positions `start..` to the rows of the images that `to` gives.
#[inline(always)]
fn store<'a>(grid: &Grid, outputs: &[f32], start: usize, to: impl Fn(usize, Range<usize>) -> &'a mut [f32]) {
    let Grid { size: [height, width], tiles: [rows, columns], outputs: o, .. } = *grid;
    let line = outputs.len() / o;
    let end = (start + line / o).min(grid.positions());
    let mut position = start;
    while position < end {
        let (image, row, column) = (position / columns / rows, position / columns % rows, position % columns);
        let last = columns.min(column + end - position);
        let n = width.min(last * o) - column * o;
        for (v, outputs) in (row * o..height.min(row * o + o)).zip(outputs.chunks_exact(line)) {
            let from = (position - start) * o;
            let at = v * width + column * o;
            tile::copy(&outputs[from..from + n], to(image, at..at + n));
        }
        position += last - column;
    }
}
