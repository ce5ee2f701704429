//! The noise schedule a checkpoint was trained with, as `scheduler_config.json` states it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Why a scheduler configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// A key whose meaning is unknown here.
    #[error("scheduler key `{key}` = {value} is not supported and would change the result")]
    Unknown {
        /// The key as written.
        key: String,
        /// Its value as JSON.
        value: String,
    },
    /// A known key with a value out of its range.
    #[error("scheduler key `{key}`: expected {expected}, found {found}")]
    Value {
        /// The key as written.
        key: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds, as JSON.
        found: String,
    },
    /// The document is no JSON object.
    #[error("scheduler configuration: expected a JSON object, found {0}")]
    NotAnObject(String),
}

/// How the betas of training were spaced. Source: spec C.1, diffusers `DDIMScheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly between `beta_start` and `beta_end`.
    Linear,
    /// Evenly between their square roots, then squared.
    ScaledLinear,
    /// Squared-cosine ᾱ; `beta_start` and `beta_end` are not used.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise ε.
    Epsilon,
    /// The velocity `√ᾱ ε − √(1−ᾱ) x0`.
    VPrediction,
    /// The clean sample x0.
    Sample,
}

/// Which training timesteps a short schedule visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// `0, N/n, 2N/n, …` plus `steps_offset`.
    Leading,
    /// `N−1, N−1−N/n, …`.
    Trailing,
    /// Evenly from `0` to `N−1`.
    Linspace,
}

/// The noise schedule of a checkpoint; spelling and defaults are those of diffusers' `DDIMScheduler`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// Training timesteps `N`, 1..=100 000.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Spacing of the betas.
    pub beta_schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether ᾱ before the first timestep is 1 rather than ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Whether x0 is clamped to ±`clip_sample_range` in every step.
    pub clip_sample: bool,
    /// The clamp of `clip_sample`.
    pub clip_sample_range: f64,
    /// Whether the betas are rescaled so that the last signal-to-noise ratio is 0.
    pub rescale_betas_zero_snr: bool,
}

/// Keys that change nothing here: they belong to switched-off features or to another sampler over the same schedule.
const HARMLESS: &[&str] = &["dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps", "variance_type"];

/// Scheduler classes whose keys mean the same noise schedule; Stable Diffusion 1.x names the second.
const CLASSES: &[&str] = &["DDIMScheduler", "PNDMScheduler"];

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: true,
            clip_sample: true,
            clip_sample_range: 1.0,
            rescale_betas_zero_snr: false,
        }
    }
}

impl Scheduler {
    /// Reads diffusers' `scheduler_config.json`; absent keys take diffusers' defaults.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`] for a key that is neither known nor harmless nor switched off (`null`, `false`);
    /// [`SchedulerError::Value`] for a value out of range.
    pub fn from_diffusers(document: &Value) -> Result<Self, SchedulerError> {
        let Value::Object(map) = document else { return Err(SchedulerError::NotAnObject(brief(document))) };
        let (mut s, mut rest) = (Self::default(), map.clone());
        rest.retain(|key, _| !key.starts_with('_') && !HARMLESS.contains(&key.as_str()));
        if let Some(class) = map.get("_class_name")
            && !CLASSES.iter().any(|known| class == known)
        {
            let expected = "\"DDIMScheduler\" or \"PNDMScheduler\"";
            return Err(SchedulerError::Value { key: "_class_name", expected, found: brief(class) });
        }
        take(&mut rest, "num_train_timesteps", "a whole number", &mut s.num_train_timesteps)?;
        take(&mut rest, "beta_start", "a number", &mut s.beta_start)?;
        take(&mut rest, "beta_end", "a number", &mut s.beta_end)?;
        take(&mut rest, "beta_schedule", "linear, scaled_linear or squaredcos_cap_v2", &mut s.beta_schedule)?;
        take(&mut rest, "prediction_type", "epsilon, v_prediction or sample", &mut s.prediction_type)?;
        take(&mut rest, "timestep_spacing", "leading, trailing or linspace", &mut s.timestep_spacing)?;
        take(&mut rest, "steps_offset", "a whole number", &mut s.steps_offset)?;
        take(&mut rest, "set_alpha_to_one", "true or false", &mut s.set_alpha_to_one)?;
        take(&mut rest, "clip_sample", "true or false", &mut s.clip_sample)?;
        take(&mut rest, "clip_sample_range", "a number", &mut s.clip_sample_range)?;
        take(&mut rest, "rescale_betas_zero_snr", "true or false", &mut s.rescale_betas_zero_snr)?;
        if let Some((key, value)) = rest.into_iter().find(|(_, v)| !matches!(v, Value::Null | Value::Bool(false))) {
            return Err(SchedulerError::Unknown { key, value: brief(&value) });
        }
        s.validate()?;
        Ok(s)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`SchedulerError::Value`] naming the first key out of range.
    pub fn validate(&self) -> Result<(), SchedulerError> {
        let check = |ok: bool, key, expected, found: &dyn ToString| {
            if ok { Ok(()) } else { Err(SchedulerError::Value { key, expected, found: found.to_string() }) }
        };
        check(
            (1..=100_000).contains(&self.num_train_timesteps),
            "num_train_timesteps",
            "1..=100000",
            &self.num_train_timesteps,
        )?;
        check(self.beta_start > 0.0 && self.beta_start < 1.0, "beta_start", "a number in 0..1", &self.beta_start)?;
        let ordered = self.beta_end >= self.beta_start && self.beta_end < 1.0;
        check(ordered, "beta_end", "a number in beta_start..1", &self.beta_end)?;
        check(
            self.steps_offset < self.num_train_timesteps,
            "steps_offset",
            "less than num_train_timesteps",
            &self.steps_offset,
        )?;
        let range = self.clip_sample_range;
        check(range.is_finite() && range > 0.0, "clip_sample_range", "a positive number", &range)
    }
}

