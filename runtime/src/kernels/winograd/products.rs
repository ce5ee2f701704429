//! The products of transformed tiles with transformed taps, summed over channels.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use super::taps::Taps;
use super::{LINE, Transforms};
use crate::kernels::lanes::{Lanes, Work, dispatch};
use crate::kernels::scratch::Scratch;
use crate::kernels::spread::{Parts, Spread, split};
use crate::kernels::tile::{self, Rows, Tile};

/// Numbers of transformed taps that one processor uses at a time, 512 KB: they stay in its second cache.
const TAPS: usize = 1 << 17;
/// Blocks of tiles for each processor that are used at a time: taps are transformed for them, and tiles stay in the last cache.
const BLOCKS: usize = 4;
/// Numbers of transformed tiles at a time, 16 MB, unless there were less than a block for each processor.
const TILES: usize = 1 << 22;

/// How an input becomes tiles, and sums become outputs. Tiles lie in blocks of `WIDE` vectors, the last ones of fewer.
pub trait Tiling<const I: usize, const O: usize>: Sync {
    /// The transforms.
    type Kind: Transforms<I, O>;

    /// Input channels.
    fn channels(&self) -> usize;

    /// Blocks of at most `widest` tiles.
    fn blocks(&self, widest: usize) -> usize;

    /// Tiles of a block of at most `widest`.
    fn tiles(&self, block: usize, widest: usize) -> usize;

    /// `Bᵀ d` of some channels of a block.
    fn load<V: Lanes>(&self, block: usize, channels: Range<usize>, panel: &Panel<'_>);

    /// `Aᵀ m`, and `bias`, of an output channel of a block; `room` is for `O²` numbers of each tile.
    fn store<V: Lanes>(&self, block: usize, channel: usize, sums: &Sums<'_>, bias: f32, room: &mut [f32]);
}

/// The transformed tiles of a block, `[numbers][channels][tiles]`.
pub struct Panel<'a> {
    all: Parts<'a>,
    start: usize,
    pitch: usize,
    /// Tiles, a multiple of the lanes.
    pub full: usize,
}

impl Panel<'_> {
    /// Writes tiles `at..` of number `k` of a channel.
    #[inline(always)]
    pub fn set<V: Lanes>(&self, k: usize, channel: usize, at: usize, tiles: V) {
        let start = self.start + k * self.pitch + channel * self.full + at;
        // SAFETY: blocks, numbers, channels and tiles differ, and nobody reads yet.
        tiles.store(unsafe { self.all.part(start..start + V::LEN) });
    }
}

/// The sums of an output channel over a block of tiles.
pub struct Sums<'a> {
    numbers: &'a [f32],
    pitch: usize,
    /// Tiles, a multiple of the lanes.
    pub full: usize,
}

impl Sums<'_> {
    /// Tiles `at..` of number `k`.
    #[inline(always)]
    pub fn get<V: Lanes>(&self, k: usize, at: usize) -> V {
        V::from_slice(&self.numbers[k * self.pitch + at..])
    }
}

/// Tiles that are best computed at a time: a processor has at least a block.
pub fn together(spread: &dyn Spread, taps: &Taps, inputs: usize) -> usize {
    (TILES / panel(taps, inputs)).clamp(spread.width(), BLOCKS * spread.width()) * taps.layout().positions
}

/// Numbers of the transformed tiles of a block.
fn panel(taps: &Taps, inputs: usize) -> usize {
    taps.count(inputs) * (taps.layout().rows * taps.layout().positions + LINE)
}

/// Computes all outputs.
pub fn run<S: Tiling<I, O>, const I: usize, const O: usize>(spread: &dyn Spread, taps: &Taps, tiling: &S) {
    let (layout, numbers, channels) = (taps.layout(), taps.count(I), tiling.channels());
    let panel = panel(taps, I);
    let blocks = tiling.blocks(layout.positions);
    let together = (together(spread, taps, I) / layout.positions).min(blocks);
    let mut panels = Scratch::take(together * panel);
    let group = (TAPS / (numbers * taps.pitch())).clamp(1, layout.count());
    for first in (0..blocks).step_by(together) {
        let count = together.min(blocks - first);
        let tiles = Tiles { tiling, first, count, panel, kind: PhantomData };
        let all = Parts::new(&mut panels);
        split(spread, count * channels, 1, numbers * layout.positions, &|range| {
            dispatch(layout.level, Load { tiles, all, channels, range });
        });
        // Taps are transformed again for each of `shares` of the tiles, none of less than four blocks.
        let jobs = 4 * spread.width() * usize::from(spread.width() > 1);
        let shares = jobs.div_ceil(layout.count().div_ceil(group)).clamp(1, count.div_ceil(4));
        let parts = layout.count().div_ceil(group).max(jobs.div_ceil(shares).min(layout.count()));
        let cost = numbers * channels * layout.high * layout.positions * count / shares;
        let panels = &panels[..];
        split(spread, shares * parts, 1, cost, &|range| {
            dispatch(layout.level, Multiply { tiles, taps, panels, shares, parts, range });
        });
    }
}

