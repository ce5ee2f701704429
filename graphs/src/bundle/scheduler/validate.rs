//! The ranges of a scheduler's keys.

use super::{
    AlgorithmType, FinalSigmas, PredictionType, Scheduler, SchedulerError, SchedulerKind, Solver, SolverType,
    TimestepSpacing, TimestepType,
};

/// Largest σ that a schedule may start from; f32 holds its square.
const MAX_SIGMA: f64 = 1e6;

fn check(ok: bool, key: &'static str, expected: &'static str, found: &dyn ToString) -> Result<(), SchedulerError> {
    if ok { Ok(()) } else { Err(SchedulerError::Value { key, expected, found: found.to_string() }) }
}

/// A word as it is written in the configuration.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl Scheduler {
    /// Checks every range.
    ///
    /// # Errors
    /// [`SchedulerError::Value`] naming the first key out of range.
    pub fn validate(&self) -> Result<(), SchedulerError> {
        let n = self.num_train_timesteps;
        check((1..=100_000).contains(&n), "num_train_timesteps", "1..=100000", &n)?;
        check(self.beta_start > 0.0 && self.beta_start < 1.0, "beta_start", "a number in 0..1", &self.beta_start)?;
        let ordered = self.beta_end >= self.beta_start && self.beta_end < 1.0;
        check(ordered, "beta_end", "a number in beta_start..1", &self.beta_end)?;
        if let Some(betas) = &self.trained_betas {
            check(betas.len() == n, "trained_betas", "one for each of num_train_timesteps", &betas.len())?;
            let odd = betas.iter().find(|b| !(**b > 0.0 && **b < 1.0));
            check(odd.is_none(), "trained_betas", "numbers in 0..1", &odd.unwrap_or(&0.0))?;
        }
        check(self.steps_offset < n, "steps_offset", "less than num_train_timesteps", &self.steps_offset)?;
        let range = self.clip_sample_range;
        check(range.is_finite() && range > 0.0, "clip_sample_range", "a positive number", &range)?;
        if let Some(scale) = self.clean_scale {
            let fits = self.kind == SchedulerKind::Ddim && self.prediction_type == PredictionType::Epsilon;
            check(fits, "clean_scale", "ddim and a network that predicts noise", &word(&self.kind))?;
            check(scale.last > 0.0 && scale.last <= 1.0, "clean_scale", "`last` in 0..=1, without 0", &scale.last)?;
            check((2..=n).contains(&scale.steps), "clean_scale", "2..=num_train_timesteps `steps`", &scale.steps)?;
        }
        self.solver.validate(n)?;
        self.validate_prediction()?;
        self.validate_solver()
    }

    /// What the network predicts must fit what the class can read.
    fn validate_prediction(&self) -> Result<(), SchedulerError> {
        use SchedulerKind::{Ddim, Ddpm, EdmDpmSolver, EdmEuler, EulerAncestral, Lcm, Pndm, Tcd};
        // Source: the `step` of these classes raises for `sample`.
        let no_sample = matches!(self.kind, Pndm | EulerAncestral | EdmEuler | EdmDpmSolver);
        let found = word(&self.prediction_type);
        let fits = !no_sample || self.prediction_type != PredictionType::Sample;
        check(fits, "prediction_type", "epsilon or v_prediction for this scheduler", &found)?;
        // The first step would divide by √ᾱ = 0.
        let from_pure_noise = self.rescale_betas_zero_snr
            && match self.kind {
                Ddim | Ddpm => self.timestep_spacing != TimestepSpacing::Leading,
                Lcm | Tcd => true,
                _ => false,
            };
        let fits = !from_pure_noise || self.prediction_type != PredictionType::Epsilon;
        check(fits, "prediction_type", "v_prediction or sample where the first step sees pure noise", &found)
    }

    fn validate_solver(&self) -> Result<(), SchedulerError> {
        use SchedulerKind::{EdmDpmSolver, EdmEuler, Lcm, Tcd, UniPc};
        let s = &self.solver;
        let two = s.use_karras_sigmas && s.use_exponential_sigmas;
        check(!two, "use_exponential_sigmas", "false beside use_karras_sigmas", &true)?;
        if matches!(self.kind, EdmEuler | EdmDpmSolver) {
            check(s.sigma_min.is_some(), "sigma_min", "a number", &"null")?;
            check(s.sigma_max.is_some(), "sigma_max", "a number", &"null")?;
        }
        let continuous = s.timestep_type == TimestepType::Continuous;
        let fits = !continuous || self.kind == SchedulerKind::Euler;
        check(fits, "timestep_type", "discrete for this scheduler", &"continuous")?;
        if matches!(self.kind, Lcm | Tcd) {
            let steps = s.original_inference_steps;
            let fits = (1..=self.num_train_timesteps).contains(&steps);
            check(fits, "original_inference_steps", "1 to num_train_timesteps", &steps)?;
        }
        let unipc = matches!(s.solver_type, SolverType::Bh1 | SolverType::Bh2);
        check(
            unipc == (self.kind == UniPc),
            "solver_type",
            "bh1 or bh2 for unipc, else midpoint or heun",
            &word(&s.solver_type),
        )?;
        // diffusers has no formula for it.
        let third = self.kind == EdmDpmSolver && s.algorithm_type == AlgorithmType::Sde && s.solver_order > 2;
        check(!third, "solver_order", "1 or 2 for edm-sde-dpmsolver++", &s.solver_order)?;
        // A step of higher order to σ = 0 spans an infinite range of ln(α/σ).
        let infinite = self.kind == UniPc && !s.lower_order_final && s.solver_order > 1;
        let infinite = infinite && (s.final_sigmas_type == FinalSigmas::Zero || s.use_karras_sigmas);
        check(!infinite, "lower_order_final", "true unless the last step ends at another noise level", &false)
    }
}

impl Solver {
    fn validate(&self, train: usize) -> Result<(), SchedulerError> {
        let eta = self.eta.unwrap_or(0.0);
        check((0.0..=1.0).contains(&eta), "eta", "a number in 0..=1", &eta)?;
        let (min, max) = (self.sigma_min, self.sigma_max);
        let low = min.unwrap_or(1e-3);
        check(low > 0.0 && low <= MAX_SIGMA, "sigma_min", "a positive number up to 1e6", &low)?;
        let high = max.unwrap_or(MAX_SIGMA);
        check(high > 0.0 && high <= MAX_SIGMA, "sigma_max", "a positive number up to 1e6", &high)?;
        check(high >= low, "sigma_max", "at least sigma_min", &high)?;
        let data = self.sigma_data;
        check(data > 0.0 && data <= MAX_SIGMA, "sigma_data", "a positive number up to 1e6", &data)?;
        check(self.rho >= 1.0 && self.rho <= 100.0, "rho", "a number in 1..=100", &self.rho)?;
        check((1..=3).contains(&self.solver_order), "solver_order", "1, 2 or 3", &self.solver_order)?;
        let lambda = self.lambda_min_clipped.unwrap_or(0.0);
        check(lambda.abs() <= 100.0, "lambda_min_clipped", "a number in -100..=100", &lambda)?;
        let scaling = self.timestep_scaling;
        check(scaling > 0.0 && scaling <= 1e6, "timestep_scaling", "a positive number up to 1e6", &scaling)?;
        let odd = self.disable_corrector.iter().find(|&&step| step >= train);
        check(odd.is_none(), "disable_corrector", "steps below num_train_timesteps", odd.unwrap_or(&0))?;
        let many = self.disable_corrector.len();
        check(many <= train, "disable_corrector", "every step once", &many)
    }
}
