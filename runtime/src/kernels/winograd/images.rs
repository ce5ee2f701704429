//! 3x3 convolutions over height and width: 16 instead of 36 products for each 2x2 outputs, or 36 instead of 144 for 4x4.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use super::products::{self, Panel, Sums, Tiling};
use super::taps::Taps;
use super::{Four, Transforms, Two, pays};
use crate::kernels::conv::Geometry;
use crate::kernels::lanes::{Lanes, Level, Work, dispatch};
use crate::kernels::scratch::Scratch;
use crate::kernels::spread::{Parts, Spread, split_rows};
use crate::kernels::tile;

/// A convolution of 3x3 taps, with zeros beyond the images.
#[derive(Clone, Debug)]
pub struct Winograd {
    taps: Taps,
    /// Height and width of a tile's outputs, 2 or 4.
    outputs: usize,
}

impl Winograd {
    /// Height and width of the tiles for a convolution, when that pays.
    pub fn outputs(g: &Geometry, out: usize) -> Option<usize> {
        let same = Geometry { channels: g.channels, kernel: [3, 3], stride: 1, before: [1, 1], after: [1, 1] };
        (*g == same && pays(g.channels, out)).then_some(4)
    }

    /// `weight` is `[out, channels, 3, 3]`, `bias` `[out]`, `outputs` 2 or 4.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32], outputs: usize) -> Self {
        Self { taps: Taps::pack(level, weight, bias, 9), outputs }
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        self.taps.bias.len()
    }

    /// Images `[n, channels, size]` to `[n, out, size]`.
    pub fn run(&self, spread: &dyn Spread, channels: usize, size: [usize; 2], x: &[f32], y: &mut [f32]) {
        if self.outputs == 2 {
            self.over::<Two, 4, 2>(spread, channels, size, x, y);
        } else {
            self.over::<Four, 6, 4>(spread, channels, size, x, y);
        }
    }

    /// As many images at a time as their tiles are best computed together.
    fn over<T: Transforms<I, O> + Sync, const I: usize, const O: usize>(
        &self,
        spread: &dyn Spread,
        channels: usize,
        size: [usize; 2],
        x: &[f32],
        y: &mut [f32],
    ) {
        let (layout, tiles, area) = (self.taps.layout(), size.map(|n| n.div_ceil(O)), size[0] * size[1]);
        let together = products::together(spread, &self.taps, I).div_ceil(tiles[0] * tiles[1]);
        let together = together.clamp(1, x.len() / (channels * area));
        let mut grid = Grid { size, tiles, images: together, channels, outputs: O };
        let mut planes = Scratch::take(grid.guard() + channels * grid.channel() + grid.guard() + layout.positions);
        for (x, y) in x.chunks(together * channels * area).zip(y.chunks_mut(together * self.out() * area)) {
            grid.images = x.len() / (channels * area);
            let (guard, channel) = (grid.guard(), grid.channel());
            let inner = &mut planes[guard..guard + channels * channel];
            split_rows(spread, inner, channel, channel, &|first, planes| {
                dispatch(layout.level, Fill { grid, x, first, planes });
            });
            let tiling =
                OverImages::<T, I, O> { grid, x: &planes, y: Parts::new(y), out: self.out(), kind: PhantomData };
            products::run(spread, &self.taps, &tiling);
        }
    }
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

struct OverImages<'a, T, const I: usize, const O: usize> {
    grid: Grid,
    /// Planes of all channels between guards.
    x: &'a [f32],
    y: Parts<'a>,
    /// Output channels.
    out: usize,
    kind: PhantomData<T>,
}

