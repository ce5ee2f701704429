//! Each kernel against what this machine can do: `cargo bench --workspace --bench kernels` (docs/optimize.md).
//!
//! Two limits are measured first: multiply-adds of registers (arithmetic), and a copy of more than the caches hold (memory).
//! The least time that a kernel could take is the larger of its products over the first and its operands over the
//! second; what it reaches is that over the time it takes. Exponentials and divisions are not counted: of attention and
//! of GELU the limit cannot be reached. One thread, the best of many rounds.
#![allow(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::hint::black_box;
use std::time::Instant;

use vldm_runtime::kernels::{
    Activation, Alone, Conv2d, Geometry, GroupNorm, LayerNorm, Linear, TemporalAttention, TemporalConv, TokenAttention,
};

/// Seconds for which each kernel is called again and again.
const PATIENCE: f64 = 0.5;

/// What a kernel has to do at least.
struct Work {
    flops: f64,
    bytes: f64,
}

/// Seconds of the best round.
fn best(mut round: impl FnMut()) -> f64 {
    round();
    let (began, mut least) = (Instant::now(), f64::INFINITY);
    while began.elapsed().as_secs_f64() < PATIENCE {
        let start = Instant::now();
        round();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}

/// Independent chains of multiply-adds: as many as a core has in flight, and more.
const CHAINS: usize = 16;
const ROUNDS: usize = 20_000;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains_avx512(x: f32) -> f32 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (x, shrink) = (_mm512_set1_ps(x), _mm512_set1_ps(0.999));
    let mut sums = [x; CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, shrink, x);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(x: f32) -> f32 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (x, shrink) = (_mm256_set1_ps(x), _mm256_set1_ps(0.999));
    let mut sums = [x; CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, shrink, x);
        }
    }
    sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
}

/// Four lanes, of which the compiler makes what the processor has.
fn chains_plain(x: f32) -> f32 {
    let mut sums = [[x; 4]; CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = sum.map(|s| s * 0.999 + x);
        }
    }
    sums.into_iter().flatten().sum()
}

/// Floating-point operations a second.
fn arithmetic() -> f64 {
    let x = black_box(1e-3);
    let rate = |lanes: usize, run: &dyn Fn() -> f32| {
        let seconds = best(|| {
            black_box(run());
        });
        (2 * CHAINS * lanes * ROUNDS) as f64 / seconds
    };
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: just detected.
            return rate(16, &|| unsafe { chains_avx512(x) });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: just detected.
            return rate(8, &|| unsafe { chains_avx2(x) });
        }
    }
    rate(4, &|| chains_plain(x))
}

/// Bytes read and written a second.
fn memory() -> f64 {
    let from = vec![1u8; 256 << 20];
    let mut to = vec![0u8; from.len()];
    2.0 * from.len() as f64 / best(|| black_box(&mut to).copy_from_slice(black_box(&from)))
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 400.0).collect()
}

