//! Webhooks: operators name endpoints, which are told how each video ended, signed as Standard Webhooks has it.
//!
//! An event is written in the transaction that ends its job, and goes when its endpoint has taken it, or has refused it for
//! days. It may arrive twice, always with the same id. No request can name an address.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use ureq::Agent;
use ureq::http::{StatusCode, Uri};

use crate::job::{Job, State, now};
use crate::keys;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

/// Seconds between two attempts. Source: Standard Webhooks 1.0.0, "Deliverability and reliability", example schedule.
const PAUSES: [u64; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// Time for one attempt. Source: Standard Webhooks 1.0.0, "Request timeouts": 15 to 30 seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most seconds that an endpoint can ask to be left alone.
const LONGEST: u64 = 86_400;
/// Bytes of a secret. Source: Standard Webhooks 1.0.0, "Signature scheme": 192 to 512 bits.
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// It is no address.
    #[error("webhook `{0}`: expected an address such as https://example.com/events, without user and password")]
    Address(String),
    /// The file of its secret cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold a secret.
    #[error("{}: expected whsec_ and 24 to 64 bytes in base64; `echo whsec_$(openssl rand -base64 32)` makes such a secret", .0.display())]
    Secret(PathBuf),
}

/// Where events go.
#[derive(Clone)]
pub struct Endpoint {
    address: String,
    secret: Vec<u8>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint and the file of its secret.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn new(address: &str, secret: &Path) -> Result<Self, WebhookError> {
        let uri = address.parse::<Uri>().ok();
        let good = |uri: &Uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|a| !a.as_str().contains('@'))
        };
        if !uri.as_ref().is_some_and(good) {
            return Err(WebhookError::Address(address.to_owned()));
        }
        let io = |source| WebhookError::Io { path: secret.to_path_buf(), source };
        let mut text = String::new();
        File::open(secret).map_err(io)?.take(4096).read_to_string(&mut text).map_err(io)?;
        let bytes = text.trim().strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
        let bytes = bytes.filter(|bytes| SECRET.contains(&bytes.len()));
        let secret = bytes.ok_or_else(|| WebhookError::Secret(secret.to_path_buf()))?;
        Ok(Self { address: address.to_owned(), secret })
    }

    /// The value of `webhook-signature`. Source: Standard Webhooks 1.0.0, "Signature scheme".
    fn sign(&self, id: &str, time: u64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(format!("{id}.{time}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// An event on its way to an endpoint, as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The same in every attempt and for every endpoint.
    pub id: String,
    /// Where it goes.
    pub address: String,
    /// What is sent.
    pub body: String,
    /// Attempts that failed.
    pub failed: usize,
    /// Unix seconds of the next attempt.
    pub due: u64,
}

/// What sends events.
pub struct Post {
    endpoints: Vec<Endpoint>,
    news: Mutex<News>,
    changed: Condvar,
}

/// What those who wait are woken for.
#[derive(Clone, Copy, Default)]
struct News {
    /// Events that were written.
    events: u64,
    /// Nothing more is to be sent.
    ended: bool,
}

impl Post {
    /// Sends to these.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { endpoints, news: Mutex::default(), changed: Condvar::new() }
    }

    /// What the endpoints are to hear about a job in this state. Source: `openai` 3.54.0, `types/webhooks`, the shape of
    /// all events; `resources/webhooks/webhooks.py` names `video.completed` and `video.failed`.
    pub fn events(&self, job: &Job) -> Vec<Event> {
        let kind = match job.state {
            State::Completed => "video.completed",
            State::Failed => "video.failed",
            State::Queued | State::InProgress | State::Cancelled => return Vec::new(),
        };
        // A job ends once, and its digits are random.
        let id = format!("evt_{}", job.id.strip_prefix("video_").unwrap_or(&job.id));
        let time = job.completed_at.unwrap_or_else(now);
        let body =
            json!({"id": id, "object": "event", "created_at": time, "type": kind, "data": {"id": job.id}}).to_string();
        let to =
            |e: &Endpoint| Event { id: id.clone(), address: e.address.clone(), body: body.clone(), failed: 0, due: 0 };
        self.endpoints.iter().map(to).collect()
    }

    /// There is something new to send.
    pub fn wake(&self) {
        self.news().events += 1;
        self.changed.notify_all();
    }

    /// Nothing more is sent.
    pub fn stop(&self) {
        self.news().ended = true;
        self.changed.notify_all();
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one thread for each endpoint, so that a slow one keeps nobody waiting. They end after [`Self::stop`] and the
    /// attempt that is under way.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self: &Arc<Self>, store: &Arc<Store>, metrics: &Metrics) -> io::Result<()> {
        let known: Vec<&str> = self.endpoints.iter().map(|endpoint| &*endpoint.address).collect();
        match store.keep_events_of(&known) {
            Ok(0) => {}
            Ok(dropped) => {
                tracing::warn!(target: "vldm::webhooks", dropped, "events of endpoints that are named no more");
            }
            Err(error) => tracing::error!(target: "vldm::webhooks", %error, "cannot keep account of events"),
        }
        for endpoint in self.endpoints.clone() {
            let (post, store, counts) = (self.clone(), store.clone(), metrics.webhooks());
            let send = move || {
                let agent = agent(PATIENCE);
                loop {
                    let seen = *post.news();
                    let pause = if seen.ended { None } else { step(&agent, &endpoint, &store, &counts) };
                    let Some(pause) = pause else { break };
                    post.rest(pause, seen.events);
                }
            };
            std::thread::Builder::new().name("webhooks".to_owned()).spawn(send)?;
        }
        Ok(())
    }

    /// Waits, until there is something new at the longest.
    fn rest(&self, pause: Duration, seen: u64) {
        let old = |news: &mut News| news.events == seen && !news.ended;
        // Whether time or news ended the pause is all the same.
        let _woken = self.changed.wait_timeout_while(self.news(), pause, old);
    }
}

/// Sends the next event of an endpoint, and says how long there is nothing to do; `None` when the endpoint wants no more.
fn step(agent: &Agent, endpoint: &Endpoint, store: &Store, counts: &impl Fn(&str)) -> Option<Duration> {
    let error = |error: StoreError| {
        tracing::error!(target: "vldm::webhooks", %error, "cannot keep account of events");
        Some(Duration::from_secs(10))
    };
    let (number, event) = match store.next_event(&endpoint.address) {
        Ok(Some(next)) => next,
        Ok(None) => return Some(Duration::from_hours(1)),
        Err(e) => return error(e),
    };
    let wait = event.due.saturating_sub(now());
    if wait > 0 {
        return Some(Duration::from_secs(wait));
    }
    let outcome = attempt(agent, endpoint, &event);
    counts(outcome.name());
    let kept = match outcome {
        Attempt::Taken => store.replace_event(number, None),
        Attempt::Gone => {
            let address = &endpoint.address;
            tracing::error!(target: "vldm::webhooks", address, "it answers 410: nothing is sent until the next start");
            return None;
        }
        Attempt::Failed { why, after } => {
            let next = later(&event, after);
            let (id, address, given_up) = (&event.id, &event.address, next.is_none());
            tracing::warn!(target: "vldm::webhooks", id, address, why, given_up, "an event was not taken");
            store.replace_event(number, next.as_ref())
        }
    };
    kept.map_or_else(error, |()| Some(Duration::ZERO))
}

/// The event after an attempt that failed; `None` when it was the last. A tenth of the pause is up to chance.
fn later(event: &Event, after: u64) -> Option<Event> {
    let pause = *PAUSES.get(event.failed)?;
    let chance = keys::random::<2>().map_or(0, u16::from_le_bytes);
    let pause = (pause + pause * u64::from(chance) / u64::from(u16::MAX) / 10).max(after.min(LONGEST));
    Some(Event { failed: event.failed + 1, due: now().saturating_add(pause), ..event.clone() })
}

enum Attempt {
    Taken,
    Gone,
    /// With the seconds after which the endpoint wants to be asked again.
    Failed {
        why: String,
        after: u64,
    },
}

impl Attempt {
    fn name(&self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Gone => "gone",
            Self::Failed { .. } => "failed",
        }
    }
}

