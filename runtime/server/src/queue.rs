//! Who is next: higher priorities first; of one priority, the owner whose turn is longest ago; of one owner, the job that
//! came first.

use std::collections::HashMap;

use crate::job::{Job, State};

/// Numbers of the queued jobs, in the order in which they will run.
pub fn order<'a>(jobs: impl Iterator<Item = &'a Job>, served: &HashMap<String, u64>) -> Vec<u64> {
    let mut queued: Vec<&Job> = jobs.filter(|job| job.state == State::Queued).collect();
    queued.sort_by_key(|job| job.number);
    // The n-th job of an owner comes after the n-th jobs of all others.
    let mut turns: HashMap<(&str, i32), u64> = HashMap::new();
    let mut keyed: Vec<_> = queued
        .into_iter()
        .map(|job| {
            let turn = turns.entry((&job.owner, job.priority)).or_default();
            *turn += 1;
            let last = served.get(&job.owner).copied().unwrap_or(0);
            ((std::cmp::Reverse(job.priority), *turn, last, job.number), job.number)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64, owner: &str, priority: i32) -> Job {
        Job {
            id: number.to_string(),
            number,
            owner: owner.to_owned(),
            priority,
            model: String::new(),
            plan: serde_json::Value::Null,
            image: false,
            prompt: None,
            size: [1, 1],
            frames: 1,
            fps: 1.0,
            state: State::Queued,
            progress: 0,
            created_at: 0,
            started_at: None,
            completed_at: None,
            expires_at: None,
            error: None,
            remixed_from: None,
            extends: None,
            trace: None,
        }
    }

    #[test]
    fn owners_take_turns_and_priorities_go_first() {
        let mut jobs: Vec<Job> = (0..3).map(|n| job(n, "a", 0)).collect();
        jobs.extend([job(3, "b", 0), job(4, "b", 0), job(5, "c", 1)]);
        assert_eq!(order(jobs.iter(), &HashMap::new()), [5, 0, 3, 1, 4, 2]);
        let served = HashMap::from([("a".to_owned(), 7)]);
        assert_eq!(order(jobs.iter(), &served), [5, 3, 0, 4, 1, 2]);
        jobs[3].state = State::Completed;
        assert_eq!(order(jobs.iter(), &served), [5, 4, 0, 1, 2]);
    }
}
