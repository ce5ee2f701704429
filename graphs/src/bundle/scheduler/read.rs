//! Reading `scheduler_config.json`, and the overrides of plans.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::class::{CLASSES, Class};
use super::{Scheduler, SchedulerError, SchedulerKind, SigmaSchedule, Solver, SolverType, TimestepType};

/// Keys that change nothing here: they belong to switched-off features.
const HARMLESS: &[&str] = &[
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "variance_type",
    "predict_x0",
    "lambda_min_clipped",
];

impl Scheduler {
    /// Reads diffusers' `scheduler_config.json`; absent keys take the defaults of its `_class_name`.
    ///
    /// Keys of other classes are passed over, as diffusers does, unless they switch something on.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`] for a key that is neither known nor harmless nor switched off (`null`, `false`);
    /// [`SchedulerError::Value`] for a value out of range.
    pub fn from_diffusers(document: &Value) -> Result<Self, SchedulerError> {
        let Value::Object(map) = document else { return Err(SchedulerError::NotAnObject(brief(document))) };
        let class = match map.get("_class_name") {
            None => SchedulerKind::Ddim.class(),
            Some(name) => CLASSES.iter().find(|class| name == class.name).ok_or_else(|| unknown_class(name))?,
        };
        let mut s = class.defaults();
        for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('_')) {
            // UniPC over noise estimates is another method, so `false` is no switch that is off.
            let meant = key == "predict_x0" && class.kind == SchedulerKind::UniPc;
            let off = matches!(value, Value::Null | Value::Bool(false)) && !meant;
            if class.has(key) {
                s.set(key, value)?;
            } else if !off && !passed_over(class, key, value) {
                return Err(SchedulerError::Unknown { key: key.clone(), value: brief(value) });
            }
        }
        s.validate()?;
        Ok(s)
    }

    /// This schedule with the keys of a plan: those of the scheduler's class, and `type`, which names another one
    /// ([`SchedulerKind::types`]). That one keeps the betas, the prediction type and the clamp of this schedule, and
    /// takes its own defaults elsewhere.
    ///
    /// # Errors
    /// [`SchedulerError::Foreign`] for a key that the scheduler does not have, [`SchedulerError::Value`] for a value
    /// out of range or a type that does not fit the network.
    pub fn with_overrides(&self, overrides: &Map<String, Value>) -> Result<Self, SchedulerError> {
        let mut s = match overrides.get("type") {
            None => self.clone(),
            Some(name) => self.switched(name)?,
        };
        let class = s.kind.class();
        for (key, value) in overrides.iter().filter(|(key, _)| *key != "type") {
            if !class.has(key) {
                let keys = class.keys().collect::<Vec<_>>().join(", ");
                return Err(SchedulerError::Foreign { key: short(key), kind: s.kind, keys });
            }
            s.set(key, value)?;
        }
        s.validate()?;
        Ok(s)
    }

    fn switched(&self, name: &Value) -> Result<Self, SchedulerError> {
        let named = |class: &'static Class| {
            class.types.iter().find(|(n, _)| name == n).map(|(_, algorithm)| (class, *algorithm))
        };
        let Some((class, algorithm_type)) = CLASSES.iter().find_map(named) else {
            const TYPES: &str = "ddim, pndm, ddpm, euler, euler-ancestral, heun, dpmsolver++, sde-dpmsolver++, unipc, \
                                 lcm, tcd, edm-euler, edm-dpmsolver++ or edm-sde-dpmsolver++";
            return Err(SchedulerError::Value { key: "type", expected: TYPES, found: brief(name) });
        };
        if class.kind == self.kind {
            return Ok(Self { solver: Solver { algorithm_type, ..self.solver.clone() }, ..self.clone() });
        }
        if self.clean_scale.is_some() {
            let expected = "ddim, for the network was trained with its own scale of the clean sample";
            return Err(SchedulerError::Value { key: "type", expected, found: brief(name) });
        }
        let mut s = class.defaults();
        s.solver.algorithm_type = algorithm_type;
        s.num_train_timesteps = self.num_train_timesteps;
        (s.beta_start, s.beta_end, s.beta_schedule) = (self.beta_start, self.beta_end, self.beta_schedule);
        s.trained_betas.clone_from(&self.trained_betas);
        s.rescale_betas_zero_snr = self.rescale_betas_zero_snr;
        s.prediction_type = self.prediction_type;
        (s.clip_sample, s.clip_sample_range) = (self.clip_sample && class.has("clip_sample"), self.clip_sample_range);
        let fits = match (self.is_edm(), s.is_edm()) {
            (false, false) => !self.is_continuous(),
            (true, true) => {
                s.solver.take_edm(&self.solver);
                true
            }
            (false, true) => {
                s.solver.take_edm(&Solver { sigma_data: 1.0, rho: 7.0, ..self.solver.clone() });
                self.is_continuous() && self.solver.sigma_min.is_some() && self.solver.sigma_max.is_some()
            }
            (true, false) => false,
        };
        if fits {
            return Ok(s);
        }
        let expected = match (self.is_edm(), self.is_continuous()) {
            (true, _) => "edm-euler, edm-dpmsolver++ or edm-sde-dpmsolver++, as the network was trained with EDM",
            (_, true) => "euler, edm-euler or edm-dpmsolver++, as the network is told ln σ/4 and no timestep",
            _ => "a scheduler over training timesteps, as the network was trained with them",
        };
        Err(SchedulerError::Value { key: "type", expected, found: brief(name) })
    }

    fn is_edm(&self) -> bool {
        matches!(self.kind, SchedulerKind::EdmEuler | SchedulerKind::EdmDpmSolver)
    }

    /// Is the network told `¼ ln σ`? Source: diffusers `EulerDiscreteScheduler.set_timesteps`.
    pub fn is_continuous(&self) -> bool {
        self.solver.timestep_type == TimestepType::Continuous
            && self.prediction_type == super::PredictionType::VPrediction
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<(), SchedulerError> {
        match key {
            "num_train_timesteps" => put(&mut self.num_train_timesteps, "num_train_timesteps", "a whole number", value),
            "beta_start" => put(&mut self.beta_start, "beta_start", "a number", value),
            "beta_end" => put(&mut self.beta_end, "beta_end", "a number", value),
            "beta_schedule" => {
                put(&mut self.beta_schedule, "beta_schedule", "linear, scaled_linear or squaredcos_cap_v2", value)
            }
            "trained_betas" => put(&mut self.trained_betas, "trained_betas", "a list of numbers", value),
            "prediction_type" => {
                put(&mut self.prediction_type, "prediction_type", "epsilon, v_prediction or sample", value)
            }
            "timestep_spacing" => {
                put(&mut self.timestep_spacing, "timestep_spacing", "leading, trailing or linspace", value)
            }
            "steps_offset" => put(&mut self.steps_offset, "steps_offset", "a whole number", value),
            "set_alpha_to_one" => put(&mut self.set_alpha_to_one, "set_alpha_to_one", BOOL, value),
            "clip_sample" => put(&mut self.clip_sample, "clip_sample", BOOL, value),
            "clip_sample_range" => put(&mut self.clip_sample_range, "clip_sample_range", "a number", value),
            "rescale_betas_zero_snr" => put(&mut self.rescale_betas_zero_snr, "rescale_betas_zero_snr", BOOL, value),
            "clean_scale" => put(&mut self.clean_scale, "clean_scale", "`last` and `steps`, or null", value),
            _ => self.solver.set(self.kind, key, value),
        }
    }
}

