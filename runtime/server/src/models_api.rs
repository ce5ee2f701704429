//! `GET /v1/models`: what can be asked for, in OpenAI's shape, and under `vldm` what each plan makes and takes.
//!
//! Source: OpenAI API reference, "List models": `{"object": "list", "data": [{"id", "object", "created", "owned_by"}]}`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::{Chunk, Plan, Start};

use crate::models::{Model, Models};

/// `/v1/models` and `/v1/models/{name}`.
pub fn router(models: &Models) -> Router {
    let described: BTreeMap<String, Value> = models.iter().map(|m| (m.name.clone(), describe(m))).collect();
    Router::new().route("/v1/models", get(list)).route("/v1/models/{name}", get(one)).with_state(Arc::new(described))
}

type Described = State<Arc<BTreeMap<String, Value>>>;

async fn list(State(models): Described) -> Json<Value> {
    Json(json!({"object": "list", "data": models.values().collect::<Vec<_>>()}))
}

async fn one(State(models): Described, Path(name): Path<String>) -> Response {
    if let Some(model) = models.get(&name) {
        return Json(model).into_response();
    }
    let known = models.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let message = format!("no model is called {name:?}; there is {known}");
    let error =
        json!({"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"});
    (StatusCode::NOT_FOUND, Json(json!({"error": error}))).into_response()
}

fn describe(model: &Model) -> Value {
    json!({"id": model.name, "object": "model", "created": 0, "owned_by": "vldm", "vldm": facts(model)})
}

/// What the plan makes as it is, and which fields of a request mean something to it.
fn facts(model: &Model) -> Value {
    let Model { plan, manifest, .. } = model;
    let cascade = &manifest.cascade;
    let makes = |plan: &Plan| Layout::new(plan, manifest);
    let scenario = plan.predict.is_some();
    let takes = json!({
        "prompt": cascade.text.is_some(),
        "labels": cascade.labels,
        "scenario": scenario,
        "first_frame": plan.source.is_none() && makes(&from_picture(plan)).is_ok(),
        "image": cascade.picture.is_some(),
        "video": plan.source.is_some(),
        "extend": scenario && makes(&longer(plan)).is_ok(),
        "seconds": scenario,
    });
    let prompt = plan.conditions.prompt.as_ref().map(|prompt| prompt.texts().into_values().next().unwrap_or_default());
    let mut facts = json!({
        "takes": takes,
        "seed": plan.seed,
        "steps": plan.keyframes.steps,
        "prompt": prompt,
        "labels": plan.conditions.labels,
        "scenario": plan.predict.as_ref().map(|predict| &predict.chunks),
    });
    match makes(plan) {
        Ok(layout) => {
            let [height, width] = layout.size;
            facts["size"] = format!("{width}x{height}").into();
            facts["frames"] = layout.frames.into();
            facts["fps"] = layout.fps.into();
            facts["seconds"] = ((layout.frames as f64 / layout.fps * 100.0).round() / 100.0).into();
            facts["stages"] =
                layout.stages.iter().map(|stage| json!({"name": stage.kind.name(), "units": stage.units})).collect();
        }
        Err(error) => facts["error"] = error.to_string().into(),
    }
    facts
}

/// The plan, starting from a picture.
fn from_picture(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.keyframes.start = Start::File(PathBuf::from("first.png"));
    plan
}

/// The plan with one more chunk.
fn longer(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.predict.get_or_insert_default().chunks.push(Chunk::default());
    plan
}
