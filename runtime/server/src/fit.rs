//! From what a request asks for to a plan. What the plan cannot take is refused, never left out.

use std::path::Path;

use axum::http::StatusCode;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::{Chunk, Plan, PlanError, Weight};

use crate::ask::{Ask, Scene};
use crate::config::Limits;
use crate::job::seconds;
use crate::models::Model;
use crate::problem::Problem;
use crate::worker::{place_image, plan_of};

/// Most denoising steps that a request may ask for.
const MAX_STEPS: u64 = 1000;

/// A plan that can be run, and what comes out.
pub struct Fitted {
    /// The plan.
    pub plan: Plan,
    /// Width and height of the video.
    pub size: [usize; 2],
    /// Its frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
}

/// The plan of `model` as `ask` changes it. `image` is where the picture of the request lies.
///
/// # Errors
/// 422 with the field at fault; 413 when the video is larger than allowed.
pub fn fit(model: &Model, ask: &Ask, image: Option<&Path>, limits: &Limits) -> Result<Fitted, Problem> {
    let mut plan = model.plan.clone();
    plan.file.clone_from(&model.name);
    change(&mut plan, ask)?;
    if let Some(image) = image {
        place_image(&mut plan, image);
    }
    if let Some(scenes) = &ask.scenario {
        let predict = plan.predict.as_mut().ok_or_else(|| cannot("scenario", "has no prediction"))?;
        predict.chunks = chunks(scenes, limits)?;
    }
    if let Some(size) = ask.size {
        resize(model, &mut plan, size)?;
    }
    if let Some(length) = ask.seconds {
        stretch(model, &mut plan, length, limits)?;
    }
    finish(model, &plan, limits)
}

/// `plan`, a finished video's, with `ask` more of prediction: so many seconds, or the chunks of a scenario.
///
/// # Errors
/// As [`fit`].
pub fn extend(model: &Model, plan: Plan, ask: &Ask, limits: &Limits) -> Result<Fitted, Problem> {
    let mut plan = plan;
    let before = laid_out(model, &plan)?;
    let predict = plan.predict.as_mut().ok_or_else(|| cannot("video", "has no prediction"))?;
    match (&ask.scenario, ask.seconds) {
        (Some(scenes), _) => predict.chunks.extend(chunks(scenes, limits)?),
        (None, more) => {
            let length = before.frames as f64 / before.fps + more.unwrap_or(0.0);
            if more.is_none() || more == Some(0.0) {
                predict.chunks.push(prompted(ask));
            } else {
                let first = predict.chunks.len();
                stretch(model, &mut plan, length, limits)?;
                let chunks = plan.predict.as_mut().map(|p| &mut p.chunks);
                if let Some(chunk) = chunks.and_then(|chunks| chunks.get_mut(first)) {
                    *chunk = prompted(ask);
                }
            }
        }
    }
    finish(model, &plan, limits)
}

/// The first further chunk says the prompt of the request.
fn prompted(ask: &Ask) -> Chunk {
    Chunk { prompt: ask.prompt.clone(), labels: ask.labels.clone().unwrap_or_default(), temporal_prompt: None }
}

fn cannot(param: &str, why: &str) -> Problem {
    Problem::value(param, format!("this model {why}; it cannot take `{param}`"))
}

fn change(plan: &mut Plan, ask: &Ask) -> Result<(), Problem> {
    if let Some(prompt) = &ask.prompt {
        plan.conditions.prompt = Some(prompt.clone().into());
    }
    if let Some(prompt) = &ask.negative_prompt {
        plan.conditions.negative_prompt = Some(prompt.clone().into());
    }
    if let Some(seed) = ask.seed {
        plan.seed = seed;
    }
    plan.conditions.labels.extend(ask.labels.clone().unwrap_or_default());
    if let Some(steps) = ask.steps {
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(Problem::value("steps", format!("expected 1 to {MAX_STEPS}")));
        }
        plan.keyframes.steps = steps as usize;
        plan.predict.iter_mut().for_each(|p| p.steps = steps as usize);
    }
    if let Some(weight) = ask.guidance {
        plan.keyframes.guidance = Weight::all(weight);
        plan.predict.iter_mut().for_each(|p| p.guidance = weight);
    }
    Ok(())
}

