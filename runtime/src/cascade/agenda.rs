//! What a run has to do: from the video backwards, what is not finished and what that reads.

use std::ops::Range;

use super::error::CascadeError;
use super::layout::{Kind, Layout, Span};
use super::plan::Plan;
use super::recipe::Recipes;
use crate::journal::Journal;

/// What becomes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// It is not wanted.
    Unwanted,
    /// It was finished before, and what reads it as well.
    Done,
    /// It was finished before; its result is read again. A unit of the video hands on what was kept of its frames.
    Load,
    /// It is run.
    Run,
}

impl Todo {
    /// Is there anything to do?
    pub(super) fn is_scheduled(self) -> bool {
        matches!(self, Self::Load | Self::Run)
    }
}

/// Some units of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The stage, as plans name it.
    pub stage: String,
    /// Numbers of units, counted from 0; all of them when absent.
    pub units: Option<Range<usize>>,
}

impl Part {
    fn has(&self, kind: Kind, unit: usize) -> bool {
        let name = kind.name() == self.stage || kind.name().strip_suffix("-1") == Some(&self.stage);
        name && self.units.as_ref().is_none_or(|units| units.contains(&unit))
    }

    /// Is there any such unit?
    pub(super) fn check(&self, plan: &Plan, layout: &Layout) -> Result<(), CascadeError> {
        let known = |u: &super::layout::Unit| self.has(layout.stages[u.stage].kind, u.index);
        if layout.units.iter().any(known) {
            return Ok(());
        }
        let stages: Vec<String> = layout.stages.iter().map(|s| format!("{} (0..{})", s.kind.name(), s.units)).collect();
        let units = self.units.as_ref().map_or(String::new(), |u| format!(":{}..{}", u.start, u.end));
        Err(plan.error("stages", stages.join(", "), format!("{}{units}", self.stage)).into())
    }
}

/// Which part of the work is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// These units and what they need, and no video.
    pub only: Option<Part>,
    /// These units and what depends on them again, although they are finished.
    pub from: Option<Part>,
}

/// What becomes of every unit, and of every segment of the video.
pub(super) struct Agenda {
    units: Vec<Todo>,
    /// Segments of which the encoded frames are there.
    stored: Vec<bool>,
    /// Units and segments done again because it was asked for.
    forced: Vec<bool>,
}

impl Agenda {
    /// Everything, from the start.
    pub(super) fn all(layout: &Layout) -> Self {
        Self { units: vec![Todo::Run; layout.units.len()], stored: vec![], forced: vec![] }
    }

    /// What is left to do, when the results in `journal` are there.
    pub(super) fn new(layout: &Layout, recipes: &Recipes, journal: &Journal, wish: &Wish) -> Self {
        let forced = forced(layout, wish.from.as_ref());
        let video = wish.only.is_none();
        let segment_forced = |i: usize| frames_of(recipes, layout, i).any(|unit| forced[unit]);
        let stored: Vec<bool> = (0..recipes.segment_count())
            .map(|i| video && !segment_forced(i) && journal.has(recipes.segment_key(i)))
            .collect();
        let mut needed = vec![false; layout.units.len()];
        let mut units = vec![Todo::Unwanted; layout.units.len()];
        for unit in (0..layout.units.len()).rev() {
            let u = &layout.units[unit];
            let kind = layout.stages[u.stage].kind;
            units[unit] = if kind == Kind::Video {
                let whole = || segments_of(recipes, layout, unit).all(|segment| stored[segment]);
                if !video {
                    Todo::Unwanted
                } else if whole() {
                    Todo::Load
                } else {
                    Todo::Run
                }
            } else {
                let wanted = wish.only.as_ref().is_some_and(|only| only.has(kind, u.index));
                // Results that nobody reads again need not be looked at.
                let there = (needed[unit] || wanted) && !forced[unit] && journal.has(recipes.key(unit));
                match (needed[unit], wanted, there) {
                    (true, _, true) => Todo::Load,
                    (true, _, false) | (_, true, false) => Todo::Run,
                    (false, true, true) => Todo::Done,
                    (false, false, _) if video => Todo::Done,
                    (false, false, _) => Todo::Unwanted,
                }
            };
            if units[unit] == Todo::Run {
                u.reads.iter().flat_map(|span| layout.writers(span)).for_each(|writer| needed[writer] = true);
            }
        }
        Self { units, stored, forced }
    }

    /// What becomes of a unit.
    pub(super) fn of(&self, unit: usize) -> Todo {
        self.units[unit]
    }

    /// Units that are run, those of the video not counted where it has only to be put together.
    pub(super) fn run_units(&self) -> usize {
        self.units.iter().filter(|todo| **todo == Todo::Run).count()
    }

    /// Whether the encoded frames of a segment are there.
    pub(super) fn stored(&self, segment: usize) -> bool {
        self.stored.get(segment).copied().unwrap_or(false)
    }

    /// Whether a unit is done again because it was asked for.
    pub(super) fn is_forced(&self, unit: usize) -> bool {
        self.forced.get(unit).copied().unwrap_or(false)
    }

    /// What a unit reads.
    pub(super) fn reads<'a>(&self, layout: &'a Layout, unit: usize) -> &'a [Span] {
        if self.units[unit] == Todo::Run { &layout.units[unit].reads } else { &[] }
    }

    /// Units that must be done before a unit.
    pub(super) fn waits_for(&self, layout: &Layout, unit: usize) -> Vec<usize> {
        match self.units[unit] {
            Todo::Run => layout.dependencies(unit),
            Todo::Load => layout.units[unit].after.into_iter().collect(),
            Todo::Done | Todo::Unwanted => vec![],
        }
    }
}

/// Units that are in `from`, and all that depend on them.
fn forced(layout: &Layout, from: Option<&Part>) -> Vec<bool> {
    let mut forced = vec![false; layout.units.len()];
    let Some(from) = from else { return forced };
    for unit in 0..layout.units.len() {
        let u = &layout.units[unit];
        let mut writers = u.reads.iter().flat_map(|span| layout.writers(span));
        forced[unit] = from.has(layout.stages[u.stage].kind, u.index) || writers.any(|writer| forced[writer]);
    }
    forced
}

/// Units of the video that a segment takes frames from.
fn frames_of(recipes: &Recipes, layout: &Layout, segment: usize) -> Range<usize> {
    let length = recipes.segment_length();
    layout.video_units_of(&(segment * length..layout.frames.min((segment + 1) * length)))
}

/// Segments that frames of a unit of the video go to.
pub(super) fn segments_of(recipes: &Recipes, layout: &Layout, unit: usize) -> Range<usize> {
    let (shown, length) = (layout.shown(unit), recipes.segment_length());
    shown.start / length..shown.end.div_ceil(length)
}
