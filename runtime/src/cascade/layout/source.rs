//! Frames that exist already, in the place of the stages that make them.

use super::super::plan::{File, PlanError};
use super::build::Builder;
use super::needs::Needs;
use super::windows::Windows;
use super::{Kind, Span, Stage};
use crate::scheduler::Table;
use crate::video::Input;

/// Frames that are read at once where no upsampler says how many it takes.
const WINDOW: usize = 8;

impl Builder<'_> {
    /// The frames of a file, or their latents where frames are made between them. Returns how they are cut into windows, and
    /// their rate where the file says it.
    pub(super) fn source(&mut self, source: &File, needs: Needs) -> Result<(Windows, Option<f64>), PlanError> {
        let plan = self.plan;
        let fills = !plan.interpolate.is_empty();
        if let Some(size) = plan.size.filter(|_| !fills) {
            return Err(plan.error("size", "no size beside a source, which has its own", format!("{size:?}")));
        }
        let part = if fills { self.part("source", "encoder", &[])? } else { None };
        if fills {
            self.tokens("interpolate", needs)?;
        }
        let input = Input::open(&plan.resolve(&source.file));
        let input = input.map_err(|e| plan.error("source.file", "frames that can be read", e.to_string()))?;
        let ([height, width], frames) = (input.size, input.frames());
        let window = plan.upsample.as_ref().map_or(WINDOW, |u| u.window);
        let windows = Windows { frames, window, overlap: 0 };
        let scale = self.bundle.cascade.spatial_factor;
        let [_, rows, columns] = self.latent;
        let stream = self.stream(frames, if fills { self.latent } else { [3, height, width] });
        for i in 0..windows.count() {
            self.unit(i, vec![], Span { stream, frames: windows.covered(i) });
        }
        let stage = Stage {
            kind: Kind::Source,
            part,
            units: windows.count(),
            frames,
            shape: if fills {
                vec![1, 3, rows * scale, columns * scale]
            } else {
                vec![frames.min(window), 3, height, width]
            },
            steps: 1,
            evaluations: if fills { frames } else { 0 },
            noise_bytes: 0,
        };
        self.stage(stage, Table::default());
        Ok((windows, input.fps))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::testing::{bundle, plan};
    use super::super::{Kind, Layout};
    use crate::image::RgbImage;
    use crate::video::{Out, VideoSpec, create};

    #[test]
    fn frames_are_made_between_those_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("frames");
        let spec = VideoSpec { width: 6, height: 4, fps: 8.0, frames: 3, quality: 80 };
        let mut sink = create(&Out::at(&path), &spec).unwrap();
        (0..3).for_each(|_| sink.push(&RgbImage { width: 6, height: 4, pixels: vec![9; 72] }).unwrap());
        sink.finish().unwrap();
        let stages = json!([{"op": "source", "file": path}, {"op": "interpolate"}, {"op": "decode"}]);
        let layout = Layout::new(&plan(&json!({"version": 1, "stages": stages})), &bundle()).unwrap();
        assert_eq!(layout.frames, 9);
        let kinds: Vec<_> = layout.stages.iter().map(|s| (s.kind, s.part)).collect();
        let parts = [Some("encoder"), Some("interpolate"), Some("decoder"), None];
        assert_eq!(
            kinds,
            [Kind::Source, Kind::Interpolate(0), Kind::Decode, Kind::Video].into_iter().zip(parts).collect::<Vec<_>>()
        );
        assert_eq!(layout.streams[0].shape, layout.streams[1].shape, "both are latents");
    }
}
