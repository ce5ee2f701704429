//! What each scheduler is for, on problems whose answer is known.

use vldm_graphs::bundle::{BetaSchedule, FinalSigmas, PredictionType, Scheduler, TimestepSpacing};

use super::sigmas::{Train, exploding, preserving};
use super::*;

/// A schedule of plan type `name` over the betas of Stable Diffusion, with `overrides`.
fn schedule(name: &str, overrides: &serde_json::Value) -> Scheduler {
    let base = Scheduler {
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        clip_sample: false,
        ..Scheduler::default()
    };
    let mut keys = overrides.as_object().cloned().unwrap_or_default();
    keys.insert("type".into(), name.into());
    base.with_overrides(&keys).unwrap()
}

/// A network that knows the data are normal with this mean and deviation, at the level of its step.
#[derive(Clone, Copy)]
struct Gaussian {
    mean: f64,
    deviation: f64,
}

impl Gaussian {
    /// The posterior mean of the clean sample: `gain·x + offset`. Source: the normal conjugate rule.
    fn clean(self, level: Level) -> (f64, f64) {
        let (a, v) = (level.alpha, self.deviation * self.deviation);
        let total = a * a * v + level.sigma * level.sigma;
        let gain = a * v / total;
        (gain, self.mean * (1.0 - gain * a))
    }
}

/// A sample as `x·start + shift`, with the variance of the fresh noise in it.
#[derive(Clone, Debug, Default)]
struct Moments {
    x: f64,
    shift: f64,
    noises: Vec<f64>,
}

impl Moments {
    fn add(&mut self, weight: f64, other: &Self) {
        self.x += weight * other.x;
        self.shift += weight * other.shift;
        self.noises.resize(self.noises.len().max(other.noises.len()), 0.0);
        self.noises.iter_mut().zip(&other.noises).for_each(|(a, b)| *a += weight * b);
    }

    /// Mean and variance when the start is normal with this mean and deviation.
    fn mean_and_variance(&self, mean: f64, deviation: f64) -> (f64, f64) {
        let fresh: f64 = self.noises.iter().map(|n| n * n).sum();
        (self.x * mean + self.shift, (self.x * deviation).powi(2) + fresh)
    }
}

/// Carries the sample through the table exactly, with every draw kept apart; `clean` is what the network knows, and
/// the table reads it from an answer of its prediction type.
fn carried(table: &Table, clean: impl Fn(Level) -> (f64, f64)) -> Moments {
    let mut x = Moments { x: 1.0, ..Moments::default() };
    let (mut saved, mut estimates, mut draws) = (Moments::default(), Vec::<Moments>::new(), 0);
    for step in &table.steps {
        let (gain, offset) = clean(step.level);
        let mut m = Moments { shift: offset, ..Moments::default() };
        m.add(gain, &x);
        if step.c_skip.abs() + (step.c_out - 1.0).abs() < 1e-12 {
            // PNDM keeps noise estimates: (x − α·clean)/σ.
            let mut noise = Moments::default();
            noise.add(1.0 / step.level.sigma, &x);
            noise.add(-step.level.alpha / step.level.sigma, &m);
            m = noise;
        }
        estimates.insert(0, m);
        let row = |row: &Row| {
            let mut sum = Moments::default();
            sum.add(row.x, &x);
            sum.add(row.saved, &saved);
            row.m.iter().zip(&estimates).for_each(|(w, m)| sum.add(*w, m));
            sum.noises.resize(sum.noises.len().max(draws + 1), 0.0);
            sum.noises[draws] += row.noise;
            sum
        };
        let next = row(&step.next);
        if let Some(save) = &step.save {
            saved = row(save);
        }
        x = next;
        draws += usize::from(step.draws());
    }
    x
}

