//! The scheduler classes of diffusers: their names, their keys and their own defaults.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use super::{AlgorithmType, BetaSchedule, Scheduler, Solver, SolverType, TimestepSpacing};

/// A scheduler class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulerKind {
    /// diffusers `DDIMScheduler`.
    #[default]
    Ddim,
    /// diffusers `PNDMScheduler`.
    Pndm,
    /// diffusers `DDPMScheduler`.
    Ddpm,
    /// diffusers `EulerDiscreteScheduler`.
    Euler,
    /// diffusers `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// diffusers `HeunDiscreteScheduler`.
    Heun,
    /// diffusers `DPMSolverMultistepScheduler`.
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// diffusers `UniPCMultistepScheduler`.
    #[serde(rename = "unipc")]
    UniPc,
    /// diffusers `LCMScheduler`.
    Lcm,
    /// diffusers `TCDScheduler`.
    Tcd,
    /// diffusers `EDMEulerScheduler`.
    EdmEuler,
    /// diffusers `EDMDPMSolverMultistepScheduler`.
    #[serde(rename = "edm-dpmsolver")]
    EdmDpmSolver,
}

/// What a class is called, and what it knows.
pub(super) struct Class {
    /// The class.
    pub kind: SchedulerKind,
    /// `_class_name` in `scheduler_config.json`.
    pub name: &'static str,
    /// `type` in plans, with the algorithm it stands for where the class has several.
    pub types: &'static [(&'static str, AlgorithmType)],
    /// Every key that changes its numbers.
    keys: &'static [&'static [&'static str]],
}

const ODE: AlgorithmType = AlgorithmType::Ode;
const SDE: AlgorithmType = AlgorithmType::Sde;

/// Keys of every class over betas.
const BETAS: &[&str] =
    &["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"];
const SPACING: &[&str] = &["timestep_spacing", "steps_offset"];
const CLIP: &[&str] = &["clip_sample", "clip_sample_range"];
const ZERO_SNR: &[&str] = &["rescale_betas_zero_snr"];
const EDM: &[&str] = &[
    "num_train_timesteps",
    "prediction_type",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "sigma_schedule",
    "rho",
    "final_sigmas_type",
];
const DPM: &[&str] = &["solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"];
const SPACED_SIGMAS: &[&str] = &["use_karras_sigmas", "use_exponential_sigmas"];
const CONSISTENCY: &[&str] = &["set_alpha_to_one", "original_inference_steps", "timestep_scaling"];

