//! `vldm measure`: how good a finished video is, in numbers.

mod plot;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Serialize;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::measure::{Measurement, Seams, measure};
use vldm_runtime::video::Input;

use crate::bundle::CacheArgs;
use crate::output::{Output, note, table};
use crate::plan::{PlanArgs, key_value};

/// Measure a video: seams, flicker and drift, and how far it is from another one.
///
/// Every number is defined in docs/measure.md.
#[derive(clap::Args)]
pub struct Args {
    /// Video: .mp4 (H.264), .gif, .png, or a folder of PNG frames
    video: PathBuf,
    /// Video to compare with: PSNR and SSIM where both have the same frames, and a Fréchet distance
    #[arg(long, value_name = "VIDEO")]
    against: Option<PathBuf>,
    /// The plan that made the video: seams are looked for where its units meet
    #[arg(long, value_name = "PLAN")]
    plan: Option<PathBuf>,
    /// Change one value of the plan, as it was changed when the video was made; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "plan", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Look for seams at every N-th frame; may be given several times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    period: Vec<u32>,
    /// Draw the numbers along time as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Serialize)]
struct Measured {
    video: PathBuf,
    #[serde(flatten)]
    measurement: Measurement,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let video = Input::open(&args.video)?;
    let against = args.against.as_deref().map(Input::open).transpose()?;
    let mut seams: Vec<Seams> = match &args.plan {
        Some(plan) => of_plan(&PlanArgs::new(plan.clone(), args.set), &args.cache, &args.video, video.frames())?,
        None => vec![],
    };
    seams.extend(args.period.iter().map(|&period| Seams::every(period as usize, video.frames())));
    let measurement = measure(&video, against.as_ref(), &seams)?;
    if let Some(file) = &args.plot {
        fs::write(file, plot::svg(&measurement, &seams)).with_context(|| format!("{}", file.display()))?;
        note(format!("wrote {}", file.display()));
    }
    out.result(&Measured { video: args.video, measurement })
}

/// Where the units of a plan meet.
fn of_plan(plan: &PlanArgs, cache: &CacheArgs, video: &Path, frames: usize) -> anyhow::Result<Vec<Seams>> {
    let (plan, bundle) = plan.open(cache)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    let expected = layout.frames;
    ensure!(
        frames == expected,
        "{}: expected {expected} frames as {} makes, found {frames}",
        video.display(),
        plan.file
    );
    Ok(layout.seams())
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |v| format!("{v:.4}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |v| format!("{:+.1} %", 100.0 * v))
}

fn rows<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    table(&std::iter::once(head.map(str::to_owned)).chain(rows).map(Vec::from).collect::<Vec<_>>())
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.measurement;
        let [height, width] = m.size;
        writeln!(f, "{}: {} frames of {width}×{height}", self.video.display(), m.frames)?;
        write!(f, "change from frame to frame {}, flicker {}", number(m.change), number(m.flicker))?;
        writeln!(f, ", from the last frame to the first {} times the change\n", number(m.closing))?;
        let drift = m.drift.iter().map(|d| {
            let (first, last) = (number(Some(d.first)), number(Some(d.last)));
            [d.name.to_owned(), first, last, percent(d.change), percent(d.most)]
        });
        writeln!(f, "{}", rows(["drift", "first tenth", "last tenth", "change", "most"], drift))?;
        if !m.seams.is_empty() {
            let seams = m.seams.iter().map(|s| {
                let ratio = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.2}"));
                [s.name.clone(), s.borders.to_string(), ratio(s.score), ratio(s.most)]
            });
            writeln!(f, "\n{}", rows(["seams", "borders", "median", "most"], seams))?;
        }
        let Some(a) = &m.against else { return Ok(()) };
        writeln!(f, "\nFréchet distance {}, change {} of the other's", number(a.frechet), number(a.change_ratio))?;
        let Some(pairs) = &a.pairs else {
            let [height, width] = a.size;
            return writeln!(f, "not compared frame by frame: the other has {} frames of {width}×{height}", a.frames);
        };
        let db = |v: Option<f64>| v.map_or("∞".to_owned(), |v| format!("{v:.2} dB"));
        let (psnr, least) = (db(pairs.psnr), db(pairs.psnr_least));
        writeln!(f, "PSNR {psnr} (worst frame {least}), SSIM {}", number(pairs.ssim))?;
        writeln!(f, "flicker that the other has not {}", number(pairs.flicker_error))
    }
}