fn chunks(scenes: &[Scene], limits: &Limits) -> Result<Vec<Chunk>, Problem> {
    if scenes.len() > limits.frames {
        return Err(large(format!("expected at most {} chunks", limits.frames)));
    }
    let chunk = |s: &Scene| Chunk { labels: s.labels.clone(), prompt: s.prompt.clone(), temporal_prompt: None };
    Ok(scenes.iter().map(chunk).collect())
}

fn large(message: String) -> Problem {
    Problem {
        param: Some("seconds".to_owned()),
        ..Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "video_too_large", message)
    }
}

fn resize(model: &Model, plan: &mut Plan, [width, height]: [usize; 2]) -> Result<(), Problem> {
    if laid_out(model, plan)?.size == [height, width] {
        return Ok(());
    }
    // Upsampling makes a video four times as high and wide as what is decoded.
    let factor = if plan.upsample.is_some() { 4 } else { 1 };
    plan.size = Some([height / factor, width / factor]);
    let [h, w] = laid_out(model, plan)?.size;
    if [h, w] == [height, width] {
        return Ok(());
    }
    Err(Problem::value("size", format!("this model makes {w}x{h} of it; expected such a size")))
}

/// Gives the plan the fewest chunks with which the video is at least `length` seconds long.
fn stretch(model: &Model, plan: &mut Plan, length: f64, limits: &Limits) -> Result<(), Problem> {
    let with = |n: usize| {
        let mut plan = plan.clone();
        if let Some(predict) = &mut plan.predict {
            predict.chunks.resize_with(n, Chunk::default);
        }
        laid_out(model, &plan)
    };
    // A plan with prediction has one chunk at least.
    let shortest = with(1)?;
    if length * shortest.fps > limits.frames as f64 {
        let longest = seconds(limits.frames, shortest.fps);
        return Err(large(format!("expected at most {longest} seconds")));
    }
    let wanted = (length * shortest.fps).ceil() as usize;
    // A client that asks for whole seconds gets the frame that ends them.
    if shortest.frames >= wanted + shortest.fps.ceil() as usize {
        let least = seconds(shortest.frames, shortest.fps);
        return Err(Problem::value("seconds", format!("this model's videos have at least {least} seconds")));
    }
    let each = with(2)?.frames.saturating_sub(shortest.frames).max(1);
    let missing = wanted.saturating_sub(shortest.frames);
    match &mut plan.predict {
        Some(predict) => predict.chunks.resize_with(1 + missing.div_ceil(each), Chunk::default),
        None if missing == 0 => {}
        None => {
            let longest = seconds(shortest.frames, shortest.fps);
            return Err(Problem::value("seconds", format!("this model's videos have {longest} seconds")));
        }
    }
    Ok(())
}

fn laid_out(model: &Model, plan: &Plan) -> Result<Layout, Problem> {
    Layout::new(plan, &model.manifest).map_err(|e| refused(&e))
}

/// What is wrong with a plan, in the words of a request.
fn refused(error: &PlanError) -> Problem {
    let PlanError::Value { key, expected, found, .. } = error else {
        return Problem::value("model", "the plan of this request is not one that can be run");
    };
    let last = key.rsplit('.').next().unwrap_or(key);
    let param = match last {
        _ if key.contains("chunks") => "scenario",
        _ if key.contains("labels") => "labels",
        "image" | "start" => "input_reference",
        "guidance" => "guidance_scale",
        other => other,
    };
    // A file's place on this machine is nobody's business.
    let found = if param == "input_reference" { "the picture of the request" } else { found };
    Problem::value(param, format!("{key}: expected {expected}, found {found}"))
}

fn finish(model: &Model, plan: &Plan, limits: &Limits) -> Result<Fitted, Problem> {
    // Ranges are those of a plan file.
    let written = plan_of(model, &plan.to_json(), None).map_err(|e| refused(&e))?;
    let layout = laid_out(model, &written)?;
    let spec = layout.video(&written);
    let pixels = spec.width.saturating_mul(spec.height).saturating_mul(spec.frames);
    if spec.frames > limits.frames || pixels > limits.pixels {
        let message = format!(
            "the video would have {} frames of {}x{}; expected at most {} frames and {} pixels in all",
            spec.frames, spec.width, spec.height, limits.frames, limits.pixels
        );
        return Err(large(message));
    }
    Ok(Fitted { plan: written, size: [spec.width, spec.height], frames: spec.frames, fps: spec.fps })
}