/// What asks an address of the operator's. Redirects are answers like others: the operator named this address and no other.
pub(crate) fn agent(patience: Duration) -> Agent {
    let config = Agent::config_builder().timeout_global(Some(patience)).max_redirects(0).http_status_as_error(false);
    config.user_agent(concat!("vldm/", env!("CARGO_PKG_VERSION"))).build().into()
}

fn attempt(agent: &Agent, endpoint: &Endpoint, event: &Event) -> Attempt {
    let time = now();
    let request = agent
        .post(&endpoint.address)
        .header("content-type", "application/json")
        .header("webhook-id", &event.id)
        .header("webhook-timestamp", time.to_string())
        .header("webhook-signature", endpoint.sign(&event.id, time, &event.body));
    match request.send(&event.body) {
        Ok(answer) if answer.status().is_success() => Attempt::Taken,
        Ok(answer) if answer.status() == StatusCode::GONE => Attempt::Gone,
        Ok(answer) => {
            let after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
            Attempt::Failed { why: format!("it answered {}", answer.status()), after: after.unwrap_or(0) }
        }
        Err(e) => Attempt::Failed { why: e.to_string(), after: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(secret: &str) -> Result<Endpoint, WebhookError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), secret).unwrap();
        Endpoint::new("https://example.com/events?a=b", file.path())
    }

    #[test]
    fn a_signature_is_that_of_the_reference_libraries() {
        // Source: standard-webhooks, libraries/python/tests/test_webhooks.py, `test_sign_function`.
        let endpoint = endpoint("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signed = endpoint.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_and_addresses_that_are_none_are_refused() {
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_not base64"] {
            assert!(matches!(endpoint(bad), Err(WebhookError::Secret(_))), "{bad}");
        }
        for bad in ["", "example.com", "ftp://example.com", "file:///etc/passwd", "https://me:word@example.com/"] {
            assert!(matches!(Endpoint::new(bad, Path::new("/")), Err(WebhookError::Address(_))), "{bad}");
        }
    }

    #[test]
    fn pauses_grow_until_an_event_is_given_up() {
        let mut event = Event { id: String::new(), address: String::new(), body: String::new(), failed: 0, due: 0 };
        let mut before = 0;
        while let Some(next) = later(&event, 0) {
            let pause = next.due - now();
            assert!(pause > before, "{pause} after {before}");
            (event, before) = (next, pause);
        }
        assert_eq!(event.failed, PAUSES.len());
        event.failed = 0;
        assert!(later(&event, u64::MAX).unwrap().due <= now() + LONGEST, "no endpoint has itself left alone for ever");
    }
}
