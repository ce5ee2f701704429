//! How often and how long each model ran.
//!
//! Source: Triton's `extension_statistics`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// What one request took, stage by stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) queue: Duration,
    pub(super) input: Duration,
    pub(super) infer: Duration,
    pub(super) output: Duration,
}

impl Spent {
    fn total(self) -> Duration {
        self.queue + self.input + self.infer + self.output
    }
}

/// The counters of one model since the server started.
#[derive(Debug, Default)]
pub(super) struct Statistics(Mutex<Counters>);

#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    success: (u64, Duration),
    fail: (u64, Duration),
    spent: Spent,
    last: u64,
}

impl Statistics {
    /// A request was answered.
    pub(super) fn succeeded(&self, spent: Spent) {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counters.success = (counters.success.0 + 1, counters.success.1 + spent.total());
        let sum = &mut counters.spent;
        sum.queue += spent.queue;
        sum.input += spent.input;
        sum.infer += spent.infer;
        sum.output += spent.output;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        counters.last = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    }

    /// A request was refused or went wrong.
    pub(super) fn failed(&self, after: Duration) {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counters.fail = (counters.fail.0 + 1, counters.fail.1 + after);
    }

    /// The counters in the extension's words.
    pub(super) fn report(&self, name: &str, version: &str) -> Value {
        let counters = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let duration = |count: u64, time: Duration| json!({"count": count, "ns": nanoseconds(time)});
        let count = counters.success.0;
        json!({
            "name": name,
            "version": version,
            "last_inference": counters.last,
            "inference_count": count,
            "execution_count": count,
            "inference_stats": {
                "success": duration(count, counters.success.1),
                "fail": duration(counters.fail.0, counters.fail.1),
                "queue": duration(count, counters.spent.queue),
                "compute_input": duration(count, counters.spent.input),
                "compute_infer": duration(count, counters.spent.infer),
                "compute_output": duration(count, counters.spent.output),
                "cache_hit": duration(0, Duration::ZERO),
                "cache_miss": duration(0, Duration::ZERO),
            },
            "response_stats": {},
            "batch_stats": [],
            "memory_usage": [],
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_with_the_time_of_each_stage() {
        let statistics = Statistics::default();
        let ms = Duration::from_millis;
        statistics.succeeded(Spent { queue: ms(1), input: ms(2), infer: ms(3), output: ms(4) });
        statistics.succeeded(Spent { infer: ms(5), ..Spent::default() });
        statistics.failed(ms(7));
        let report = statistics.report("demo.decoder", "1");
        assert_eq!(report["inference_count"], 2);
        assert_eq!(report["inference_stats"]["success"], json!({"count": 2, "ns": 15_000_000}));
        assert_eq!(report["inference_stats"]["compute_infer"], json!({"count": 2, "ns": 8_000_000}));
        assert_eq!(report["inference_stats"]["fail"], json!({"count": 1, "ns": 7_000_000}));
        assert!(report["last_inference"].as_u64().is_some_and(|at| at > 0));
    }
}
