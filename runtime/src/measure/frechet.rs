//! The Fréchet distance between two clouds of features, each taken for a normal distribution.

/// Mean and covariance of what was pushed.
pub(super) struct Gaussian {
    size: usize,
    count: f64,
    sum: Vec<f64>,
    /// Sums of products, row after row.
    products: Vec<f64>,
}

/// Sweeps over a matrix after which its off-diagonal is zero to the last digit; usually a quarter of it.
const SWEEPS: usize = 40;

impl Gaussian {
    pub(super) fn new(size: usize) -> Self {
        Self { size, count: 0.0, sum: vec![0.0; size], products: vec![0.0; size * size] }
    }

    pub(super) fn push(&mut self, features: &[f64]) {
        self.count += 1.0;
        for (i, a) in features.iter().enumerate() {
            self.sum[i] += a;
            let row = &mut self.products[i * self.size..(i + 1) * self.size];
            row.iter_mut().zip(features).for_each(|(sum, b)| *sum += a * b);
        }
    }

    fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count).collect()
    }

    /// Covariance, divided by `count − 1`; zero for a single sample.
    fn covariance(&self) -> Matrix {
        let (mean, n) = (self.mean(), self.size);
        let divisor = (self.count - 1.0).max(1.0);
        let at = |i: usize| (self.products[i] - self.count * mean[i / n] * mean[i % n]) / divisor;
        Matrix { n, data: (0..n * n).map(at).collect() }
    }
}

/// `|m₁ − m₂|² + tr(C₁ + C₂ − 2·(C₁·C₂)^½)`; none when either has no sample.
///
/// Source: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions", (4).
pub(super) fn distance(a: &Gaussian, b: &Gaussian) -> Option<f64> {
    if a.count < 1.0 || b.count < 1.0 {
        return None;
    }
    let means = a.mean().into_iter().zip(b.mean()).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let (ca, cb) = (a.covariance(), b.covariance());
    // The trace of (C₁·C₂)^½ is that of the symmetric (C₁^½·C₂·C₁^½)^½.
    let root = ca.root();
    let inner = root.times(&cb).times(&root);
    let cross: f64 = inner.eigen().0.iter().map(|e| e.max(0.0).sqrt()).sum();
    Some((means + ca.trace() + cb.trace() - 2.0 * cross).max(0.0))
}

/// A square matrix, row after row.
#[derive(Clone)]
struct Matrix {
    n: usize,
    data: Vec<f64>,
}

impl Matrix {
    fn trace(&self) -> f64 {
        (0..self.n).map(|i| self.data[i * self.n + i]).sum()
    }

    fn times(&self, other: &Self) -> Self {
        let n = self.n;
        let at = |i: usize| (0..n).map(|k| self.data[i / n * n + k] * other.data[k * n + i % n]).sum();
        Self { n, data: (0..n * n).map(at).collect() }
    }

    /// The symmetric root of a symmetric matrix without negative eigenvalues.
    fn root(&self) -> Self {
        let (values, vectors) = self.eigen();
        let (n, roots) = (self.n, values.iter().map(|e| e.max(0.0).sqrt()).collect::<Vec<_>>());
        let at = |i: usize| (0..n).map(|k| vectors.data[i / n * n + k] * roots[k] * vectors.data[i % n * n + k]).sum();
        Self { n, data: (0..n * n).map(at).collect() }
    }

    /// Eigenvalues of a symmetric matrix, and its eigenvectors as columns, by Jacobi's rotations.
    ///
    /// Source: Golub and Van Loan, "Matrix Computations", 8.5.
    fn eigen(&self) -> (Vec<f64>, Self) {
        let n = self.n;
        let mut a = self.clone();
        // Rounding makes products of symmetric matrices a little unsymmetric.
        (0..n * n).for_each(|i| a.data[i] = f64::midpoint(self.data[i], self.data[i % n * n + i / n]));
        let mut v = Self { n, data: (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect() };
        for _ in 0..SWEEPS {
            let mut turned = false;
            for p in 0..n {
                for q in p + 1..n {
                    turned |= a.rotate(&mut v, p, q);
                }
            }
            if !turned {
                break;
            }
        }
        ((0..n).map(|i| a.data[i * n + i]).collect(), v)
    }

    /// Turns rows and columns `p` and `q` so that their common entry vanishes. False when it is nothing already.
    fn rotate(&mut self, vectors: &mut Self, p: usize, q: usize) -> bool {
        let n = self.n;
        let (pp, qq, pq) = (self.data[p * n + p], self.data[q * n + q], self.data[p * n + q]);
        if pq.abs() <= f64::EPSILON * (pp * qq).abs().sqrt() || pq.abs() < f64::MIN_POSITIVE {
            return false;
        }
        let theta = (qq - pp) / (2.0 * pq);
        let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
        let c = 1.0 / t.hypot(1.0);
        let s = t * c;
        let turn = |x: &mut f64, y: &mut f64| (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        for k in 0..n {
            let (mut x, mut y) = (self.data[k * n + p], self.data[k * n + q]);
            turn(&mut x, &mut y);
            (self.data[k * n + p], self.data[k * n + q]) = (x, y);
            let (mut x, mut y) = (vectors.data[k * n + p], vectors.data[k * n + q]);
            turn(&mut x, &mut y);
            (vectors.data[k * n + p], vectors.data[k * n + q]) = (x, y);
        }
        for k in 0..n {
            let (mut x, mut y) = (self.data[p * n + k], self.data[q * n + k]);
            turn(&mut x, &mut y);
            (self.data[p * n + k], self.data[q * n + k]) = (x, y);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Features that a formula makes, the same in `tests/golden/measure.py`.
    fn cloud(seed: usize, size: usize, count: usize) -> Gaussian {
        let mut cloud = Gaussian::new(size);
        for k in 0..count {
            let value = |i: usize| ((k * k * (i + 2) + k * 5 * (seed + 1) + i * i * seed) % 97) as f64 / 97.0;
            cloud.push(&(0..size).map(value).collect::<Vec<_>>());
        }
        cloud
    }

    /// `tests/golden/measure.py`: `numpy.cov`, `scipy.linalg.sqrtm`.
    #[test]
    fn the_distance_is_that_of_scipy() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/measure.json")).unwrap();
        for case in golden["frechet"].as_array().unwrap() {
            let number = |key: &str| case[key].as_u64().unwrap() as usize;
            let (a, b) = (cloud(1, number("size"), number("a")), cloud(2, number("size"), number("b")));
            let (found, expected) = (distance(&a, &b).unwrap(), case["distance"].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-6, "{found} {case}");
        }
    }

    #[test]
    fn normal_distributions_of_one_number_are_as_far_as_their_means_and_deviations() {
        let of = |values: &[f64]| {
            let mut cloud = Gaussian::new(1);
            for value in values {
                cloud.push(&[*value]);
            }
            cloud
        };
        // Means 1 and 5, deviations √2 and 3√2.
        let found = distance(&of(&[0.0, 2.0]), &of(&[2.0, 8.0])).unwrap();
        assert!((found - (16.0 + 8.0)).abs() < 1e-9, "{found}");
        assert!(distance(&of(&[]), &of(&[1.0])).is_none());
    }
}
