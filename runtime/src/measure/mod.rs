//! What a finished video is like, in numbers: seams, flicker, drift, and how far it is from another video.
//!
//! Every number is a function of the eight-bit frames alone and is defined here and in `docs/measure.md`. Luma `Y` and the
//! colour differences are those of BT.709, of values in 0..1. Frames are read once, a few at a time.

mod compare;
mod frame;
mod frechet;
mod series;

use serde::Serialize;

use self::compare::Compared;
use self::frame::{FEATURES, Plane, Planes, features};
use self::frechet::Gaussian;
pub use self::series::{Drift, Seam, Seams, Series};
use crate::image::RgbImage;
use crate::video::{Input, InputError};

/// Frames that are read at once.
const READ: usize = 8;

/// What a video is like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// Frames in it.
    pub frames: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// Mean of [`Series::change`]; absent for a single frame.
    pub change: Option<f64>,
    /// Mean of [`Series::flicker`]; absent below three frames.
    pub flicker: Option<f64>,
    /// Change from the last frame back to the first over [`change`](Self::change): about 1 in a loop; absent where nothing changes.
    pub closing: Option<f64>,
    /// How the look changes from the first frames to the last.
    pub drift: Vec<Drift>,
    /// How visible the borders of units are.
    pub seams: Vec<Seam>,
    /// How far it is from another video.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    /// Frame by frame.
    pub series: Series,
}

/// How far a video is from another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Against {
    /// Frames of the other video.
    pub frames: usize,
    /// Its height and width.
    pub size: [usize; 2],
    /// Squared Fréchet distance between the features of both; absent below two frames in either.
    pub frechet: Option<f64>,
    /// Mean of [`Series::change`] divided by the other's.
    pub change_ratio: Option<f64>,
    /// Frame by frame; absent when the videos differ in size or number of frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
}

/// Frames of two videos, pair by pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pairs {
    /// `10·log10(255² / mean squared error)` over all colours of all frames, in dB; absent when the videos are equal.
    pub psnr: Option<f64>,
    /// The same of the worst frame.
    pub psnr_least: Option<f64>,
    /// Mean structural similarity (Wang et al. 2004); absent for frames below 11 pixels on a side.
    pub ssim: Option<f64>,
    /// Mean of `|(Y_t − Y_{t−1}) − (Y'_t − Y'_{t−1})|`: what flickers in one video but not in the other.
    pub flicker_error: Option<f64>,
}

/// Measures a video, against another one where that is given.
///
/// # Errors
/// [`InputError`] when frames cannot be read.
pub fn measure(video: &Input, against: Option<&Input>, seams: &[Seams]) -> Result<Measurement, InputError> {
    let strides: Vec<usize> = seams.iter().map(|s| s.every.max(1)).collect();
    let mut own = Walk::new(&strides);
    let other = match against {
        Some(other) if other.size == video.size && other.frames() == video.frames() => {
            let mut theirs = Walk::new(&[]);
            let mut pairs = Compared::default();
            each(video, &mut own, |i, picture, planes, before| {
                let reference = other.read(i..i + 1)?.remove(0);
                let their = Planes::of(&reference);
                pairs.push((picture, planes), (&reference, &their), before.zip(theirs.last.as_ref()));
                theirs.push(their);
                Ok(())
            })?;
            Some((theirs, Some(pairs.result())))
        }
        other => {
            each(video, &mut own, |_, _, _, _| Ok(()))?;
            other.map(|other| walked(other).map(|theirs| (theirs, None))).transpose()?
        }
    };
    let against = against.zip(other).map(|(input, (theirs, pairs))| Against {
        frames: input.frames(),
        size: input.size,
        frechet: frechet::distance(&own.gaussian, &theirs.gaussian),
        change_ratio: mean(&own.series.change).zip(mean(&theirs.series.change)).map(|(a, b)| a / b),
        pairs,
    });
    let change = mean(&own.series.change);
    let closing = own.closing().zip(change.filter(|change| *change > 0.0)).map(|(closing, change)| closing / change);
    let Walk { series, changes, .. } = own;
    let seams = seams.iter().zip(changes).map(|(s, change)| s.measure(&change)).collect();
    Ok(Measurement {
        frames: video.frames(),
        size: video.size,
        change,
        closing,
        flicker: mean(&series.flicker),
        drift: series.drift(),
        seams,
        against,
        series,
    })
}

