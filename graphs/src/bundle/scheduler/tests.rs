//! What is read from `scheduler_config.json` and from plans, and what is refused.

use serde_json::{Map, Value, json};

use super::*;

fn message(document: &Value) -> String {
    Scheduler::from_diffusers(document).unwrap_err().to_string()
}

fn map(value: &Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
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
    assert_eq!((s.kind, s.solver.skip_prk_steps), (SchedulerKind::Pndm, true));
}

#[test]
fn a_key_that_changes_the_result_is_refused_by_name() {
    assert_eq!(
        message(&json!({"thresholding": true})),
        "scheduler key `thresholding` = true is not supported and would change the result"
    );
    assert!(message(&json!({"use_karras_sigmas": true})).contains("`use_karras_sigmas`"));
    let dpm = |key: &str, value: Value| message(&json!({"_class_name": "DPMSolverMultistepScheduler", key: value}));
    for key in ["use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "thresholding", "use_dynamic_shifting"] {
        assert!(dpm(key, json!(true)).contains(key));
    }
    assert!(message(&json!({"_class_name": "DDPMScheduler", "variance_type": "learned"})).contains("fixed_small"));
    assert!(message(&json!({"unheard_of": 3})).contains("`unheard_of` = 3"));
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
        json!({"trained_betas": [0.1]}),
        json!({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}),
        json!({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}),
        json!({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}),
        json!({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true, "use_exponential_sigmas": true}),
        json!({"_class_name": "EulerDiscreteScheduler", "sigma_max": 1e300}),
        json!({"_class_name": "EDMEulerScheduler", "sigma_max": 0.001}),
        json!({"_class_name": "EDMEulerScheduler", "sigma_min": null}),
        json!({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}),
        json!({"_class_name": "LCMScheduler", "original_inference_steps": 0}),
        json!({"_class_name": "UniPCMultistepScheduler", "lower_order_final": false}),
        json!({"timestep_spacing": "trailing", "rescale_betas_zero_snr": true}),
    ] {
        assert!(message(&bad).contains("expected"), "{bad}");
    }
    assert_eq!(message(&json!([1])), "scheduler configuration: expected a JSON object, found [1]");
}

#[test]
fn bundles_written_before_there_were_several_schedulers_stay_as_they_are() {
    let text = json!({"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
        "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": true,
        "clip_sample": true, "clip_sample_range": 1.0, "rescale_betas_zero_snr": false});
    assert_eq!(serde_json::to_value(Scheduler::default()).unwrap(), text);
    assert_eq!(serde_json::from_value::<Scheduler>(text).unwrap(), Scheduler::default());
}

#[test]
fn every_class_survives_the_manifest() {
    for class in super::class::CLASSES {
        let s = class.defaults();
        s.validate().unwrap();
        let text = serde_json::to_string(&s).unwrap();
        assert_eq!(serde_json::from_str::<Scheduler>(&text).unwrap(), s);
        assert_eq!(Scheduler::from_diffusers(&json!({"_class_name": class.name})).unwrap(), s);
    }
}

