//! Convolutions of three taps with fewer products, in F(2, 3) and F(4, 3): an input tile `d` becomes `Bᵀ d`, the taps
//! `G g`, their products, summed over channels, `Aᵀ m`; over height and width, each is applied to rows and columns.
//!
//! A tile of `O` outputs stands for polynomials at `O + 1` points and at infinity: `G` evaluates the taps there, the rows
//! of `Bᵀ` are the coefficients of the Lagrange numerators, `Aᵀ` has the points' powers. F(4, 3) takes ±2/3 and ±3/2
//! beside 0: with the usual ±1 and ±2 its error is twice as large, with these 1.6 times that of a plain sum in f32.
//!
//! Source: Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", §4; for the choice of points
//! Barabasz et al. 2018, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks".

pub mod frames;
pub mod images;
mod products;
mod taps;

use super::lanes::Lanes;

/// Numbers of a cache line: matrices are so much apart that their rows do not fall onto the same lines.
const LINE: usize = 16;
/// Tiles of the widest block of any instruction set.
const WIDEST: usize = 48;

/// Does it pay? Transforming a tile costs as much as some output channels of products.
pub fn pays(channels: usize, out: usize) -> bool {
    channels >= 16 && out >= 16
}

/// The transforms of tiles of `I` inputs and `O = I − 2` outputs.
pub trait Transforms<const I: usize, const O: usize> {
    /// `G`
    const TAPS: [[f32; 3]; I];

    /// `Bᵀ d`
    fn forward<V: Lanes>(d: [V; I]) -> [V; I];

    /// `Aᵀ m`
    fn backward<V: Lanes>(m: [V; I]) -> [V; O];

    /// Row `k` of `G g`
    #[inline(always)]
    fn tap<V: Lanes>(k: usize, [a, b, c]: [V; 3]) -> V {
        let [x, y, z] = Self::TAPS[k];
        V::splat(z).madd(c, V::splat(y).madd(b, times(a, V::splat(x))))
    }
}

/// F(2, 3), points 0, ±1: all factors of the tiles are 0 and ±1.
pub struct Two;

impl Transforms<4, 2> for Two {
    const TAPS: [[f32; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    #[inline(always)]
    fn forward<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 4] {
        [minus(a, c), plus(b, c), minus(c, b), minus(d, b)]
    }

    #[inline(always)]
    fn backward<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 2] {
        [plus(plus(a, b), c), plus(minus(b, c), d)]
    }
}

/// F(4, 3), points 0, ±[`NEAR`], ±[`FAR`].
pub struct Four;

/// The points of [`Four`]; their product is 1.
const NEAR: f64 = 2.0 / 3.0;
/// See [`NEAR`].
const FAR: f64 = 1.5;
impl Transforms<6, 4> for Four {
    const TAPS: [[f32; 3]; 6] = {
        let near = 0.5 / (NEAR * NEAR * (NEAR * NEAR - FAR * FAR));
        let far = 0.5 / (FAR * FAR * (FAR * FAR - NEAR * NEAR));
        [
            [1.0, 0.0, 0.0],
            [near as f32, (near * NEAR) as f32, (near * NEAR * NEAR) as f32],
            [near as f32, (-near * NEAR) as f32, (near * NEAR * NEAR) as f32],
            [far as f32, (far * FAR) as f32, (far * FAR * FAR) as f32],
            [far as f32, (-far * FAR) as f32, (far * FAR * FAR) as f32],
            [0.0, 0.0, 1.0],
        ]
    };

    /// Rows `x⁴ − (n² + f²) x² + 1`, `(x² ± n x)(x² − f²)`, `(x² ± f x)(x² − n²)`, `x⁵ − (n² + f²) x³ + x`.
    #[inline(always)]
    fn forward<V: Lanes>([a, b, c, d, e, f]: [V; 6]) -> [V; 6] {
        let squares = V::splat(-(NEAR * NEAR + FAR * FAR) as f32);
        let (even, odd) = (V::splat(-(FAR * FAR) as f32), V::splat(-(NEAR * NEAR) as f32));
        let (near_even, near_odd) = (even.madd(c, e), even.madd(b, d));
        let (far_even, far_odd) = (odd.madd(c, e), odd.madd(b, d));
        [
            squares.madd(c, plus(a, e)),
            V::splat(NEAR as f32).madd(near_odd, near_even),
            V::splat(-NEAR as f32).madd(near_odd, near_even),
            V::splat(FAR as f32).madd(far_odd, far_even),
            V::splat(-FAR as f32).madd(far_odd, far_even),
            squares.madd(d, plus(b, f)),
        ]
    }

    #[inline(always)]
    fn backward<V: Lanes>([a, b, c, d, e, f]: [V; 6]) -> [V; 4] {
        let power = |x: f64, n: i32| V::splat(x.powi(n) as f32);
        let (near_even, near_odd, far_even, far_odd) = (plus(b, c), minus(b, c), plus(d, e), minus(d, e));
        [
            plus(a, plus(near_even, far_even)),
            power(NEAR, 1).madd(near_odd, times(far_odd, power(FAR, 1))),
            power(NEAR, 2).madd(near_even, times(far_even, power(FAR, 2))),
            power(NEAR, 3).madd(near_odd, power(FAR, 3).madd(far_odd, f)),
        ]
    }
}

#[inline(always)]
fn plus<V: Lanes>(a: V, b: V) -> V {
    V::splat(1.0).madd(b, a)
}

#[inline(always)]
fn minus<V: Lanes>(a: V, b: V) -> V {
    V::splat(-1.0).madd(b, a)
}

#[inline(always)]
fn times<V: Lanes>(a: V, b: V) -> V {
    a.madd(b, V::splat(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three taps over `I` numbers, by the transforms in plain arithmetic and by their definition.
    fn both<T: Transforms<I, O>, const I: usize, const O: usize>() -> ([f64; O], [f64; O]) {
        let d: [f32; I] = std::array::from_fn(|i| ((i + 1) as f32 * 1.7).sin());
        let g = [0.3f32, -1.1, 0.7];
        let forward = T::forward(d.map(|x| [x; 4]));
        let tap = |k: usize| T::tap(k, g.map(|x| [x; 4]))[0];
        let products = std::array::from_fn(|k| [forward[k][0] * tap(k); 4]);
        let direct = |o: usize| (0..3).map(|i| f64::from(g[i] * d[o + i])).sum();
        (T::backward(products).map(|x: [f32; 4]| f64::from(x[0])), std::array::from_fn(direct))
    }

    #[test]
    fn transforms_are_those_of_three_taps() {
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let (got, want) = both::<Two, 4, 2>();
        assert!(close(&got, &want), "{got:?} {want:?}");
        let (got, want) = both::<Four, 6, 4>();
        assert!(close(&got, &want), "{got:?} {want:?}");
    }
}