/// Hands every frame of `video` and the planes of the one before it to `see`, then its planes to `walk`.
fn each(
    video: &Input,
    walk: &mut Walk,
    mut see: impl FnMut(usize, &RgbImage, &Planes, Option<&Planes>) -> Result<(), InputError>,
) -> Result<(), InputError> {
    let frames = video.frames();
    for start in (0..frames).step_by(READ) {
        for (i, picture) in (start..).zip(video.read(start..frames.min(start + READ))?) {
            let planes = Planes::of(&picture);
            see(i, &picture, &planes, walk.last.as_ref())?;
            walk.push(planes);
        }
    }
    Ok(())
}

fn walked(video: &Input) -> Result<Walk, InputError> {
    let mut walk = Walk::new(&[]);
    each(video, &mut walk, |_, _, _, _| Ok(()))?;
    Ok(walk)
}

/// A walk over the frames of a video. It holds one for each kind of seam, and three.
struct Walk {
    series: Series,
    gaussian: Gaussian,
    first: Option<Plane>,
    last: Option<Planes>,
    before: Option<Plane>,
    strides: Vec<usize>,
    /// For each stride, the change from frame `k − 1` to frame `k` of every `stride`-th.
    changes: Vec<Vec<f64>>,
    /// For each stride, its last frame.
    held: Vec<Option<Plane>>,
    count: usize,
}

impl Walk {
    fn new(strides: &[usize]) -> Self {
        Self {
            series: Series::default(),
            gaussian: Gaussian::new(FEATURES),
            first: None,
            last: None,
            before: None,
            strides: strides.to_vec(),
            changes: vec![vec![]; strides.len()],
            held: strides.iter().map(|_| None).collect(),
            count: 0,
        }
    }

    /// The change from the last frame back to the first.
    fn closing(&self) -> Option<f64> {
        self.first.as_ref().zip(self.last.as_ref()).map(|(first, last)| first.mean_difference(&last.luma))
    }

    fn push(&mut self, planes: Planes) {
        self.first.get_or_insert_with(|| planes.luma.clone());
        self.series.look(&planes);
        for (i, &stride) in self.strides.iter().enumerate() {
            if self.count.is_multiple_of(stride)
                && let Some(before) = self.held[i].replace(planes.luma.clone())
            {
                self.changes[i].push(planes.luma.mean_difference(&before));
            }
        }
        if let Some(last) = self.last.take() {
            self.series.change.push(planes.luma.mean_difference(&last.luma));
            self.gaussian.push(&features(&planes, &last.luma));
            if let Some(before) = self.before.take() {
                self.series.flicker.push(Plane::bend(&before, &last.luma, &planes.luma));
            }
            self.before = Some(last.luma);
        }
        self.last = Some(planes);
        self.count += 1;
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::video::{Out, VideoSpec, create};

    /// A folder of grey frames, one level each, with a fixed texture.
    fn video(folder: &Path, name: &str, levels: &[i32]) -> PathBuf {
        let path = folder.join(name);
        let spec = VideoSpec { width: 16, height: 16, fps: 8.0, frames: levels.len(), quality: 100 };
        let mut sink = create(&Out::at(&path), &spec).unwrap();
        for level in levels {
            let pixel = |i: usize| [(level + (i as i32 * 7) % 11) as u8; 3];
            sink.push(&RgbImage { width: 16, height: 16, pixels: (0..256).flat_map(pixel).collect() }).unwrap();
        }
        sink.finish().unwrap();
        path
    }

    fn open(path: &Path) -> Input {
        Input::open(path).unwrap()
    }

    fn near(a: Option<f64>, b: f64) {
        assert!(a.is_some_and(|a| (a - b).abs() < 1e-6), "{a:?}, expected {b}");
    }

    #[test]
    fn a_steady_change_is_motion_and_no_flicker() {
        let dir = tempfile::tempdir().unwrap();
        let levels: Vec<i32> = (0..20).map(|i| 40 + 3 * i).collect();
        let m = measure(&open(&video(dir.path(), "a", &levels)), None, &[]).unwrap();
        assert_eq!((m.frames, m.size, m.series.change.len(), m.series.flicker.len()), (20, [16, 16], 19, 18));
        near(m.change, 3.0 / 255.0);
        near(m.flicker, 0.0);
        near(m.closing, 19.0);
        // From the mean of the first tenth (2 frames) to that of the last: 18 steps.
        let brightness = &m.drift[0];
        assert_eq!(brightness.name, "brightness");
        near(Some(brightness.last - brightness.first), 18.0 * 3.0 / 255.0);
        assert!(m.drift[1..].iter().all(|d| (d.last - d.first).abs() < 1e-6), "nothing else changes");
    }

    #[test]
    fn a_light_that_goes_on_and_off_is_flicker() {
        let dir = tempfile::tempdir().unwrap();
        let levels: Vec<i32> = (0..20).map(|i| 40 + 10 * (i % 2)).collect();
        let m = measure(&open(&video(dir.path(), "a", &levels)), None, &[]).unwrap();
        near(m.change, 10.0 / 255.0);
        near(m.flicker, 10.0 / 255.0);
    }

    #[test]
    fn a_jump_at_every_border_is_a_seam_of_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut level = 20;
        let levels: Vec<i32> = (0..32)
            .map(|i| {
                level += if i > 0 && i % 8 == 0 { 6 } else { 2 };
                level
            })
            .collect();
        let seams = [Seams::every(8, 32), Seams { name: "none".to_owned(), every: 1, borders: vec![3, 13] }];
        let m = measure(&open(&video(dir.path(), "a", &levels)), None, &seams).unwrap();
        near(m.seams[0].score, 3.0);
        near(m.seams[1].score, 1.0);
    }