impl Solver {
    /// The noise levels of an EDM network.
    fn take_edm(&mut self, from: &Self) {
        (self.sigma_min, self.sigma_max) = (from.sigma_min, from.sigma_max);
        (self.sigma_data, self.rho) = (from.sigma_data, from.rho);
        (self.sigma_schedule, self.final_sigmas_type) = (from.sigma_schedule, from.final_sigmas_type);
        if from.use_exponential_sigmas {
            self.sigma_schedule = SigmaSchedule::Exponential;
        }
    }

    fn set(&mut self, kind: SchedulerKind, key: &str, value: &Value) -> Result<(), SchedulerError> {
        match key {
            "eta" => put(&mut self.eta, "eta", "a number in 0..=1", value),
            "variance_type" => put(
                &mut self.variance_type,
                "variance_type",
                "fixed_small, fixed_small_log or fixed_large (a network that predicts it is not supported)",
                value,
            ),
            "skip_prk_steps" => put(&mut self.skip_prk_steps, "skip_prk_steps", BOOL, value),
            "interpolation_type" => {
                put(&mut self.interpolation_type, "interpolation_type", "linear or log_linear", value)
            }
            "use_karras_sigmas" => put_switch(&mut self.use_karras_sigmas, "use_karras_sigmas", value),
            "use_exponential_sigmas" => put_switch(&mut self.use_exponential_sigmas, "use_exponential_sigmas", value),
            "sigma_min" => put(&mut self.sigma_min, "sigma_min", "a number", value),
            "sigma_max" => put(&mut self.sigma_max, "sigma_max", "a number", value),
            "sigma_data" => put(&mut self.sigma_data, "sigma_data", "a number", value),
            "sigma_schedule" => put(&mut self.sigma_schedule, "sigma_schedule", "karras or exponential", value),
            "rho" => put(&mut self.rho, "rho", "a number", value),
            "timestep_type" => put(&mut self.timestep_type, "timestep_type", "discrete or continuous", value),
            "final_sigmas_type" => put(&mut self.final_sigmas_type, "final_sigmas_type", "zero or sigma_min", value),
            "algorithm_type" => {
                // Source: diffusers `DPMSolverMultistepScheduler.__init__` reads DEIS as DPM-Solver++.
                let value = if value == "deis" { &Value::from("dpmsolver++") } else { value };
                put(&mut self.algorithm_type, "algorithm_type", "dpmsolver++ or sde-dpmsolver++", value)
            }
            "solver_order" => put(&mut self.solver_order, "solver_order", "1, 2 or 3", value),
            "solver_type" => put(&mut self.solver_type, "solver_type", SOLVER_TYPES, &native(kind, value)),
            "lower_order_final" => put(&mut self.lower_order_final, "lower_order_final", BOOL, value),
            "euler_at_final" => put(&mut self.euler_at_final, "euler_at_final", BOOL, value),
            "lambda_min_clipped" if *value == "-Infinity" => Ok(()),
            "lambda_min_clipped" => put(&mut self.lambda_min_clipped, "lambda_min_clipped", "a number", value),
            "disable_corrector" => put(&mut self.disable_corrector, "disable_corrector", "a list of steps", value),
            "original_inference_steps" => {
                put(&mut self.original_inference_steps, "original_inference_steps", "a whole number", value)
            }
            "timestep_scaling" => put(&mut self.timestep_scaling, "timestep_scaling", "a number", value),
            _ => Err(SchedulerError::Unknown { key: short(key), value: brief(value) }),
        }
    }
}

