//! Requests that make videos: new ones, other versions, continuations.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::{self, Extension, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::Value;
use vldm_runtime::cascade::plan::Plan;
use vldm_runtime::image::RgbImage;

use super::{blocking, shown, token};
use crate::access::Caller;
use crate::ask::{Ask, Asked};
use crate::fit::{Fitted, extend as longer, fit};
use crate::hub::{Hub, Wanted};
use crate::job::{Job, State as Standing, now};
use crate::keys;
use crate::models::Model;
use crate::problem::Problem;
use crate::worker::{IMAGE, place_image, plan_of, write_whole};

/// What a request leads to, beside the plan.
#[derive(Default)]
struct Origin {
    remixed: Option<String>,
    extends: Option<String>,
    /// A job whose first picture is taken over.
    image_of: Option<String>,
    prompt: Option<String>,
    /// The first picture, as a PNG file.
    image: Option<Vec<u8>>,
}

type Token = Option<(String, String)>;

/// What a request asks for, and by which a repetition of it is known. `what` tells apart requests with the same fields.
async fn read(request: Request, hub: &Hub, caller: &Caller, what: &str) -> Result<(Ask, Token), Problem> {
    let headers = request.headers().clone();
    let asked = Asked::read(request, &hub.limits).await?;
    let token = token(&headers, caller, &format!("{what} {}", asked.digest))?;
    Ok((asked.ask, token))
}

/// `POST /v1/videos`
pub(super) async fn create(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<impl IntoResponse, Problem> {
    let (ask, token) = read(request, &hub, &caller, "create").await?;
    blocking(move || {
        if ask.video.is_some() {
            return Err(Problem::value("video", "a new video continues none; POST /v1/videos/extensions does"));
        }
        let model = model_of(&hub, ask.model.as_deref())?.name.clone();
        let id = new_id()?;
        let Ask { image, prompt, .. } = ask.clone();
        let origin = Origin { prompt, image, ..Origin::default() };
        let limits = hub.limits.clone();
        let plan = move |model: &Model, at: Option<&Path>| fit(model, &ask, at, &limits);
        add(&hub, &caller, (id, model), origin, token, plan)
    })
    .await
}

/// `POST /v1/videos/{id}/remix`: the same plan, with what the request says changed.
pub(super) async fn remix(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    extract::Path(id): extract::Path<String>,
    request: Request,
) -> Result<impl IntoResponse, Problem> {
    let (ask, token) = read(request, &hub, &caller, &format!("remix {id}")).await?;
    blocking(move || {
        let earlier = hub.job(&caller.name, &id)?;
        let model = model_of(&hub, Some(&earlier.model))?.clone();
        if ask.model.as_ref().is_some_and(|name| *name != earlier.model) {
            return Err(Problem::value("model", "another version of a video is made by the same model"));
        }
        let Ask { image, prompt, .. } = ask.clone();
        let image_of = (earlier.image && image.is_none()).then(|| earlier.id.clone());
        let prompt = prompt.or_else(|| earlier.prompt.clone());
        let origin = Origin { remixed: Some(earlier.id.clone()), image_of, prompt, image, ..Origin::default() };
        let limits = hub.limits.clone();
        let base = Model { plan: earlier_plan(&model, &earlier)?, ..model };
        let plan = move |_: &Model, at: Option<&Path>| fit(&base, &ask, at, &limits);
        add(&hub, &caller, (new_id()?, earlier.model.clone()), origin, token, plan)
    })
    .await
}

/// `POST /v1/videos/extensions`: a video and more of prediction.
pub(super) async fn extend(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<impl IntoResponse, Problem> {
    let (ask, token) = read(request, &hub, &caller, "extend").await?;
    blocking(move || {
        let id = ask.video.clone().ok_or_else(|| Problem::value("video", "expected the id of a video"))?;
        let earlier = hub.job(&caller.name, &id)?;
        if earlier.state != Standing::Completed {
            let message = format!("the video `{id}` is not completed; only such a one can be continued");
            return Err(Problem::new(StatusCode::CONFLICT, "video_not_completed", message));
        }
        for (name, given) in [
            ("input_reference", ask.image.is_some()),
            ("size", ask.size.is_some()),
            ("seed", ask.seed.is_some()),
            ("steps", ask.steps.is_some()),
            ("guidance_scale", ask.guidance.is_some()),
            ("negative_prompt", ask.negative_prompt.is_some()),
            ("model", ask.model.as_ref().is_some_and(|name| *name != earlier.model)),
        ] {
            if given {
                return Err(Problem::value(name, "a continuation has it from the video that it continues"));
            }
        }
        let prompt = ask.prompt.clone().or_else(|| earlier.prompt.clone());
        let image_of = earlier.image.then(|| earlier.id.clone());
        let origin = Origin { extends: Some(earlier.id.clone()), image_of, prompt, ..Origin::default() };
        let model = model_of(&hub, Some(&earlier.model))?.clone();
        let before = earlier_plan(&model, &earlier)?;
        let limits = hub.limits.clone();
        let plan = move |model: &Model, at: Option<&Path>| {
            let mut before = before;
            if let Some(at) = at {
                place_image(&mut before, at);
            }
            longer(model, before, &ask, &limits)
        };
        add(&hub, &caller, (new_id()?, earlier.model.clone()), origin, token, plan)
    })
    .await
}

fn earlier_plan(model: &Model, earlier: &Job) -> Result<Plan, Problem> {
    let changed = |_| Problem::new(StatusCode::CONFLICT, "model_changed", "the model of that video has changed");
    plan_of(model, &earlier.plan, None).map_err(changed)
}

fn new_id() -> Result<String, Problem> {
    Ok(format!("video_{}", keys::hex(&keys::random::<16>().map_err(Problem::internal)?)))
}

fn model_of<'a>(hub: &'a Hub, name: Option<&str>) -> Result<&'a Model, Problem> {
    let found = match name {
        Some(name) => hub.models.get(name),
        None if hub.models.len() == 1 => hub.models.iter().next(),
        None => None,
    };
    found.ok_or_else(|| {
        let message = format!("expected one of the models of this server: {}", hub.models.names());
        let status = if name.is_some() { StatusCode::NOT_FOUND } else { StatusCode::UNPROCESSABLE_ENTITY };
        Problem { param: Some("model".to_owned()), ..Problem::new(status, "model_not_found", message) }
    })
}