/// Every class, the default first.
///
/// Source: the `__init__` of each class in diffusers 0.42.1; `eta` is an argument of its `step`.
pub(super) const CLASSES: &[Class] = &[
    Class {
        kind: SchedulerKind::Ddim,
        name: "DDIMScheduler",
        types: &[("ddim", ODE)],
        keys: &[BETAS, SPACING, CLIP, ZERO_SNR, &["set_alpha_to_one", "eta", "clean_scale"]],
    },
    Class {
        kind: SchedulerKind::Pndm,
        name: "PNDMScheduler",
        types: &[("pndm", ODE)],
        keys: &[BETAS, SPACING, &["set_alpha_to_one", "skip_prk_steps"]],
    },
    Class {
        kind: SchedulerKind::Ddpm,
        name: "DDPMScheduler",
        types: &[("ddpm", ODE)],
        keys: &[BETAS, SPACING, CLIP, ZERO_SNR, &["variance_type"]],
    },
    Class {
        kind: SchedulerKind::Euler,
        name: "EulerDiscreteScheduler",
        types: &[("euler", ODE)],
        keys: &[
            BETAS,
            SPACING,
            ZERO_SNR,
            SPACED_SIGMAS,
            &["interpolation_type", "sigma_min", "sigma_max", "timestep_type", "final_sigmas_type"],
        ],
    },
    Class {
        kind: SchedulerKind::EulerAncestral,
        name: "EulerAncestralDiscreteScheduler",
        types: &[("euler-ancestral", ODE)],
        keys: &[BETAS, SPACING, ZERO_SNR],
    },
    Class {
        kind: SchedulerKind::Heun,
        name: "HeunDiscreteScheduler",
        types: &[("heun", ODE)],
        keys: &[BETAS, SPACING, CLIP, SPACED_SIGMAS],
    },
    Class {
        kind: SchedulerKind::DpmSolver,
        name: "DPMSolverMultistepScheduler",
        types: &[("dpmsolver++", ODE), ("sde-dpmsolver++", SDE)],
        keys: &[BETAS, SPACING, ZERO_SNR, SPACED_SIGMAS, DPM, &["final_sigmas_type", "lambda_min_clipped"]],
    },
    Class {
        kind: SchedulerKind::UniPc,
        name: "UniPCMultistepScheduler",
        types: &[("unipc", ODE)],
        keys: &[
            BETAS,
            SPACING,
            ZERO_SNR,
            SPACED_SIGMAS,
            &["solver_order", "solver_type", "lower_order_final", "disable_corrector", "final_sigmas_type"],
            &["sigma_min", "sigma_max"],
        ],
    },
    Class {
        kind: SchedulerKind::Lcm,
        name: "LCMScheduler",
        types: &[("lcm", ODE)],
        keys: &[BETAS, CLIP, ZERO_SNR, CONSISTENCY],
    },
    Class {
        kind: SchedulerKind::Tcd,
        name: "TCDScheduler",
        types: &[("tcd", ODE)],
        keys: &[BETAS, ZERO_SNR, CONSISTENCY, &["eta"]],
    },
    Class { kind: SchedulerKind::EdmEuler, name: "EDMEulerScheduler", types: &[("edm-euler", ODE)], keys: &[EDM] },
    Class {
        kind: SchedulerKind::EdmDpmSolver,
        name: "EDMDPMSolverMultistepScheduler",
        types: &[("edm-dpmsolver++", ODE), ("edm-sde-dpmsolver++", SDE)],
        keys: &[EDM, DPM],
    },
];

impl Class {
    /// Does the class look at `key`?
    pub fn has(&self, key: &str) -> bool {
        self.keys().any(|k| k == key)
    }

    /// Its keys.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().flat_map(|keys| keys.iter().copied())
    }

    /// The class without any key given.
    pub fn defaults(&self) -> Scheduler {
        use SchedulerKind::{Ddim, Ddpm, EdmDpmSolver, EdmEuler, Heun, Lcm, Pndm, Tcd, UniPc};
        let kind = self.kind;
        let mut s = Scheduler { kind, clip_sample: matches!(kind, Ddim | Ddpm), ..Scheduler::default() };
        if !matches!(kind, Ddim | Pndm | Ddpm | Lcm | Tcd) {
            s.timestep_spacing = TimestepSpacing::Linspace;
        }
        if matches!(kind, Heun | Lcm | Tcd) {
            (s.beta_start, s.beta_end) = (0.00085, 0.012);
        }
        if matches!(kind, Lcm | Tcd) {
            s.beta_schedule = BetaSchedule::ScaledLinear;
        }
        s.set_alpha_to_one = kind != Pndm;
        if kind == UniPc {
            s.solver = Solver { solver_type: SolverType::Bh2, ..s.solver };
        }
        if matches!(kind, EdmEuler | EdmDpmSolver) {
            s.solver = Solver { sigma_min: Some(0.002), sigma_max: Some(80.0), ..s.solver };
        }
        s
    }
}

impl SchedulerKind {
    pub(super) fn class(self) -> &'static Class {
        CLASSES.iter().find(|class| class.kind == self).unwrap_or(&CLASSES[0])
    }

    /// The name in plans and messages.
    pub fn name(self) -> &'static str {
        self.class().types[0].0
    }

    /// Every name that plans may call a scheduler by.
    pub fn types() -> impl Iterator<Item = &'static str> {
        CLASSES.iter().flat_map(|class| class.types.iter().map(|(name, _)| *name))
    }
}

impl Display for SchedulerKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
