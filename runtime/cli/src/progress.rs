//! Progress on standard error: one bar a stage on a terminal, plain lines elsewhere. Totals are those of the plan's
//! layout (denoising steps, windows, frames), and only finished work counts.

use std::io::{IsTerminal, Write, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vldm_runtime::cascade::layout::{Kind, Stage};
use vldm_runtime::cascade::{Event, Progress};

use crate::output::Output;

/// Plain lines come four times a stage.
const LINES: usize = 4;

/// What a run is shown as.
pub struct Shown {
    how: How,
    bars: MultiProgress,
    stages: Mutex<Vec<Row>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Bars,
    Lines,
    Silent,
}

struct Row {
    name: &'static str,
    what: &'static str,
    total: usize,
    done: usize,
    bar: Option<ProgressBar>,
}

impl Shown {
    /// Bars on a terminal, lines elsewhere, nothing with `--json`.
    pub fn new(out: Output) -> Self {
        let how = match (out.json, stderr().is_terminal()) {
            (true, _) => How::Silent,
            (false, true) => How::Bars,
            (false, false) => How::Lines,
        };
        Self { how, bars: MultiProgress::new(), stages: Mutex::new(Vec::new()) }
    }

    fn stage(&self, stage: &Stage) -> Row {
        let (name, total) = (stage.kind.name(), stage.total());
        let what = match stage.kind {
            Kind::Video => "frames",
            Kind::Source | Kind::Decode => "windows",
            _ => "steps",
        };
        let bar = (self.how == How::Bars).then(|| self.bars.add(bar(name, what, total)));
        Row { name, what, total, done: 0, bar }
    }
}

impl Progress for Shown {
    fn event(&self, event: &Event<'_>) {
        if self.how == How::Silent {
            return;
        }
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        match *event {
            Event::Planned(planned) => *stages = planned.iter().map(|s| self.stage(s)).collect(),
            Event::Started { stage } => stages[stage].started(),
            Event::Advanced { stage, by } => stages[stage].advance(by),
            Event::Finished { stage } => stages[stage].finished(),
        }
    }
}

impl Row {
    fn started(&self) {
        if let Some(bar) = &self.bar {
            bar.reset_elapsed();
            bar.enable_steady_tick(Duration::from_secs(1));
        }
    }

    fn advance(&mut self, by: usize) {
        let quarter = |done: usize| done * LINES / self.total.max(1);
        let (before, after) = (quarter(self.done), quarter(self.done + by));
        self.done += by;
        match &self.bar {
            Some(bar) => bar.set_position(self.done as u64),
            None if before != after => {
                let (name, done, total, what) = (self.name, self.done, self.total, self.what);
                // Nobody can be told that standard error is gone.
                let _ = writeln!(stderr(), "{name:<14} {done}/{total} {what}");
            }
            None => {}
        }
    }

    fn finished(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

fn bar(name: &'static str, what: &'static str, total: usize) -> ProgressBar {
    let template = format!("{{prefix:<14}} {{bar:32}} {{pos:>5}}/{{len}} {what:<8} {{elapsed}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style.progress_chars("━╸─")).with_prefix(name)
}
