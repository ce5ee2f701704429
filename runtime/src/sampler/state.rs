//! What a denoising loop carries from step to step, and how a [`Step`] moves it.

use std::collections::VecDeque;

use ndarray::{ArrayD, Zip};

use super::Snapshot;
use crate::scheduler::{Row, Step, Table};

/// The sample, the saved one, and the estimates so far, as far back as the table looks.
pub(super) struct State {
    /// The sample.
    pub x: ArrayD<f32>,
    saved: Option<ArrayD<f32>>,
    /// Latest first.
    estimates: VecDeque<ArrayD<f32>>,
    depth: usize,
}

impl State {
    pub fn new(table: &Table, x: ArrayD<f32>) -> Self {
        Self { x, saved: None, estimates: VecDeque::new(), depth: table.depth() }
    }

    /// The state of a loop that was left.
    pub fn restored(table: &Table, earlier: Snapshot) -> Self {
        let Snapshot { x, estimates, saved, .. } = earlier;
        Self { x, saved, estimates: estimates.into(), depth: table.depth() }
    }

    /// The state after `step` steps.
    pub fn snapshot(&self, step: usize, draws: usize) -> Snapshot {
        let estimates = self.estimates.iter().cloned().collect();
        Snapshot { step, draws, x: self.x.clone(), estimates, saved: self.saved.clone() }
    }

    /// One step, from the network's answer and fresh noise where the step draws it.
    pub fn advance(&mut self, step: &Step, answer: &ArrayD<f32>, noise: Option<&ArrayD<f32>>) {
        let plain = self.depth == 0 && step.clip.is_none() && step.save.is_none();
        if plain && step.next.saved == 0.0 && noise.is_none() {
            let (from_x, from_answer) = folded(step, &step.next);
            let (from_x, from_answer) = (from_x as f32, from_answer as f32);
            Zip::from(&mut self.x).and(answer).for_each(|x, n| *x = from_x * *x + from_answer * n);
            return;
        }
        let saved = step.save.as_ref().map(|row| self.sum(step, row, answer, noise));
        let next = self.sum(step, &step.next, answer, noise);
        if self.depth > 0 {
            let mut estimate = answer.clone();
            let clean = |x: f32, n: f32| clamped(step, step.c_skip * f64::from(x) + step.c_out * f64::from(n)) as f32;
            Zip::from(&mut estimate).and(&self.x).for_each(|n, x| *n = clean(*x, *n));
            self.estimates.truncate(self.depth - 1);
            self.estimates.push_front(estimate);
        }
        self.x = next;
        self.saved = saved.or(self.saved.take());
    }

    /// The sum that `row` says, in f64.
    fn sum(&self, step: &Step, row: &Row, answer: &ArrayD<f32>, noise: Option<&ArrayD<f32>>) -> ArrayD<f32> {
        let mut sum = ArrayD::<f64>::zeros(self.x.raw_dim());
        if step.clip.is_none() {
            let (from_x, from_answer) = folded(step, row);
            let mix = |sum: &mut f64, x: &f32, n: &f32| *sum = from_x * f64::from(*x) + from_answer * f64::from(*n);
            Zip::from(&mut sum).and(&self.x).and(answer).for_each(mix);
        } else {
            let gain = row.m.first().copied().unwrap_or(0.0);
            Zip::from(&mut sum).and(&self.x).and(answer).for_each(|sum, x, n| {
                let raw = step.c_skip * f64::from(*x) + step.c_out * f64::from(*n);
                *sum = row.x * f64::from(*x) + row.raw * raw + gain * clamped(step, raw);
            });
        }
        let before = row.m.iter().skip(1).copied().zip(&self.estimates);
        let others = [(row.saved, self.saved.as_ref()), (row.noise, noise)];
        let others = others.into_iter().filter_map(|(weight, array)| Some((weight, array?)));
        for (weight, array) in before.chain(others).filter(|(weight, _)| *weight != 0.0) {
            Zip::from(&mut sum).and(array).for_each(|sum, v| *sum += weight * f64::from(*v));
        }
        sum.mapv(|v| v as f32)
    }
}

/// Weights of the sample and of the answer, where the estimate is not clamped.
fn folded(step: &Step, row: &Row) -> (f64, f64) {
    let estimate = row.raw + row.m.first().copied().unwrap_or(0.0);
    (row.x + estimate * step.c_skip, estimate * step.c_out)
}

fn clamped(step: &Step, estimate: f64) -> f64 {
    step.clip.map_or(estimate, |range| estimate.clamp(-range, range))
}