#[test]
fn a_plan_switches_the_solver_and_keeps_the_noise_schedule() {
    let file = json!({"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "prediction_type": "v_prediction", "steps_offset": 1, "skip_prk_steps": true});
    let s = Scheduler::from_diffusers(&file).unwrap();
    let plan = json!({"type": "sde-dpmsolver++", "use_karras_sigmas": true, "solver_order": 3});
    let new = s.with_overrides(&map(&plan)).unwrap();
    assert_eq!((new.kind, new.solver.algorithm_type), (SchedulerKind::DpmSolver, AlgorithmType::Sde));
    assert_eq!((new.beta_start, new.beta_end, new.beta_schedule), (0.00085, 0.012, BetaSchedule::ScaledLinear));
    assert_eq!((new.prediction_type, new.steps_offset), (PredictionType::VPrediction, 0));
    assert_eq!((new.solver.use_karras_sigmas, new.solver.solver_order), (true, 3));
    // The data are latents, whatever the solver.
    assert!(!s.with_overrides(&map(&json!({"type": "ddim"}))).unwrap().clip_sample);
    assert_eq!(s.with_overrides(&Map::new()).unwrap(), s);
}

#[test]
fn a_plan_cannot_ask_a_scheduler_for_what_it_does_not_have() {
    let refuse = |s: &Scheduler, plan: Value| s.with_overrides(&map(&plan)).unwrap_err().to_string();
    let ddim = Scheduler::default();
    let e = refuse(&ddim, json!({"use_karras_sigmas": true}));
    assert!(
        e.starts_with("scheduler key `use_karras_sigmas`: ddim has no such key; it has num_train_timesteps"),
        "{e}"
    );
    assert!(refuse(&ddim, json!({"type": "plms"})).contains("unipc"));
    assert!(refuse(&ddim, json!({"type": 3})).contains("found 3"));
    assert!(refuse(&ddim, json!({"eta": 2})).contains("0..=1"));
    assert!(refuse(&ddim, json!({"type": "edm-euler"})).contains("over training timesteps"));
    assert!(refuse(&ddim, json!({"type": "dpmsolver++", "solver_type": "bh9"})).contains("midpoint"));
}

#[test]
fn svd_is_an_edm_network_with_unit_data() {
    // Source: scheduler/scheduler_config.json of Stable Video Diffusion.
    let file = json!({"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": false, "final_sigmas_type": "zero", "interpolation_type": "linear",
        "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": false,
        "sigma_max": 700.0, "sigma_min": 0.002, "skip_prk_steps": true, "steps_offset": 1,
        "timestep_spacing": "leading", "timestep_type": "continuous", "trained_betas": null,
        "use_karras_sigmas": true});
    let s = Scheduler::from_diffusers(&file).unwrap();
    assert!(s.is_continuous() && s.kind == SchedulerKind::Euler);
    let edm = s.with_overrides(&map(&json!({"type": "edm-dpmsolver++"}))).unwrap();
    assert_eq!((edm.solver.sigma_min, edm.solver.sigma_max), (Some(0.002), Some(700.0)));
    assert!((edm.solver.sigma_data - 1.0).abs() < 1e-12);
    let e = s.with_overrides(&map(&json!({"type": "ddim"}))).unwrap_err().to_string();
    assert!(e.contains("told ln σ/4"), "{e}");
    assert!(edm.with_overrides(&map(&json!({"type": "heun"}))).is_err());
}

#[test]
fn files_that_diffusers_writes_for_every_class_are_read_whole() {
    // Source: `DPMSolverMultistepScheduler().save_config(...)`, `UniPCMultistepScheduler().save_config(...)` of diffusers
    // 0.42.1, with keys of a class they were made from.
    let text = br#"{"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
        "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
        "clip_sample": false, "dynamic_thresholding_ratio": 0.995, "euler_at_final": false, "final_sigmas_type": "zero",
        "flow_shift": 1.0, "lambda_min_clipped": -Infinity, "lower_order_final": true, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "rescale_betas_zero_snr": false, "sample_max_value": 1.0, "skip_prk_steps": true,
        "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0, "thresholding": false,
        "time_shift_type": "exponential", "timestep_spacing": "linspace", "trained_betas": null,
        "use_beta_sigmas": false, "use_dynamic_shifting": false, "use_exponential_sigmas": false,
        "use_flow_sigmas": false, "use_karras_sigmas": false, "use_lu_lambdas": false, "variance_type": null}"#;
    let s = Scheduler::from_diffusers(&crate::bundle::parse_python(text).unwrap()).unwrap();
    assert_eq!(s, SchedulerKind::DpmSolver.class().defaults());
    let file = json!({"_class_name": "UniPCMultistepScheduler", "disable_corrector": [], "predict_x0": true,
        "shift_terminal": null, "sigma_max": null, "sigma_min": null, "solver_p": null, "solver_type": "bh2",
        "time_shift_type": "exponential", "flow_shift": 1.0});
    assert_eq!(Scheduler::from_diffusers(&file).unwrap(), SchedulerKind::UniPc.class().defaults());
    assert!(message(&json!({"_class_name": "UniPCMultistepScheduler", "predict_x0": false})).contains("predict_x0"));
}