/// With a network that knows the clean sample, a step of any deterministic first-order solver lands on the forward
/// process, whatever the network is asked for.
#[test]
fn one_sample_is_found_exactly_by_every_deterministic_solver() {
    for name in ["ddim", "euler", "heun", "dpmsolver++", "unipc", "edm-euler", "edm-dpmsolver++"] {
        let s = if name.starts_with("edm") {
            Scheduler::from_diffusers(&serde_json::json!({"_class_name": if name == "edm-euler" { "EDMEulerScheduler" } else { "EDMDPMSolverMultistepScheduler" }})).unwrap()
        } else {
            schedule(name, &serde_json::json!({}))
        };
        let table = table(&s, 12).unwrap();
        let end = carried(&table, |_| (0.0, 0.7));
        assert!(end.x.abs() < 1e-9 || name == "ddim", "{name}: {}", end.x);
        assert!((end.shift - 0.7).abs() < 1e-9 || name == "ddim", "{name}: {}", end.shift);
        // Between, the sample is α·clean + σ·noise, and the estimate read from a right answer is the clean sample.
        for (i, step) in table.steps.iter().enumerate() {
            let before = Table { start: table.start, steps: table.steps[..i].to_vec() };
            let first = table.steps[0].level;
            let here = carried(&before, |_| (0.0, 0.7));
            let x = here.x * (first.alpha * 0.7 - first.sigma * 1.3) + here.shift;
            let expected = step.level.alpha * 0.7 - step.level.sigma * 1.3;
            assert!((x - expected).abs() < 1e-6 * first.sigma.max(1.0), "{name} call {i}: {x} for {expected}");
        }
    }
}

#[test]
fn every_prediction_type_says_the_same() {
    for name in ["ddim", "ddpm", "euler", "heun", "dpmsolver++", "unipc", "lcm", "tcd"] {
        for prediction in ["epsilon", "v_prediction", "sample"] {
            let s = schedule(name, &serde_json::json!({"prediction_type": prediction}));
            for step in table(&s, 6).unwrap().steps {
                let (clean, noise) = (0.7, -1.3);
                let x = step.level.alpha * clean + step.level.sigma * noise;
                // What the network sees is the variance-preserving sample.
                let total = step.level.alpha.hypot(step.level.sigma);
                let (a, b) = (step.level.alpha / total, step.level.sigma / total);
                assert!((step.c_in * total - 1.0).abs() < 1e-9, "{name}");
                let answer = match s.prediction_type {
                    PredictionType::Epsilon => noise,
                    PredictionType::VPrediction => a * noise - b * clean,
                    PredictionType::Sample => clean,
                };
                let m = step.c_skip * x + step.c_out * answer;
                assert!((m - clean).abs() < 1e-9, "{name} {prediction}: {m}");
            }
        }
    }
}

/// How the error at the end falls when the steps are twice as many, on a normal distribution whose flow is known:
/// a sample keeps its distance from the mean in units of the deviation.
fn order_of(s: &Scheduler, n: usize) -> f64 {
    let data = Gaussian { mean: 0.4, deviation: 0.6 };
    let error = |n: usize| {
        let table = table(s, n).unwrap();
        let first = table.steps[0].level;
        let end = carried(&table, |level| data.clean(level));
        let start = 1.1;
        let spread = |l: Level| (l.alpha * data.deviation).hypot(l.sigma);
        let last = Train::of(s).ends().0;
        let last = if matches!(s.kind, SchedulerKind::Euler) { exploding(last) } else { preserving(last) };
        let exact = last.alpha * data.mean + (start - first.alpha * data.mean) / spread(first) * spread(last);
        (end.x * start + end.shift - exact).abs()
    };
    (error(n) / error(2 * n)).log2()
}

#[test]
fn errors_fall_with_the_order_of_the_solver() {
    let with = |name: &str, order: usize, more: &[(&str, serde_json::Value)]| {
        let mut keys = serde_json::json!({"use_exponential_sigmas": true, "final_sigmas_type": "sigma_min"});
        if order > 0 {
            keys["solver_order"] = order.into();
            keys["lower_order_final"] = (name == "unipc").into();
        }
        for (key, value) in more {
            keys[*key] = value.clone();
        }
        let mut s = schedule(name, &keys);
        s.timestep_spacing = TimestepSpacing::Linspace;
        s.solver.final_sigmas_type = FinalSigmas::SigmaMin;
        s
    };
    // The range of σ is large, so the slopes are measured where they have settled.
    for (s, least, most, what) in [
        (with("euler", 0, &[]), 0.8, 1.3, "Euler"),
        (with("dpmsolver++", 1, &[]), 0.8, 1.3, "first order"),
        (with("dpmsolver++", 2, &[]), 1.7, 2.6, "second order, midpoint"),
        (with("dpmsolver++", 2, &[("solver_type", "heun".into())]), 1.7, 2.6, "second order, Heun"),
        // Its first step is of first order, which is an error of second order in the end.
        (with("dpmsolver++", 3, &[]), 1.8, 4.5, "third order"),
    ] {
        let order = order_of(&s, 100);
        assert!((least..most).contains(&order), "{what}: {order}");
    }
}