    #[test]
    fn borders_of_key_frames_are_seen_from_key_frame_to_key_frame() {
        let dir = tempfile::tempdir().unwrap();
        // Each key frame is 4 frames long, and the step from the second to the third is double.
        let levels: Vec<i32> = (0..25).map(|i| 20 + i + (i - 8).clamp(0, 4)).collect();
        let seams = [Seams { name: "chunks".to_owned(), every: 4, borders: vec![3] }];
        let m = measure(&open(&video(dir.path(), "a", &levels)), None, &seams).unwrap();
        near(m.seams[0].score, 2.0);
    }

    #[test]
    fn a_video_is_no_distance_from_itself_and_some_from_another() {
        let dir = tempfile::tempdir().unwrap();
        let a = open(&video(dir.path(), "a", &[40, 43, 46, 49]));
        let b = open(&video(dir.path(), "b", &[45, 48, 51, 54]));
        let same = measure(&a, Some(&a), &[]).unwrap().against.unwrap();
        let pairs = same.pairs.unwrap();
        assert_eq!((pairs.psnr, pairs.psnr_least), (None, None));
        near(pairs.ssim, 1.0);
        near(pairs.flicker_error, 0.0);
        near(same.frechet, 0.0);
        let other = measure(&a, Some(&b), &[]).unwrap().against.unwrap();
        near(other.pairs.unwrap().psnr, 20.0 * (255.0f64 / 5.0).log10());
        near(other.pairs.unwrap().flicker_error, 0.0);
        near(other.change_ratio, 1.0);
        // Sixteen features, the mean luma of the cells, differ by 5/255 each; nothing else does.
        near(other.frechet, 16.0 * (5.0f64 / 255.0).powi(2));
        let longer = open(&video(dir.path(), "c", &[40, 43, 46, 49, 52]));
        assert!(measure(&a, Some(&longer), &[]).unwrap().against.unwrap().pairs.is_none());
    }

    #[test]
    fn a_single_frame_has_no_motion() {
        let dir = tempfile::tempdir().unwrap();
        let m = measure(&open(&video(dir.path(), "a", &[40])), None, &[Seams::every(4, 1)]).unwrap();
        assert_eq!((m.change, m.flicker, m.closing, m.seams[0].score), (None, None, None, None));
        assert!(serde_json::to_value(&m).is_ok());
    }
}
