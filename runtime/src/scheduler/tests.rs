//! Every table against diffusers, through the loop that applies it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{ArrayD, IxDyn};
use serde::Deserialize;
use serde_json::{Map, Value};
use vldm_graphs::bundle;

use super::*;
use crate::noise::{Draws, NoiseRule, Pipeline, Source};
use crate::sampler::{Branch, Control, Guidance, Replace, Window, denoise};

/// diffusers 0.42.1; see `tests/golden/README.md`.
const DDIM: &str = include_str!("../../../tests/golden/scheduler.json");
const ALL: &str = include_str!("../../../tests/golden/schedulers.json");

struct Quiet;

impl Control for Quiet {
    fn proceed(&self) -> bool {
        true
    }

    fn stepped(&self) {}

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..jobs).for_each(job);
    }
}

/// The samples of a run, the start not counted; `answer` is the network, for the call's number, what it sees and `t`.
fn path(
    table: &Table,
    start: ArrayD<f32>,
    step_noise: &(dyn Fn(usize) -> ArrayD<f32> + Sync),
    answer: impl Fn(usize, &ArrayD<f32>, f64) -> ArrayD<f32> + Sync,
) -> Vec<Vec<f32>> {
    let (calls, seen) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let network = |_: Branch, x: &ArrayD<f32>, t: f64| -> Result<ArrayD<f32>, ()> {
        let i = calls.fetch_add(1, Ordering::Relaxed);
        let sample = x.mapv(|v| (f64::from(v) / table.steps[i].c_in) as f32);
        seen.lock().unwrap().push(sample.iter().copied().collect());
        Ok(answer(i, x, t))
    };
    let window = Window { known: start.clone(), noise: start, seen: vec![], replace: Replace::None, step_noise };
    let last = denoise(table, &window, Guidance::NONE, &Quiet, &network).unwrap();
    let mut path: Vec<Vec<f32>> = seen.into_inner().unwrap();
    path.remove(0);
    path.push(last.iter().copied().collect());
    path
}

/// The network of `scheduler.py`.
fn pretended(i: usize, x: &ArrayD<f32>, _: f64) -> ArrayD<f32> {
    let mut k = 0.0;
    x.mapv(|v| {
        let answer = 0.3 * v + (i as f32 + k).sin();
        k += 1.0;
        answer
    })
}

/// Within `tolerance` of the largest number, or of `scale` where the numbers come from larger ones.
fn assert_near(what: &str, ours: &[f32], expected: &[f64], scale: f64, tolerance: f64) {
    let size = expected.iter().fold(scale.max(1.0), |a, b| a.max(b.abs()));
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (a, b) in ours.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() <= tolerance * size, "{what}: {ours:?} for {expected:?}");
    }
}

#[derive(Deserialize)]
struct Golden<C> {
    cases: C,
}

#[derive(Deserialize)]
struct DdimCase {
    config: bundle::Scheduler,
    timesteps: Vec<usize>,
    alpha_bar: BTreeMap<usize, f64>,
    path: Vec<[f64; 4]>,
}

#[test]
fn ddim_tables_and_trajectories_are_those_of_diffusers() {
    let golden: Golden<BTreeMap<String, DdimCase>> = serde_json::from_str(DDIM).unwrap();
    assert!(golden.cases.len() >= 9);
    for (name, case) in &golden.cases {
        let table = table(&case.config, case.timesteps.len()).unwrap();
        let timesteps: Vec<usize> = table.steps.iter().map(|s| s.t as usize).collect();
        assert_eq!(timesteps, case.timesteps, "{name}");
        let ours = alphas_bar(&case.config);
        for (&i, expected) in &case.alpha_bar {
            let error = (ours[i] - expected).abs();
            assert!(error <= 1e-6 * expected.max(1e-4), "{name}: alpha_bar[{i}] is {} for {expected}", ours[i]);
        }
        let start = ArrayD::from_shape_vec(IxDyn(&[1, 1, 4]), vec![1.5, -0.7, 0.25, -2.0]).unwrap();
        let path = path(&table, start, &|_| unreachable!("without eta"), pretended);
        for (i, (x, expected)) in path.iter().zip(&case.path).enumerate() {
            assert_near(&format!("{name} step {i}"), x, expected, 1.0, 1e-5);
        }
    }
}

#[derive(Deserialize)]
struct Case {
    config: Value,
    overrides: Map<String, Value>,
    steps: usize,
    start: f64,
    times: Vec<f64>,
    sigmas: Vec<f64>,
    path: Vec<[f64; 4]>,
}

#[test]
fn every_scheduler_goes_the_way_of_diffusers() {
    let golden: Golden<Vec<Case>> = serde_json::from_str(ALL).unwrap();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, case) in golden.cases.iter().enumerate() {
        let schedule = bundle::Scheduler::from_diffusers(&case.config).unwrap();
        let schedule = schedule.with_overrides(&case.overrides).unwrap();
        let what =
            format!("case {number}: {} {}, {} steps", case.config, Value::from(case.overrides.clone()), case.steps);
        *seen.entry(schedule.kind.name()).or_default() += 1;
        let table = table(&schedule, case.steps).unwrap();
        assert!((table.start - case.start).abs() <= 1e-6 * case.start, "{what}: {} for {}", table.start, case.start);
        let times: Vec<f32> = table.steps.iter().map(|s| s.t as f32).collect();
        assert_near(&format!("{what}, times"), &times, &case.times, 1.0, 1e-6);
        for (step, sigma) in table.steps.iter().zip(&case.sigmas) {
            let ours = step.level.sigma / step.level.alpha;
            assert!((ours - sigma).abs() <= 2e-6 * sigma, "{what}: σ {ours} for {sigma}");
        }
        let pipeline = Pipeline::default();
        let draws = Draws::new(NoiseRule::Diffusers, 3, (Source::Keyframes, 0), &[1, 1, 4], pipeline);
        let path = path(&table, draws.start(), &|i| draws.step(i), pretended);
        assert_eq!(path.len(), case.path.len(), "{what}");
        for (i, (x, expected)) in path.iter().zip(&case.path).enumerate() {
            // In f32, diffusers loses digits between a sample at σ = 4096 and the next at 4.
            assert_near(&format!("{what}, step {i}"), x, expected, table.start / 400.0, 1e-5);
        }
    }
    assert_eq!(seen.len(), 12, "{seen:?}");
    assert!(seen.values().all(|&cases| cases >= 5), "{seen:?}");
}

/// Every class, as diffusers writes it down without arguments.
#[test]
fn absent_keys_take_the_defaults_of_the_class() {
    #[derive(Deserialize)]
    struct Defaults {
        defaults: Vec<String>,
    }
    let golden: Defaults = serde_json::from_str(ALL).unwrap();
    assert_eq!(golden.defaults.len(), 12);
    for text in golden.defaults {
        let written = bundle::parse_python(text.as_bytes()).unwrap();
        let name = serde_json::json!({"_class_name": written["_class_name"]});
        let whole = bundle::Scheduler::from_diffusers(&written).unwrap();
        assert_eq!(whole, bundle::Scheduler::from_diffusers(&name).unwrap(), "{name}");
    }
}
