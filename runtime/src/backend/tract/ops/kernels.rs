//! What each of our kernels takes and makes.

use super::native::{Input, Native};
use crate::kernels::{Attention, Conv2d, GroupNorm, TemporalAttention, TemporalConv};

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

    fn run(&self, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(shape, q), (_, k), (_, v)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.run(shape, q, k, v, y)
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

    fn run(&self, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(shape, x)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.run(shape, x, y)
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

    fn run(&self, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        match inputs {
            &[(&[_, _, h, w], x)] => self.run([h, w], x, y),
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

    fn run(&self, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        match (self.layout, inputs) {
            (Layout::Images, &[(&[n, c, ref rest @ ..], x)]) => self.kernel.run([n, 1, c, rest.iter().product()], x, y),
            (Layout::Clips, &[(&[b, t, c, p], x)]) => self.kernel.run([b, t, c, p], x, y),
            _ => Err(format!("found {} inputs", inputs.len())),
        }
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

    fn run(&self, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(_, x), (_, h)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        y.iter_mut().zip(x.iter().zip(h)).for_each(|(y, (x, h))| *y = x + self.temporal * h);
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

    fn run(&self, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let &[(_, q), (_, k), (_, v)] = inputs else { return Err(format!("found {} inputs", inputs.len())) };
        self.kernel.run(q, k, v, y)
    }
}