impl<T: Transforms<I, O> + Sync, const I: usize, const O: usize> Tiling<I, O> for OverImages<'_, T, I, O> {
    type Kind = T;

    fn channels(&self) -> usize {
        self.grid.channels
    }

    fn blocks(&self, widest: usize) -> usize {
        self.grid.positions().div_ceil(widest)
    }

    fn tiles(&self, block: usize, widest: usize) -> usize {
        (self.grid.positions() - block * widest).min(widest)
    }

    #[inline(always)]
    fn load<V: Lanes>(&self, block: usize, channels: Range<usize>, panel: &Panel<'_>) {
        let (start, full) = (block * V::WIDE * V::LEN, panel.full);
        let mut masks = vec![0.0; 4 * full];
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| i * full..(i + 1) * full);
        if let Ok(borders) = masks.get_disjoint_mut([a, b, c, d]) {
            self.grid.masks(start, borders);
        }
        for c in channels {
            let x = &self.x[c * self.grid.channel() + start..];
            tiles_in::<V, T, I, O>(x, &self.grid, &masks, (panel, c));
        }
    }

    #[inline(always)]
    fn store<V: Lanes>(&self, block: usize, channel: usize, sums: &Sums<'_>, bias: f32, room: &mut [f32]) {
        let outputs = &mut room[..O * O * sums.full];
        tiles_out::<V, T, I, O>(sums, bias, outputs);
        store(&self.grid, outputs, block * V::WIDE * V::LEN, |image, range: Range<usize>| {
            let to = (image * self.out + channel) * self.grid.size[0] * self.grid.size[1];
            // SAFETY: blocks differ in tiles, and outputs in channels.
            unsafe { self.y.part(to + range.start..to + range.end) }
        });
    }
}

/// `Bᵀ d B` of the tiles of one channel, `x` from the guard before the first.
#[inline(always)]
fn tiles_in<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(
    x: &[f32],
    grid: &Grid,
    masks: &[f32],
    (panel, channel): (&Panel<'_>, usize),
) {
    let (plane, row, guard, full) = (grid.positions(), grid.tiles[1], grid.guard(), panel.full);
    assert!(x.len() >= guard + (O * O - 1) * plane + guard + full, "tiles stay inside their planes");
    for at in (0..full).step_by(V::LEN) {
        let mask = |border: usize| V::from_slice(&masks[border * full + at..]);
        let [left, right, above, below] = [mask(0), mask(1), mask(2), mask(3)];
        let mut d = [[V::splat(0.0); I]; I];
        for v in 0..I {
            // The plane of a number, and how far from the tile's own place it is there.
            let (column, right_of) = ((v + O - 1) % O, guard - usize::from(v == 0) + usize::from(v == I - 1));
            let mut numbers = [V::splat(0.0); I];
            for (u, number) in numbers.iter_mut().enumerate() {
                let (line, below_of) = ((u + O - 1) % O, right_of + row * usize::from(u == I - 1));
                let from = (line * O + column) * plane + below_of - row * usize::from(u == 0) + at;
                // SAFETY: from ≤ (O² − 1) · plane + 2 · guard + full − LEN, checked above.
                *number = unsafe { V::load(x.as_ptr().add(from)) };
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
                panel.set(r * I + c, channel, at, number);
            }
        }
    }
}

/// `Aᵀ m A` of one channel's tiles: `O` rows of outputs one after the other, in each the outputs of one tile side by side.
#[inline(always)]
fn tiles_out<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(
    sums: &Sums<'_>,
    bias: f32,
    to: &mut [f32],
) {
    let (one, bias) = (V::splat(1.0), V::splat(bias));
    for at in (0..sums.full).step_by(V::LEN) {
        let mut columns = [[V::splat(0.0); I]; O];
        for v in 0..I {
            let mut numbers = [V::splat(0.0); I];
            for (u, number) in numbers.iter_mut().enumerate() {
                *number = sums.get(u * I + v, at);
            }
            for (row, number) in columns.iter_mut().zip(T::backward(numbers)) {
                row[v] = number;
            }
        }
        for (row, to) in columns.into_iter().zip(to.chunks_exact_mut(O * sums.full)) {
            let mut outputs = T::backward(row);
            for output in &mut outputs {
                *output = one.madd(*output, bias);
            }
            join(outputs, &mut to[O * at..]);
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