/// Some blocks of tiles.
struct Tiles<'a, S, const I: usize, const O: usize> {
    tiling: &'a S,
    first: usize,
    count: usize,
    /// Numbers from one block's panel to the next.
    panel: usize,
    kind: PhantomData<[[(); I]; O]>,
}

impl<S, const I: usize, const O: usize> Clone for Tiles<'_, S, I, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, const I: usize, const O: usize> Copy for Tiles<'_, S, I, O> {}

struct Load<'a, S, const I: usize, const O: usize> {
    tiles: Tiles<'a, S, I, O>,
    all: Parts<'a>,
    channels: usize,
    /// Of (block, channel).
    range: Range<usize>,
}

impl<S: Tiling<I, O>, const I: usize, const O: usize> Work for Load<'_, S, I, O> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { tiles: Tiles { tiling, first, panel, .. }, all, channels, mut range } = self;
        while !range.is_empty() {
            let (block, channel) = (range.start / channels, range.start % channels);
            let end = channels.min(channel + range.len());
            let full = tiling.tiles(first + block, V::WIDE * V::LEN).next_multiple_of(V::LEN);
            let panel = Panel { all, start: block * panel, pitch: channels * full + LINE, full };
            tiling.load::<V>(first + block, channel..end, &panel);
            range.start += end - channel;
        }
    }
}

struct Multiply<'a, S, const I: usize, const O: usize> {
    tiles: Tiles<'a, S, I, O>,
    taps: &'a Taps,
    panels: &'a [f32],
    /// Into how many the blocks of tiles are cut.
    shares: usize,
    /// Into how many the blocks of output channels are cut.
    parts: usize,
    /// Of (part, share).
    range: Range<usize>,
}

impl<S: Tiling<I, O>, const I: usize, const O: usize> Work for Multiply<'_, S, I, O> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { tiles, taps, panels, shares, parts, range } = self;
        let (numbers, pitch, widest, blocks) = (taps.count(I), taps.pitch(), V::WIDE * V::LEN, taps.layout().count());
        let channels = tiles.tiling.channels();
        let most = blocks.div_ceil(parts);
        let mut scratch = Scratch::take(most * numbers * (pitch + V::HIGH * widest) + O * O * widest);
        let (transformed, rest) = scratch.split_at_mut(most * numbers * pitch);
        let (sums, room) = rest.split_at_mut(most * numbers * V::HIGH * widest);
        let mut ready = None;
        for item in range {
            let (part, share) = (item / shares, item % shares);
            let outs = part * blocks / parts..(part + 1) * blocks / parts;
            if ready.replace(part) != Some(part) {
                for (i, to) in outs.clone().zip(transformed.chunks_exact_mut(numbers * pitch)) {
                    taps.transform::<V, S::Kind, I, O>(i, to);
                }
            }
            for block in share * tiles.count / shares..(share + 1) * tiles.count / shares {
                let full = tiles.tiling.tiles(tiles.first + block, widest).next_multiple_of(V::LEN);
                let offsets: Vec<u32> = (0..channels).map(|c| (c * full) as u32).collect();
                let (rows, panel) = (Rows::new(&offsets), &panels[block * tiles.panel..]);
                for k in 0..numbers {
                    let x = &panel[k * (channels * full + LINE)..];
                    for (i, taps) in transformed.chunks_exact(numbers * pitch).enumerate().take(outs.len()) {
                        let weights = tile::Weights::Packed(&taps[k * pitch..(k + 1) * pitch - LINE]);
                        let sums = &mut sums[(i * numbers + k) * V::HIGH * widest..];
                        Tile { weights, rows, bias: &[], x }.compute::<V>(full / V::LEN, sums, full);
                    }
                }
                for channel in outs.start * V::HIGH..(outs.end * V::HIGH).min(taps.bias.len()) {
                    let (i, m) = (channel / V::HIGH - outs.start, channel % V::HIGH);
                    let numbers = &sums[i * numbers * V::HIGH * widest + m * full..];
                    let sums = Sums { numbers, pitch: V::HIGH * widest, full };
                    tiles.tiling.store::<V>(tiles.first + block, channel, &sums, taps.bias[channel], room);
                }
            }
        }
    }
}
