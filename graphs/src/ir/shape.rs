//! Dimensions that stay symbolic: products of sizes such as `batch·frames` or `⌈height/4⌉·⌈width/4⌉`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Mul;
use std::sync::Arc;

/// How a symbol is divided: `⌈s/n⌉` comes from a padded stride-2 convolution, `⌊s/n⌋` from an unpadded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rounding {
    /// Round up.
    Up,
    /// Round down.
    Down,
}

/// One factor of a dimension: a symbol, perhaps divided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Factor {
    /// Name of the symbol, as in an ONNX `dim_param`.
    pub symbol: Arc<str>,
    /// Divisor, 1 for the symbol itself.
    pub divisor: usize,
    /// Which way the division rounds; `Up` when the divisor is 1.
    pub rounding: Rounding,
}

/// A dimension: `coefficient · factor · factor …`, in a canonical order, so that equal dimensions compare equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dim {
    coefficient: usize,
    factors: Vec<Factor>,
}

impl Dim {
    /// A known size.
    pub fn fixed(n: usize) -> Self {
        Self { coefficient: n, factors: Vec::new() }
    }

    /// A named size.
    pub fn symbol(name: &str) -> Self {
        Self { coefficient: 1, factors: vec![Factor { symbol: name.into(), divisor: 1, rounding: Rounding::Up }] }
    }

    /// The size, when it is known.
    pub fn as_fixed(&self) -> Option<usize> {
        self.factors.is_empty().then_some(self.coefficient)
    }

    /// The symbol, when the dimension is nothing but one.
    pub fn as_symbol(&self) -> Option<&str> {
        match (self.coefficient, self.factors.as_slice()) {
            (1, [f]) if f.divisor == 1 => Some(&f.symbol),
            _ => None,
        }
    }

    /// The constant coefficient.
    pub fn coefficient(&self) -> usize {
        self.coefficient
    }

    /// The symbolic factors, sorted.
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// `self / n` rounded, when that is again a product of factors.
    pub fn divided(&self, n: usize, rounding: Rounding) -> Option<Self> {
        if n <= 1 {
            return (n == 1).then(|| self.clone());
        }
        if let Some(size) = self.as_fixed() {
            return Some(Self::fixed(if rounding == Rounding::Up { size.div_ceil(n) } else { size / n }));
        }
        if self.coefficient.is_multiple_of(n) {
            return Some(Self { coefficient: self.coefficient / n, factors: self.factors.clone() });
        }
        match (self.coefficient, self.factors.as_slice()) {
            // ⌈⌈s/a⌉/b⌉ = ⌈s/ab⌉, and the same for the floor.
            (1, [f]) if f.divisor == 1 || f.rounding == rounding => {
                let factor = Factor { symbol: f.symbol.clone(), divisor: f.divisor.checked_mul(n)?, rounding };
                Some(Self { coefficient: 1, factors: vec![factor] })
            }
            _ => None,
        }
    }

    /// `self / other`, when the division is exact whatever the symbols are.
    pub fn exact_quotient(&self, other: &Self) -> Option<Self> {
        if other.coefficient == 0 || !self.coefficient.is_multiple_of(other.coefficient) {
            return None;
        }
        let mut factors = self.factors.clone();
        for f in &other.factors {
            factors.remove(factors.iter().position(|g| g == f)?);
        }
        Some(Self { coefficient: self.coefficient / other.coefficient, factors })
    }

    /// The size under given values of the symbols; `None` when one is not given or the product overflows.
    pub fn evaluate(&self, symbols: &BTreeMap<String, usize>) -> Option<usize> {
        self.factors.iter().try_fold(self.coefficient, |n, f| {
            let size = *symbols.get(f.symbol.as_ref())?;
            n.checked_mul(if f.rounding == Rounding::Up { size.div_ceil(f.divisor) } else { size / f.divisor })
        })
    }
}

impl Mul for Dim {
    type Output = Dim;

    /// The product; a coefficient that overflows saturates, and the verifier refuses such a size.
    fn mul(self, other: Dim) -> Dim {
        let mut factors = self.factors;
        factors.extend(other.factors);
        factors.sort();
        Dim { coefficient: self.coefficient.saturating_mul(other.coefficient), factors }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::fixed(n)
    }
}

impl From<&str> for Dim {
    fn from(name: &str) -> Self {
        Self::symbol(name)
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.divisor, self.rounding) {
            (1, _) => f.write_str(&self.symbol),
            (n, Rounding::Up) => write!(f, "ceil({}/{n})", self.symbol),
            (n, Rounding::Down) => write!(f, "floor({}/{n})", self.symbol),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.coefficient != 1 || self.factors.is_empty() {
            write!(f, "{}", self.coefficient)?;
            separator = "*";
        }
        for factor in &self.factors {
            write!(f, "{separator}{factor}")?;
            separator = "*";
        }
        Ok(())
    }
}

/// A shape: dimensions, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A shape of known sizes.
    pub fn fixed(sizes: &[usize]) -> Self {
        Self(sizes.iter().map(|&n| Dim::fixed(n)).collect())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Product of all dimensions.
    pub fn elements(&self) -> Dim {
        self.0.iter().cloned().fold(Dim::fixed(1), Dim::mul)
    }

    /// The sizes, when all are known.
    pub fn as_fixed(&self) -> Option<Vec<usize>> {
        self.0.iter().map(Dim::as_fixed).collect()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_products_compare_equal_whatever_their_order() {
        let (b, t) = (Dim::symbol("batch"), Dim::symbol("frames"));
        assert_eq!(b.clone() * t.clone(), t * b);
    }

    #[test]
    fn halving_twice_is_a_quarter() {
        let h = Dim::symbol("height");
        let quarter = h.divided(2, Rounding::Up).and_then(|d| d.divided(2, Rounding::Up)).expect("divides");
        assert_eq!(quarter.to_string(), "ceil(height/4)");
        for size in 1..40usize {
            let got = quarter.evaluate(&[("height".to_owned(), size)].into());
            assert_eq!(got, Some(size.div_ceil(2).div_ceil(2)));
        }
    }

    #[test]
    fn mixed_roundings_are_not_merged() {
        let d = Dim::symbol("height").divided(2, Rounding::Up).expect("divides");
        assert_eq!(d.divided(2, Rounding::Down), None);
    }

    #[test]
    fn an_exact_quotient_takes_factors_away() {
        let bt = Dim::symbol("batch") * Dim::symbol("frames") * Dim::fixed(6);
        let q = bt.exact_quotient(&(Dim::symbol("frames") * Dim::fixed(3))).expect("divides");
        assert_eq!(q.to_string(), "2*batch");
        assert_eq!(bt.exact_quotient(&Dim::symbol("height")), None);
    }
}