type Case = (&'static str, String, Work, Box<dyn FnMut()>);

/// `flops` of products, and f32s that are read or written once.
fn case(name: &'static str, shape: String, flops: usize, numbers: usize, run: impl FnMut() + 'static) -> Case {
    (name, shape, Work { flops: flops as f64, bytes: 4.0 * numbers as f64 }, Box::new(run))
}

fn conv(channels: usize, out: usize, side: usize, kernel: usize) -> Case {
    let images = 8;
    let pad = kernel / 2;
    let geometry = Geometry { channels, kernel: [kernel; 2], stride: 1, before: [pad; 2], after: [pad; 2] };
    let weights = out * channels * kernel * kernel;
    let conv = Conv2d::new(geometry, &numbers(weights), &numbers(out)).expect("sizes match");
    let (x, mut y) = (numbers(images * channels * side * side), vec![0.0; images * out * side * side]);
    let (flops, all) = (2 * y.len() * channels * kernel * kernel, x.len() + y.len() + weights);
    let shape = format!("8×{channels}→{out}, {side}×{side}, {kernel}×{kernel}");
    case("Conv2d", shape, flops, all, move || conv.run(&Alone, [side; 2], &x, &mut y).expect("sizes match"))
}

fn linear(rows: usize, inner: usize, out: usize, activation: Activation, name: &'static str) -> Case {
    let linear = Linear::new(inner, &numbers(inner * out), &numbers(out), activation).expect("sizes match");
    let (x, mut y) = (numbers(rows * inner), vec![0.0; rows * linear.out()]);
    let (flops, all) = (2 * rows * inner * out, x.len() + y.len() + inner * out);
    let run = move || linear.run(&Alone, &x, None, &mut y).expect("sizes match");
    case(name, format!("{rows}×{inner}→{out}"), flops, all, run)
}

fn attention(images: usize, tokens: usize, channels: usize, heads: i64) -> Case {
    let kernel = TokenAttention::new(heads, 0.2).expect("attributes");
    let n = images * tokens * channels;
    let (q, k, v, mut y) = (numbers(n), numbers(n), numbers(n), vec![0.0; n]);
    let shape = [images, tokens, channels];
    let run = move || kernel.run(&Alone, [&shape, &shape], [&q, &k, &v], &mut y).expect("sizes match");
    let shown = format!("{images}×{tokens}×{channels}, {heads} heads");
    case("Attention", shown, 4 * images * tokens * tokens * channels, 4 * n, run)
}

fn temporal_attention(frames: usize, positions: usize, channels: usize, heads: i64) -> Case {
    let kernel = TemporalAttention::new(heads, 0.2, 0).expect("attributes");
    let n = frames * positions * channels;
    let (q, k, v, mut y) = (numbers(n), numbers(n), numbers(n), vec![0.0; n]);
    let shape = [1, frames, positions, channels];
    let run = move || kernel.run(&Alone, &shape, [&q, &k, &v], &mut y).expect("sizes match");
    let shown = format!("{frames} frames, {positions}×{channels}, {heads} heads");
    case("TemporalAttention", shown, 4 * frames * frames * positions * channels, 4 * n, run)
}

fn temporal_conv(frames: usize, channels: usize, positions: usize) -> Case {
    let weights = numbers(channels * channels * 3);
    let kernel = TemporalConv::new(channels, &weights, &numbers(channels)).expect("sizes match");
    let n = frames * channels * positions;
    let (x, mut y) = (numbers(n), vec![0.0; n]);
    let shape = [1, frames, channels, positions];
    let run = move || kernel.run(&Alone, &shape, &x, &mut y).expect("sizes match");
    let shown = format!("{frames} frames, {channels}×{positions}");
    case("TemporalConv", shown, 6 * n * channels, 2 * n + weights.len(), run)
}

fn norms(images: usize, channels: usize, positions: usize) -> [Case; 2] {
    let n = images * channels * positions;
    let group = GroupNorm::new(32, 1e-5, numbers(channels), numbers(channels)).expect("sizes match").with_silu();
    let (x, mut y) = (numbers(n), vec![0.0; n]);
    let shape = [images, 1, channels, positions];
    let first = move || group.run(&Alone, shape, &x, &mut y).expect("sizes match");
    let layer = LayerNorm::new(1e-5, numbers(channels), numbers(channels)).expect("sizes match");
    let (x, mut y) = (numbers(n), vec![0.0; n]);
    let second = move || layer.run(&Alone, &x, &mut y).expect("sizes match");
    let shown = format!("{images}×{channels}×{positions}");
    [case("GroupNormSilu", shown.clone(), 8 * n, 2 * n, first), case("LayerNorm", shown, 6 * n, 2 * n, second)]
}

fn main() {
    // `cargo test --benches` asks whether it starts; `cargo bench` for all of it.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let (arithmetic, memory) = (arithmetic(), memory());
    println!("one thread: {:.0} GFLOP/s, {:.1} GB/s\n", arithmetic / 1e9, memory / 1e9);
    println!("| kernel | shape | time | GFLOP/s | GB/s | of the limit | limited by |\n|---|---|---|---|---|---|---|");
    let mut cases = vec![
        conv(64, 64, 32, 3),
        conv(128, 128, 32, 3),
        conv(256, 256, 16, 3),
        conv(512, 256, 8, 3),
        conv(128, 256, 16, 1),
        linear(8192, 64, 64, Activation::Identity, "Linear"),
        linear(2048, 256, 256, Activation::Identity, "Linear"),
        linear(1024, 1024, 1024, Activation::Identity, "Linear"),
        linear(8192, 64, 512, Activation::Geglu, "LinearGeglu"),
        linear(2048, 256, 2048, Activation::Geglu, "LinearGeglu"),
        attention(8, 1024, 64, 1),
        attention(8, 1024, 64, 8),
        attention(8, 256, 256, 4),
        temporal_attention(8, 1024, 64, 1),
        temporal_attention(16, 1024, 320, 5),
        temporal_attention(16, 1024, 320, 8),
        temporal_conv(8, 64, 1024),
        temporal_conv(16, 320, 1024),
    ];
    cases.extend(norms(8, 64, 1024));
    cases.extend(norms(8, 256, 256));
    for (name, shape, work, mut run) in cases {
        let seconds = best(&mut run);
        let [products, operands] = [work.flops / arithmetic, work.bytes / memory];
        let by = if products > operands { "arithmetic" } else { "memory" };
        let (rate, stream) = (work.flops / seconds / 1e9, work.bytes / seconds / 1e9);
        let reached = 100.0 * products.max(operands) / seconds;
        println!("| `{name}` | {shape} | {:.2} ms | {rate:.0} | {stream:.1} | {reached:.0} % | {by} |", seconds * 1e3);
    }
}