/// Checks the plan and takes the job. Nothing of a request that is refused stays behind.
fn add(
    hub: &Hub,
    caller: &Caller,
    (id, model): (String, String),
    mut origin: Origin,
    token: Token,
    plan: impl FnOnce(&Model, Option<&Path>) -> Result<Fitted, Problem>,
) -> Result<Json<Value>, Problem> {
    if let Some((name, request)) = &token
        && let Some(known) = hub.known(name, request)?
    {
        return Ok(Json(shown(hub, &known)));
    }
    let folder = hub.folder(&id);
    let taken = (|| {
        let image = picture(hub, &folder, origin.image.take(), origin.image_of.as_deref())?;
        let served = model_of(hub, Some(&model))?;
        let fitted = plan(served, image.as_deref())?;
        if let Some(fits) = &hub.fits {
            let large = |why| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "video_too_large", why);
            fits.check(served, &fitted.plan).map_err(large)?;
        }
        let job = job(caller, (id.clone(), model), &fitted, image.is_some(), origin);
        hub.add(Wanted { job, token })
    })();
    // Of two requests with one idempotency key, the slower one is answered with the job of the other.
    if !taken.as_ref().is_ok_and(|job| job.id == id) {
        // What cannot be removed now goes when the next server starts.
        let _left = fs::remove_dir_all(&folder);
    }
    taken.map(|job| Json(shown(hub, &job)))
}

fn job(caller: &Caller, (id, model): (String, String), fitted: &Fitted, image: bool, origin: Origin) -> Job {
    Job {
        id,
        number: 0,
        owner: caller.name.clone(),
        priority: caller.priority,
        model,
        plan: fitted.plan.to_json(),
        image,
        prompt: origin.prompt,
        size: fitted.size,
        frames: fitted.frames,
        fps: fitted.fps,
        state: Standing::Queued,
        progress: 0,
        created_at: now(),
        started_at: None,
        completed_at: None,
        expires_at: None,
        error: None,
        remixed_from: origin.remixed,
        extends: origin.extends,
        trace: caller.trace.clone(),
    }
}

/// Puts the picture of a request, or of an earlier job, into the folder of a new one.
fn picture(
    hub: &Hub,
    folder: &Path,
    image: Option<Vec<u8>>,
    earlier: Option<&str>,
) -> Result<Option<PathBuf>, Problem> {
    let bytes = match (image, earlier) {
        (Some(bytes), _) => bytes,
        (None, Some(id)) => fs::read(hub.folder(id).join(IMAGE)).map_err(Problem::internal)?,
        (None, None) => return Ok(None),
    };
    fs::create_dir_all(folder).map_err(Problem::internal)?;
    let path = folder.join(IMAGE);
    write_whole(&path, &bytes).map_err(Problem::internal)?;
    let bad = |_| Problem::value("input_reference", "expected a PNG picture of at most 33554432 pixels");
    RgbImage::open(&path).map_err(bad)?;
    Ok(Some(path))
}
