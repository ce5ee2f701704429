//! The arithmetic, written once with fixed-width rows and compiled for each instruction
//! set that pays.

use super::Clip;
use crate::kernels::lanes::{Lanes, Level, Work, dispatch};
use crate::kernels::math::{exp, madd};

/// Lanes of a row of scores: one 512-bit or two 256-bit registers.
const LANES: usize = 16;
/// Query frames that share one pass over the keys.
const ROWS: usize = 4;

type Row = [f32; LANES];

/// `[frames, positions, channels] → [frames, positions, channels]`.
pub fn attend(clip: &Clip, y: &mut [f32]) {
    attend_at(Level::detect(), clip, y);
}

fn attend_at(level: Level, clip: &Clip, y: &mut [f32]) {
    dispatch(level, Attend { clip, y });
}

struct Attend<'a> {
    clip: &'a Clip<'a>,
    y: &'a mut [f32],
}

impl Work for Attend<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        attend_body::<FMA>(self.clip, self.y);
    }
}

#[inline(always)]
fn attend_body<const FMA: bool>(clip: &Clip, y: &mut [f32]) {
    let (frames, channels) = (clip.frames, clip.channels);
    let dim = channels / clip.attention.heads;
    let blocks = frames.div_ceil(LANES);
    // Keys of one head, transposed: `[dim][blocks]` rows of frames. Scores: `[ROWS][blocks]`.
    let mut keys = vec![[0.0; LANES]; dim * blocks];
    let mut scores = vec![[0.0; LANES]; ROWS * blocks];
    let stride = clip.positions * channels;
    for start in (0..stride).step_by(dim) {
        transpose_keys(&clip.k[start..], stride, frames, dim, &mut keys);
        for first in (0..frames).step_by(ROWS) {
            let rows = ROWS.min(frames - first);
            score::<FMA>(clip, start, first, rows, &keys, &mut scores);
            for r in 0..rows {
                let row = &mut scores[r * blocks..(r + 1) * blocks];
                softmax::<FMA>(row, first + r, frames, clip.attention.window);
            }
            mix::<FMA>(clip, start, first, rows, &scores, y);
        }
    }
}

/// `keys[c][t] = k[t · stride + c]`; lanes beyond the frames stay zero.
#[inline(always)]
fn transpose_keys(k: &[f32], stride: usize, frames: usize, dim: usize, keys: &mut [Row]) {
    let blocks = keys.len() / dim;
    for t in 0..frames {
        let row = &k[t * stride..t * stride + dim];
        for (c, &value) in row.iter().enumerate() {
            keys[c * blocks + t / LANES][t % LANES] = value;
        }
    }
}

/// `scores[r] = scale · q[first + r] · kᵀ`. Rows beyond `rows` repeat the last.
#[inline(always)]
fn score<const FMA: bool>(clip: &Clip, start: usize, first: usize, rows: usize, keys: &[Row], scores: &mut [Row]) {
    let stride = clip.positions * clip.channels;
    let dim = clip.channels / clip.attention.heads;
    let blocks = keys.len() / dim;
    let q: [&[f32]; ROWS] = std::array::from_fn(|r| {
        let at = (first + r.min(rows - 1)) * stride + start;
        &clip.q[at..at + dim]
    });
    for block in 0..blocks {
        let mut sums = [[0.0; LANES]; ROWS];
        for (c, key) in keys.iter().skip(block).step_by(blocks).enumerate() {
            for (sum, q) in sums.iter_mut().zip(q) {
                let x = q[c];
                for (s, &k) in sum.iter_mut().zip(key) {
                    *s = madd::<FMA>(x, k, *s);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            scores[r * blocks + block] = sum.map(|s| s * clip.attention.scale);
        }
    }
}

/// Softmax of one row of scores over the frames that frame `i` sees; zero elsewhere.
#[inline(always)]
fn softmax<const FMA: bool>(row: &mut [Row], i: usize, frames: usize, window: usize) {
    let (from, to) = (i.saturating_sub(window), i.saturating_add(window).min(frames - 1));
    let mut top = [f32::NEG_INFINITY; LANES];
    for (block, lanes) in row.iter_mut().enumerate() {
        for (lane, (s, m)) in lanes.iter_mut().zip(&mut top).enumerate() {
            let j = block * LANES + lane;
            *s = if j < from || j > to { f32::NEG_INFINITY } else { *s };
            *m = if *s > *m { *s } else { *m };
        }
    }
    let top = top.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sum = [0.0; LANES];
    for lanes in row.iter_mut() {
        for (s, t) in lanes.iter_mut().zip(&mut sum) {
            *s = exp::<FMA>(*s - top);
            *t += *s;
        }
    }
    let inverse = sum.iter().sum::<f32>().recip();
    for s in row.iter_mut().flatten() {
        *s *= inverse;
    }
}

/// `y[first + r] = Σ_j scores[r][j] · v[j]`.
#[inline(always)]
fn mix<const FMA: bool>(clip: &Clip, start: usize, first: usize, rows: usize, scores: &[Row], y: &mut [f32]) {
    let stride = clip.positions * clip.channels;
    let dim = clip.channels / clip.attention.heads;
    let blocks = scores.len() / ROWS;
    let weight = |r: usize, j: usize| scores[r * blocks + j / LANES][j % LANES];
    let mut c = 0;
    while c + 8 <= dim {
        let mut sums = [[0.0; 8]; ROWS];
        for j in 0..clip.frames {
            let at = j * stride + start + c;
            let v = &clip.v[at..at + 8];
            for (r, sum) in sums.iter_mut().enumerate() {
                let w = weight(r, j);
                for (s, &x) in sum.iter_mut().zip(v) {
                    *s = madd::<FMA>(w, x, *s);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate().take(rows) {
            let at = (first + r) * stride + start + c;
            y[at..at + 8].copy_from_slice(sum);
        }
        c += 8;
    }
    for c in c..dim {
        for r in 0..rows {
            let sum = (0..clip.frames).fold(0.0, |s, j| madd::<FMA>(weight(r, j), clip.v[j * stride + start + c], s));
            y[(first + r) * stride + start + c] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::TemporalAttention;
    use crate::kernels::lanes::levels;

    #[test]
    fn every_instruction_set_agrees_with_plain_arithmetic() {
        let (frames, positions, channels) = (19, 3, 36);
        let n = frames * positions * channels;
        let wave = |f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<_>>();
        let (q, k, v) = (wave(0.7), wave(1.3), wave(2.9));
        let attention = TemporalAttention::new(3, 0.5, 5).unwrap();
        let clip = Clip { frames, positions, channels, attention, q: &q, k: &k, v: &v };
        let mut plain = vec![0.0; n];
        attend_at(Level::Plain, &clip, &mut plain);
        for level in levels() {
            let mut fast = vec![f32::NAN; n];
            attend_at(level, &clip, &mut fast);
            for (a, b) in fast.iter().zip(&plain) {
                assert!((a - b).abs() < 1e-6, "{level:?}: {a} {b}");
            }
        }
    }
}
