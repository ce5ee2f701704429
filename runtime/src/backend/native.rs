//! What each of our kernels takes and makes, for the engines that have them as operators.

use std::any::Any;
use std::fmt::Debug;

use crate::kernels::{
    Attention, Conv2d, GroupNorm, LayerNorm, Linear, Spread, TemporalAttention, TemporalConv, TokenAttention,
    split_rows,
};

/// An f32 input: shape and numbers.
pub type Input<'a> = (&'a [usize], &'a [f32]);

/// A kernel with its weights: f32 inputs, one f32 output.
pub trait Native: Any + Debug + Send + Sync + 'static {
    /// The name in plans.
    fn name(&self) -> &'static str;

    /// The shape of the output.
    ///
    /// # Errors
    /// A sentence when the kernel does not take such inputs.
    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String>;

    /// Computes the output: writes all of `y`, reads none of it.
    ///
    /// # Errors
    /// A sentence when sizes do not fit.
    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String>;
}

fn shape4(name: &str, shape: &[usize]) -> Result<[usize; 4], String> {
    shape.try_into().map_err(|_| format!("{name} takes four axes, found {shape:?}"))
}

impl Native for TemporalAttention {
    fn name(&self) -> &'static str {
        "vldm.TemporalAttention"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        match inputs {
            [q, k, v] if q == k && q == v => Ok(q.to_vec()),
            _ => Err(format!("vldm::TemporalAttention takes q, k and v of one shape, found {inputs:?}")),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(shape, q), (_, k), (_, v)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.run(spread, shape, [q, k, v], y)
    }
}

impl Native for TemporalConv {
    fn name(&self) -> &'static str {
        "vldm.TemporalConv"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let [b, t, _, p] = shape4(Native::name(self), inputs.first().copied().unwrap_or_default())?;
        Ok(vec![b, t, self.out(), p])
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(shape, x)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.run(spread, shape, x, y)
    }
}

impl Native for Conv2d {
    fn name(&self) -> &'static str {
        "vldm.Conv"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let [n, channels, h, w] = shape4(Native::name(self), inputs.first().copied().unwrap_or_default())?;
        match self.geometry().output([h, w]) {
            Some([rows, columns]) if channels == self.geometry().channels => Ok(vec![n, self.out(), rows, columns]),
            _ => Err(format!("a convolution by {:?} does not take {inputs:?}", self.geometry())),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        match inputs {
            &[(&[_, _, h, w], x)] => self.run(spread, [h, w], x, y),
            _ => Err(format!("found {} inputs", inputs.len())),
        }
    }
}

/// Where [`GroupNorm`] finds frames and channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[n, c, …]`: statistics of each image.
    Images,
    /// `[b, t, c, p]`: statistics of each clip.
    Clips,
}

/// Group normalisation in one of two layouts.
#[derive(Clone, Debug)]
pub struct Norm {
    pub kernel: GroupNorm,
    pub layout: Layout,
}

impl Native for Norm {
    fn name(&self) -> &'static str {
        "vldm.GroupNorm"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        match (self.layout, inputs) {
            (Layout::Images, [[_, _, ..]]) | (Layout::Clips, [[_, _, _, _]]) => Ok(inputs[0].to_vec()),
            _ => Err(format!("a group normalisation does not take {inputs:?}")),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        match (self.layout, inputs) {
            (Layout::Images, &[(&[n, c, ref rest @ ..], x)]) => {
                self.kernel.run(spread, [n, 1, c, rest.iter().product()], x, y)
            }
            (Layout::Clips, &[(&[b, t, c, p], x)]) => self.kernel.run(spread, [b, t, c, p], x, y),
            _ => Err(format!("found {} inputs", inputs.len())),
        }
    }
}

impl Native for LayerNorm {
    fn name(&self) -> &'static str {
        "vldm.LayerNorm"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        match inputs {
            [x] if x.last() == Some(&self.width()) => Ok(x.to_vec()),
            _ => Err(format!("a layer normalisation of {} channels does not take {inputs:?}", self.width())),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(_, x)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.run(spread, x, y)
    }
}

impl Native for Linear {
    fn name(&self) -> &'static str {
        "vldm.Linear"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let made = |x: &[usize]| {
            let (last, outer) = x.split_last()?;
            (*last == self.inner()).then(|| outer.iter().copied().chain([self.out()]).collect::<Vec<_>>())
        };
        let y = inputs.first().and_then(|x| made(x));
        let fits = |y: &Vec<usize>| inputs[1..].iter().all(|summand| *summand == y.as_slice());
        y.filter(fits).ok_or_else(|| format!("a linear map of {} numbers does not take {inputs:?}", self.inner()))
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        match *inputs {
            [(_, x)] => self.run(spread, x, None, y),
            [(_, x), (_, summand)] => self.run(spread, x, Some(summand), y),
            _ => Err(format!("found {} inputs", inputs.len())),
        }
    }
}

