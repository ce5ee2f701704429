//! DDIM.

use vldm_graphs::bundle;

use super::{Level, Row, Step, StepsError, Table, alphas_bar, timesteps};

/// DDIM: `x' = √ᾱ'·clean + √(1−ᾱ'−s²)·noise + s·fresh`, the first two estimated from `x` and the network's answer;
/// `s` is `eta` times the standard deviation of the posterior.
///
/// The noise estimate is not computed again from a clamped clean one. Where training made the clean sample smaller by
/// timestep, `√ᾱ` is that much smaller on both sides.
///
/// Source: Song et al. 2021, "Denoising Diffusion Implicit Models", eqs. 12 and 16; diffusers `DDIMScheduler.step`;
/// AILab-CVC/VideoCrafter `lvdm/models/samplers/ddim.py`, `p_sample_ddim`, for the scale.
pub(super) fn table(schedule: &bundle::Scheduler, n: usize) -> Result<Table, StepsError> {
    let visited = timesteps(schedule, n)?;
    let alphas_bar = alphas_bar(schedule);
    let stride = schedule.num_train_timesteps / n;
    let end = if schedule.set_alpha_to_one { 1.0 } else { alphas_bar[0] };
    let eta = schedule.solver.eta.unwrap_or(0.0);
    let step = |t: usize| {
        // The step before t is t − stride, whatever timestep the run visits next.
        let before = t.checked_sub(stride);
        let (a, next) = (alphas_bar[t], before.map_or(end, |t| alphas_bar[t]));
        let scale = |t: usize| schedule.clean_scale.map_or(1.0, |scale| scale.at(t));
        let level = Level { alpha: a.sqrt() * scale(t), sigma: (1.0 - a).sqrt() };
        let (c_skip, c_out) = level.estimate(schedule.prediction_type);
        let variance = eta * eta * ((1.0 - next) / (1.0 - a) * (1.0 - a / next)).max(0.0);
        // noise = (x − √ᾱ·clean) / √(1−ᾱ)
        let keep = ((1.0 - next - variance) / (1.0 - a)).sqrt();
        let (from_noise, gain) = (-keep * level.alpha, next.sqrt() * before.map_or(1.0, scale));
        let next = if schedule.clip_sample {
            Row { x: keep, raw: from_noise, m: vec![gain], noise: variance.sqrt(), ..Row::default() }
        } else {
            Row { x: keep, m: vec![gain + from_noise], noise: variance.sqrt(), ..Row::default() }
        };
        let clip = schedule.clip_sample.then_some(schedule.clip_sample_range);
        Step { t: t as f64, c_in: 1.0, level, c_skip, c_out, clip, next, save: None }
    };
    Ok(Table { start: 1.0, steps: visited.into_iter().map(step).collect() })
}

#[cfg(test)]
mod tests {
    use vldm_graphs::bundle::{BetaSchedule, CleanScale, Scheduler};

    use super::*;

    /// The schedule of VideoCrafter 2. Source: `configs/inference_t2v_512_v2.0.yaml`, `scripts/run_text2video.sh`.
    fn videocrafter() -> Scheduler {
        let mut schedule = Scheduler {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: false,
            clean_scale: Some(CleanScale { last: 0.7, steps: 400 }),
            ..Scheduler::default()
        };
        schedule.solver.eta = Some(1.0);
        schedule
    }

    /// One step as VideoCrafter's `p_sample_ddim` writes it: `(x', x0)`, at timestep `t` after `before`.
    fn upstream(alphas: &[f64], (t, before): (usize, usize), x: f64, e: f64, fresh: f64) -> f64 {
        let scale = |t: usize| if t < 400 { 1.0 - 0.3 * t as f64 / 399.0 } else { 0.7 };
        let (a, prev) = (alphas[t], alphas[before]);
        let sigma = ((1.0 - prev) / (1.0 - a) * (1.0 - a / prev)).sqrt();
        let x0 = (x - (1.0 - a).sqrt() * e) / a.sqrt() / scale(t);
        prev.sqrt() * scale(before) * x0 + (1.0 - prev - sigma * sigma).sqrt() * e + sigma * fresh
    }

    #[test]
    fn the_scale_of_the_clean_sample_is_undone_as_upstream_does() {
        let schedule = videocrafter();
        let alphas = alphas_bar(&schedule);
        let table = table(&schedule, 50).unwrap();
        let visited: Vec<usize> = table.steps.iter().map(|step| step.t as usize).collect();
        assert_eq!((visited[0], visited[1], visited[49]), (981, 961, 1));
        for (i, step) in table.steps.iter().enumerate() {
            let before = visited.get(i + 1).copied().unwrap_or(0);
            for (x, e, fresh) in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -0.7, 1.1)] {
                let clean = step.c_skip * x + step.c_out * e;
                let ours = step.next.x * x + step.next.m[0] * clean + step.next.noise * fresh;
                let theirs = upstream(&alphas, (visited[i], before), x, e, fresh);
                assert!((ours - theirs).abs() < 1e-6, "{i}: {ours} {theirs}");
            }
        }
    }

    #[test]
    fn without_a_scale_nothing_changes_and_other_solvers_are_refused_with_one() {
        let schedule = videocrafter();
        let plain = Scheduler { clean_scale: None, ..schedule.clone() };
        let one = Scheduler { clean_scale: Some(CleanScale { last: 1.0, steps: 400 }), ..schedule.clone() };
        assert_eq!(table(&one, 20), table(&plain, 20));
        assert_ne!(table(&schedule, 20), table(&plain, 20));
        let change = serde_json::json!({"type": "euler"});
        let e = schedule.with_overrides(change.as_object().unwrap()).unwrap_err().to_string();
        assert!(e.contains("expected ddim, for the network was trained with its own scale"), "{e}");
    }
}
