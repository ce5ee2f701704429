//! A job: a video that was asked for, from the request to its end.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits.
    Queued,
    /// The engine works on it.
    InProgress,
    /// The video is there.
    Completed,
    /// There will be no video.
    Failed,
    /// It was taken back.
    Cancelled,
}

impl State {
    /// Whether there is still something to do.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::InProgress)
    }
}

/// Why there will be no video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// A job, as it is on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Name, of random digits.
    pub id: String,
    /// Jobs are counted in the order they came.
    pub number: u64,
    /// Name of the key that asked.
    pub owner: String,
    /// Jobs of higher priority run first.
    pub priority: i32,
    /// Name of the model.
    pub model: String,
    /// The whole plan.
    pub plan: Value,
    /// Whether the folder of the job holds the picture the plan starts from.
    pub image: bool,
    /// What the request said.
    pub prompt: Option<String>,
    /// Width and height of the video, in pixels.
    pub size: [usize; 2],
    /// Frames of the video.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Where it stands.
    pub state: State,
    /// Percent done, as far as the disk knows.
    pub progress: u8,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds of the first start.
    pub started_at: Option<u64>,
    /// Unix seconds of the end.
    pub completed_at: Option<u64>,
    /// Unix seconds after which it is removed.
    pub expires_at: Option<u64>,
    /// Why there will be no video.
    pub error: Option<Failure>,
    /// The video of which this one is another version.
    pub remixed_from: Option<String>,
    /// The video that this one goes on from.
    pub extends: Option<String>,
    /// The span of the request, as a `traceparent` header.
    #[serde(default)]
    pub trace: Option<String>,
}

impl Job {
    /// The job as clients see it.
    pub fn video(&self) -> Value {
        let [width, height] = self.size;
        json!({
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.state,
            "progress": self.progress,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
            "expires_at": self.expires_at,
            "size": format!("{width}x{height}"),
            "seconds": seconds(self.frames, self.fps),
            "frames": self.frames,
            "fps": self.fps,
            "seed": self.plan["seed"],
            "prompt": self.prompt,
            "remixed_from_video_id": self.remixed_from,
            "extended_from_video_id": self.extends,
            "error": self.error,
        })
    }
}

/// Length of a video in seconds, as text with at most three digits behind the point.
pub fn seconds(frames: usize, fps: f64) -> String {
    let text = format!("{:.3}", frames as f64 / fps);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Unix seconds now.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_short_text() {
        assert_eq!([seconds(32, 8.0), seconds(33, 8.0), seconds(10, 3.0)], ["4", "4.125", "3.333"]);
    }
}