const BOOL: &str = "true or false";
const SOLVER_TYPES: &str = "midpoint or heun; bh1 or bh2 for unipc";

/// A solver type of another class stands for the default of this one.
///
/// Source: diffusers `DPMSolverMultistepScheduler.__init__`, `UniPCMultistepScheduler.__init__`.
fn native(kind: SchedulerKind, value: &Value) -> Value {
    let (foreign, own) = match kind {
        SchedulerKind::UniPc => (["midpoint", "heun", "logrho"], SolverType::Bh2),
        _ => (["bh1", "bh2", "logrho"], SolverType::Midpoint),
    };
    let own = if own == SolverType::Bh2 { "bh2" } else { "midpoint" };
    if foreign.iter().any(|f| value == f) { Value::from(own) } else { value.clone() }
}

/// Is a key that the class does not look at without effect in diffusers too?
fn passed_over(class: &Class, key: &str, value: &Value) -> bool {
    if key.starts_with("use_") || key == "thresholding" {
        return false;
    }
    let own_switch = key == "predict_x0" && class.kind == SchedulerKind::UniPc && *value != Value::Bool(true);
    !own_switch && (HARMLESS.contains(&key) || CLASSES.iter().any(|c| c.has(key)))
}

fn unknown_class(name: &Value) -> SchedulerError {
    let expected = "DDIM-, PNDM-, DDPM-, EulerDiscrete-, EulerAncestralDiscrete-, HeunDiscrete-, DPMSolverMultistep-, \
                    UniPCMultistep-, LCM-, TCD-, EDMEuler- or EDMDPMSolverMultistepScheduler";
    SchedulerError::Value { key: "_class_name", expected, found: brief(name) }
}

/// Reads `value` into `slot`.
fn put<T: DeserializeOwned>(
    slot: &mut T,
    key: &'static str,
    expected: &'static str,
    value: &Value,
) -> Result<(), SchedulerError> {
    *slot = T::deserialize(value).map_err(|_| SchedulerError::Value { key, expected, found: brief(value) })?;
    Ok(())
}

/// The same for a switch that `null` turns off.
fn put_switch(slot: &mut bool, key: &'static str, value: &Value) -> Result<(), SchedulerError> {
    *slot = false;
    if value.is_null() { Ok(()) } else { put(slot, key, BOOL, value) }
}

/// A JSON value as text short enough for a message.
fn brief(value: &Value) -> String {
    short(&value.to_string())
}

fn short(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(60).chain("…".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::AlgorithmType;
    use super::*;

    #[test]
    fn every_type_is_named_in_the_message_and_every_algorithm_is_told_apart() {
        let message = Scheduler::default().switched(&Value::from("flow")).unwrap_err().to_string();
        for name in SchedulerKind::types() {
            assert!(message.contains(name), "{name}");
            assert_eq!(name.contains("sde"), {
                let class = CLASSES.iter().find_map(|c| c.types.iter().find(|(n, _)| *n == name));
                class.unwrap().1 == AlgorithmType::Sde
            });
        }
    }
}
