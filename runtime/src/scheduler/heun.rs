//! Heun's method over σ.

use vldm_graphs::bundle;

use super::euler::{Run, call, line};
use super::{Row, Step, StepsError, Table};

/// Heun: an Euler step, the slope there, and from where it began a step along the mean of both slopes. The last step,
/// to σ = 0, is Euler's: the network is called `2n − 1` times.
///
/// Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 1;
/// diffusers `HeunDiscreteScheduler.step`.
pub(super) fn table(schedule: &bundle::Scheduler, n: usize) -> Result<Table, StepsError> {
    let run = Run::of(schedule, n)?;
    let clip = schedule.clip_sample.then_some(schedule.clip_sample_range);
    let mut steps = vec![];
    for (i, pair) in run.sigmas[..=n].windows(2).enumerate() {
        let (sigma, to) = (pair[0], pair[1]);
        let save = Some(Row { x: 1.0, ..Row::default() });
        steps.push(Step { clip, next: line(sigma, to), save, ..call(schedule, run.times[i], sigma) });
        if i + 1 < n {
            let half = (to - sigma) / 2.0;
            let (before, here) = (half / sigma, half / to);
            let next = Row { x: here, saved: 1.0 + before, m: vec![-here, -before], ..Row::default() };
            steps.push(Step { clip, next, ..call(schedule, run.times[i + 1], to) });
        }
    }
    Ok(Table { start: run.start(schedule), steps })
}
