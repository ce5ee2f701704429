//! Sizes that differ from one call of a network to the next, for engines that are built for a range of them.

use super::{Kind, LONG, Layout, LongClip, Unit};
use crate::backend::Profile;
use crate::sampler::windows::Windows;

impl Layout {
    /// Sizes of each part that units ask for and that their first call does not tell: frames of a window, pictures that
    /// are decoded at once, texts. All others are the same in every call of a plan.
    pub(crate) fn sizes(&self) -> Vec<(&'static str, Profile)> {
        let mut found: Vec<(&'static str, Profile)> = vec![];
        for unit in &self.units {
            let Some(part) = self.stages[unit.stage].part else { continue };
            let at = found.iter().position(|(name, _)| *name == part).unwrap_or_else(|| {
                found.push((part, Profile::default()));
                found.len() - 1
            });
            self.add(unit, part, &mut found[at].1);
        }
        found
    }

    fn add(&self, unit: &Unit, part: &str, sizes: &mut Profile) {
        let stage = &self.stages[unit.stage];
        let read = unit.reads.first().map_or(0, |span| span.frames.len());
        match (stage.kind, &self.long) {
            (Kind::Keyframes, Some(LongClip::Context(windows))) => {
                for frames in windows.iter().flat_map(Windows::frames) {
                    sizes.add("frames", frames.len());
                }
            }
            (Kind::Keyframes | Kind::Predict, _) if stage.shape.len() == 5 => sizes.add("frames", stage.shape[1]),
            (Kind::Interpolate(_), _) if read > 0 => sizes.add("frames", self.factor * (read - 1) + 1),
            (Kind::Decode | Kind::Upsample, _) => {
                sizes.add(if stage.shape.len() == 5 { "frames" } else { "batch" }, read);
            }
            _ => {}
        }
        if part == LONG {
            for cue in self.cues.values().chain([&self.none]) {
                sizes.add("texts", cue.prompts.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::testing::families::text_to_video;
    use super::super::super::testing::{bundle, plan, whole};
    use super::*;

    fn said(layout: &Layout) -> Vec<String> {
        layout.sizes().iter().map(|(part, sizes)| format!("{part} {sizes}")).collect()
    }

    #[test]
    fn the_ends_of_a_video_have_smaller_windows() {
        let mut document = whole(2);
        document["stages"][5] = json!({"op": "decode", "window": 8, "halo": 2});
        document["stages"][6]["overlap"] = json!(2);
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        // 113 frames: fourteen windows of eight and one frame. The first window sees two frames more, the others four.
        let expected = ["keyframes frames=4", "interpolate frames=5", "decoder frames=3..12", "upsampler frames=5..8"];
        assert_eq!(said(&layout), expected);
    }

    #[test]
    fn single_pictures_are_decoded_in_batches_and_texts_are_counted() {
        let stages = json!([
            {"op": "conditions", "prompt": {"0": "a cat", "3": "a dog"}},
            {"op": "keyframes", "frames": 4}, {"op": "decode", "temporal": false, "window": 3}, {"op": "video"},
        ]);
        let layout = Layout::new(&plan(&json!({"version": 1, "stages": stages})), &text_to_video()).unwrap();
        assert_eq!(said(&layout), ["keyframes_long frames=4, texts=1..2", "image_decoder batch=1..3"]);
    }
}