/// Heun and UniPC end without noise, where the flow of a normal distribution is known as well.
#[test]
fn heun_and_unipc_are_closer_than_euler_by_an_order() {
    let data = Gaussian { mean: 0.4, deviation: 0.6 };
    let error = |name: &str, n: usize| {
        let s = schedule(name, &serde_json::json!({"use_karras_sigmas": true}));
        let table = table(&s, n).unwrap();
        let first = table.steps[0].level;
        let end = carried(&table, |level| data.clean(level));
        let spread = (first.alpha * data.deviation).hypot(first.sigma);
        let start = first.alpha * data.mean + 1.1 * spread;
        (end.x * start + end.shift - data.mean - 1.1 * data.deviation).abs()
    };
    let euler = error("euler", 40);
    for name in ["heun", "unipc", "dpmsolver++"] {
        let (coarse, fine) = (error(name, 20), error(name, 40));
        assert!(fine < euler / 8.0, "{name}: {fine} for Euler's {euler}");
        assert!(fine < coarse / 2.5, "{name}: {coarse} to {fine}");
    }
}

/// Steps with fresh noise keep the distribution: started from the marginal of a normal distribution, they end at it.
#[test]
fn stochastic_schedulers_keep_mean_and_variance() {
    let data = Gaussian { mean: 0.5, deviation: 0.8 };
    for (name, keys, n) in [
        ("ddpm", serde_json::json!({}), 500),
        ("ddim", serde_json::json!({"eta": 1.0}), 500),
        ("ddim", serde_json::json!({"eta": 0.5}), 500),
        ("euler-ancestral", serde_json::json!({}), 400),
        ("sde-dpmsolver++", serde_json::json!({"solver_order": 2, "use_karras_sigmas": true}), 200),
        ("sde-dpmsolver++", serde_json::json!({"solver_order": 3, "use_karras_sigmas": true}), 200),
    ] {
        let s = schedule(name, &keys);
        let table = table(&s, n).unwrap();
        assert!(table.draws() + 2 >= n, "{name}: {}", table.draws());
        let first = table.steps[0].level;
        let spread = (first.alpha * data.deviation).hypot(first.sigma);
        let end = carried(&table, |level| data.clean(level));
        let (mean, variance) = end.mean_and_variance(first.alpha * data.mean, spread);
        assert!((mean - data.mean).abs() < 0.01, "{name}: mean {mean}");
        assert!((variance / data.deviation.powi(2) - 1.0).abs() < 0.05, "{name}: variance {variance}");
        // Without the noise it would be another distribution.
        assert!((end.x * spread).powi(2) < 0.9 * variance, "{name}");
    }
}

/// A consistency network says the clean sample at once: one step is the network, and more lead to the same sample.
#[test]
fn consistency_samplers_return_the_estimate() {
    for name in ["lcm", "tcd"] {
        for n in [1, 2, 4, 8] {
            let table = table(&schedule(name, &serde_json::json!({})), n).unwrap();
            let end = carried(&table, |_| (0.0, 0.7));
            assert!((end.shift - 0.7).abs() < 2e-3, "{name} {n}: {}", end.shift);
            assert_eq!(table.draws(), n - 1, "{name}");
            let (_, variance) = end.mean_and_variance(0.0, 1.0);
            // TCD ends at the first training step, which has noise.
            assert!(variance < 1.1e-3, "{name} {n}: {variance}");
        }
    }
}

/// A linear multistep method of fourth order over noise estimates needs fewer steps than DDIM.
#[test]
fn pndm_is_closer_to_the_flow_than_ddim() {
    let data = Gaussian { mean: 0.4, deviation: 0.6 };
    let error = |name: &str, keys: serde_json::Value| {
        let s = schedule(name, &keys);
        let table = table(&s, 50).unwrap();
        let spread = |a: f64| (a * data.deviation * data.deviation + 1.0 - a).sqrt();
        let bar = alphas_bar(&s);
        let first = table.steps[0].level;
        let start = first.alpha * data.mean + 1.1 * spread(first.alpha * first.alpha);
        let end = carried(&table, |level| data.clean(level));
        (end.x * start + end.shift - bar[0].sqrt() * data.mean - 1.1 * spread(bar[0])).abs()
    };
    let ddim = error("ddim", serde_json::json!({"set_alpha_to_one": false}));
    for skip in [true, false] {
        let pndm = error("pndm", serde_json::json!({"skip_prk_steps": skip}));
        assert!(pndm < ddim / 4.0, "{pndm} for DDIM's {ddim}");
    }
}