impl Native for TokenAttention {
    fn name(&self) -> &'static str {
        "vldm.Attention"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        match inputs {
            [q, k, v] if k == v => Ok(q.to_vec()),
            _ => Err(format!("vldm::Attention takes k and v of one shape, found {inputs:?}")),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(queries, q), (keys, k), (_, v)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.run(spread, [queries, keys], [q, k, v], y)
    }
}

/// `vldm::Mix`: `x + temporal · h`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    pub temporal: f32,
}

impl Native for Mix {
    fn name(&self) -> &'static str {
        "vldm.Mix"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        match inputs {
            [x, h] if x == h => Ok(x.to_vec()),
            _ => Err(format!("vldm::Mix takes x and h of one shape, found {inputs:?}")),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(_, x), (_, h)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        split_rows(spread, y, 1, 3, &|first, y| {
            let pairs = x[first..].iter().zip(&h[first..]);
            y.iter_mut().zip(pairs).for_each(|(y, (x, h))| *y = x + self.temporal * h);
        });
        Ok(())
    }
}

/// [`Attention`] with the shape that its output has.
#[derive(Clone, Debug)]
pub struct StridedAttention {
    pub kernel: Attention,
    pub shape: Vec<usize>,
}

impl Native for StridedAttention {
    fn name(&self) -> &'static str {
        "vldm.Attention"
    }

    fn output(&self, _: &[&[usize]]) -> Result<Vec<usize>, String> {
        Ok(self.shape.clone())
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(_, q), (_, k), (_, v)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.kernel.run(spread, [q, k, v], y)
    }
}

/// `x + e` where `e` has one number for a row of `x` (all axes from some axis on are 1):
/// what a time embedding or a bias adds to every position of a channel.
#[derive(Clone, Copy, Debug)]
pub struct AddRows;

impl AddRows {
    /// The axes of `x` that make a row, and the distance in `e` of each axis before them;
    /// none when `e` is not of that form.
    fn plan(x: &[usize], e: &[usize]) -> Option<(usize, Vec<usize>)> {
        let rows = e.iter().rposition(|&n| n > 1)? + 1;
        let fits = x.len() == e.len() && rows < x.len() && x.iter().zip(e).all(|(&x, &e)| e == x || e == 1);
        let mut strides = vec![0; rows];
        let mut size = 1;
        for axis in (0..rows).rev() {
            strides[axis] = if e[axis] == 1 { 0 } else { size };
            size *= e[axis];
        }
        fits.then_some((rows, strides))
    }
}

impl Native for AddRows {
    fn name(&self) -> &'static str {
        "vldm.AddRows"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        match inputs {
            [x, e] if Self::plan(x, e).is_some() => Ok(x.to_vec()),
            _ => Err(format!("an addition of a number to each row does not take {inputs:?}")),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(shape, x), (other, e)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        let (rows, strides) = Self::plan(shape, other).ok_or("an addition of a number to each row got other shapes")?;
        let width: usize = shape[rows..].iter().product();
        if width == 0 {
            return Ok(());
        }
        split_rows(spread, y, width, 2 * width, &|first, y| {
            let pairs = y.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width));
            for (i, (y, x)) in (first..).zip(pairs) {
                let (mut rest, mut at) = (i, 0);
                for axis in (0..rows).rev() {
                    at += rest % shape[axis] * strides[axis];
                    rest /= shape[axis];
                }
                let add = e[at];
                y.iter_mut().zip(x).for_each(|(y, x)| *y = x + add);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Alone;

    #[test]
    fn each_row_gets_its_number() {
        let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
        for e_shape in [[2, 3, 1, 1], [1, 3, 1, 1], [2, 1, 1, 1], [2, 1, 2, 1]] {
            let shape = [2, 3, 2, 2];
            let e: Vec<f32> = (0..e_shape.iter().product()).map(|i: usize| 100.0 * i as f32).collect();
            let mut y = vec![f32::NAN; 24];
            AddRows.run(&Alone, &[(&shape, &x), (&e_shape, &e)], &mut y).unwrap();
            for (i, &got) in y.iter().enumerate() {
                let index = [i / 12, i / 4 % 3, i / 2 % 2, i % 2];
                let place = index.iter().zip(e_shape).fold(0, |at, (&i, n)| at * n + if n == 1 { 0 } else { i });
                assert!((got - x[i] - e[place]).abs() < f32::EPSILON, "{e_shape:?} {i}");
            }
        }
        assert!(AddRows.output(&[&[2, 3], &[1, 3]]).is_err());
        assert!(AddRows.output(&[&[2, 3], &[1, 1]]).is_err());
        assert!(AddRows.output(&[&[2, 3], &[3, 1]]).is_err());
    }
}
