//! What a run would do, and why, before it does it.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use vldm_graphs::bundle::Manifest;

use super::agenda::{Agenda, Todo};
use super::durable::Keeping;
use super::error::CascadeError;
use super::layout::{Kind, Layout};
use super::plan::Plan;
use super::recipe::{Film, Recipes};
use super::{Wish, checked};
use crate::journal::{Header, Journal, Record};

/// Most changes that are named of one unit.
const MAX_CHANGES: usize = 4;
/// Most characters of a value that is shown.
const MAX_VALUE: usize = 32;

/// Units of one stage, one after the other, of which the same becomes for the same reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pending {
    /// The stage.
    pub stage: Kind,
    /// The first unit, counted from 0.
    pub first: usize,
    /// The last unit.
    pub last: usize,
    /// Whether they are run; their results are there otherwise.
    pub run: bool,
    /// Why they are run.
    pub why: Vec<String>,
}

/// What a run of `plan` would do, in the order of the stages; units that are not asked for are left out. `keeping` is
/// absent where there is no run folder yet.
///
/// # Errors
/// [`CascadeError`], as [`super::run`] has them before its first unit.
pub fn pending(
    plan: &Plan,
    bundle: &Manifest,
    keeping: Option<&Keeping<'_>>,
    wish: &Wish,
    film: Film,
) -> Result<Vec<Pending>, CascadeError> {
    let layout = Layout::new(plan, bundle)?;
    checked(wish, plan, &layout)?;
    let Some(keeping) = keeping else {
        let all = |u: usize| (layout.units[u].stage, Some((true, vec!["not done yet".to_owned()])));
        return Ok(joined(&layout, (0..layout.units.len()).map(all)));
    };
    let recipes = Recipes::new(plan, bundle, &layout, keeping.program, film)?;
    let agenda = Agenda::new(&layout, &recipes, keeping.journal, wish);
    let before = latest(keeping.journal.folder())?;
    let units = (0..layout.units.len()).map(|unit| {
        let stage = layout.units[unit].stage;
        let what = match agenda.of(unit) {
            Todo::Unwanted => None,
            Todo::Done | Todo::Load => Some((false, vec![])),
            Todo::Run if agenda.is_forced(unit) => Some((true, vec!["asked for again".to_owned()])),
            // Its recipe is that of the segments that its frames go to.
            Todo::Run if layout.stages[stage].kind == Kind::Video => {
                Some((true, vec!["its frames are encoded".to_owned()]))
            }
            Todo::Run => Some((true, reasons(&recipes, unit, &layout, keeping.journal, &before))),
        };
        (stage, what)
    });
    Ok(joined(&layout, units))
}

type Latest = HashMap<(String, usize), Record>;

/// The latest finished result of each unit, under whatever recipe.
fn latest(folder: &std::path::Path) -> Result<Latest, CascadeError> {
    let mut found = HashMap::new();
    for record in Journal::records(folder)? {
        if record.step.is_none() {
            found.insert((record.stage.clone(), record.unit), record);
        }
    }
    Ok(found)
}

/// Why a unit is run.
fn reasons(recipes: &Recipes, unit: usize, layout: &Layout, journal: &Journal, before: &Latest) -> Vec<String> {
    let u = &layout.units[unit];
    let key = recipes.key(unit);
    if let Some(Header::Loop { step, .. }) = journal.load_loop(key).map(|state| state.header) {
        return vec![format!("goes on after step {step}")];
    }
    let kind = layout.stages[u.stage].kind;
    let Some(record) = before.get(&(kind.name().to_owned(), u.index)) else { return vec!["not done yet".to_owned()] };
    if record.key == *key {
        return vec!["its result is gone or damaged".to_owned()];
    }
    let mut changes = vec![];
    differences("", &record.recipe, &recipes.of(unit), &mut changes);
    let read = changes.len();
    changes.retain(|change| !change.starts_with("from"));
    let reads_other_frames = changes.len() < read;
    if changes.len() > MAX_CHANGES {
        let more = changes.len() - MAX_CHANGES;
        changes.truncate(MAX_CHANGES);
        changes.push(format!("{more} more"));
    }
    if reads_other_frames && changes.is_empty() {
        changes.push("what it reads changes".to_owned());
    }
    changes
}

/// Paths at which two recipes differ, with both values.
fn differences(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                differences(&path, &value(a), &value(b), found);
            }
        }
        _ if old == new => {}
        _ => found.push(format!("{path}: {} → {}", brief(old), brief(new))),
    }
}

fn brief(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_owned(),
        value => value.to_string(),
    };
    if text.chars().count() <= MAX_VALUE {
        return text;
    }
    text.chars().take(MAX_VALUE).chain(['…']).collect()
}

type What = Option<(bool, Vec<String>)>;

/// Neighbours with the same fate as one entry.
fn joined(layout: &Layout, units: impl Iterator<Item = (usize, What)>) -> Vec<Pending> {
    let mut stages: Vec<Vec<Pending>> = vec![vec![]; layout.stages.len()];
    for (unit, (stage, what)) in units.enumerate() {
        let (Some((run, why)), index) = (what, layout.units[unit].index) else { continue };
        match stages[stage].last_mut() {
            Some(last) if last.last + 1 == index && last.run == run && last.why == why => last.last = index,
            _ => {
                let kind = layout.stages[stage].kind;
                stages[stage].push(Pending { stage: kind, first: index, last: index, run, why });
            }
        }
    }
    stages.concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_paths_with_both_values() {
        let old = json!({"settings": {"steps": 6, "guidance": 2.0}, "shows": {"labels": [1]}, "unit": 0});
        let new = json!({"settings": {"steps": 8, "guidance": 2.0}, "shows": {"labels": [1]}, "unit": 0, "seed": 3});
        let mut found = vec![];
        differences("", &old, &new, &mut found);
        assert_eq!(found, ["settings.steps: 6 → 8", "seed: none → 3"]);
        let long = brief(&json!("x".repeat(99)));
        assert_eq!(long.chars().count(), MAX_VALUE + 1);
    }
}