/// Moves `map[key]` into `slot` when it is there.
fn take<T: serde::de::DeserializeOwned>(
    map: &mut Map<String, Value>,
    key: &'static str,
    expected: &'static str,
    slot: &mut T,
) -> Result<(), SchedulerError> {
    if let Some(value) = map.remove(key) {
        let found = brief(&value);
        *slot = serde_json::from_value(value).map_err(|_| SchedulerError::Value { key, expected, found })?;
    }
    Ok(())
}

/// A JSON value as text short enough for a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(document: &Value) -> String {
        Scheduler::from_diffusers(document).unwrap_err().to_string()
    }

    #[test]
    fn absent_keys_take_the_defaults_of_diffusers() {
        // Source: diffusers 0.42.1, `DDIMScheduler.__init__`.
        let s = Scheduler::from_diffusers(&json!({"_class_name": "DDIMScheduler"})).unwrap();
        assert_eq!(s, Scheduler::default());
        assert!(s.clip_sample && s.set_alpha_to_one && s.timestep_spacing == TimestepSpacing::Leading);
    }

    #[test]
    fn the_files_of_stable_diffusion_are_understood() {
        // Source: scheduler_config.json of Stable Diffusion 1.5, as written by diffusers 0.6.
        let file = json!({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
            "clip_sample": false});
        let s = Scheduler::from_diffusers(&file).unwrap();
        assert_eq!((s.beta_schedule, s.steps_offset, s.clip_sample), (BetaSchedule::ScaledLinear, 1, false));
    }

    #[test]
    fn a_key_that_changes_the_result_is_refused_by_name() {
        assert_eq!(
            message(&json!({"trained_betas": [0.1]})),
            "scheduler key `trained_betas` = [0.1] is not supported and would change the result"
        );
        assert!(message(&json!({"thresholding": true})).contains("`thresholding` = true"));
        assert!(message(&json!({"use_karras_sigmas": true})).contains("`use_karras_sigmas`"));
        assert!(Scheduler::from_diffusers(&json!({"trained_betas": null, "thresholding": false})).is_ok());
    }

    #[test]
    fn a_value_out_of_range_names_key_expectation_and_finding() {
        assert_eq!(
            message(&json!({"prediction_type": "flow"})),
            "scheduler key `prediction_type`: expected epsilon, v_prediction or sample, found \"flow\""
        );
        for bad in [
            json!({"num_train_timesteps": 0}),
            json!({"num_train_timesteps": 10_000_000_000u64}),
            json!({"num_train_timesteps": -1}),
            json!({"beta_end": 1.5}),
            json!({"beta_start": 0}),
            json!({"clip_sample_range": 0}),
            json!({"steps_offset": 1000}),
            json!({"_class_name": "FlowMatchScheduler"}),
        ] {
            assert!(message(&bad).contains("expected"), "{bad}");
        }
        assert_eq!(message(&json!([1])), "scheduler configuration: expected a JSON object, found [1]");
    }
}
