//! Where units of work meet in the video, for those who measure it.

use super::{Kind, Layout};
use crate::measure::Seams;

impl Layout {
    /// The borders between units of each stage that has several. A gap has two: the steps onto and off a given frame.
    pub fn seams(&self) -> Vec<Seams> {
        let stages = self.stages.iter().enumerate().filter(|(_, s)| !matches!(s.kind, Kind::Source | Kind::Video));
        let seams = stages.map(|(i, stage)| self.seams_of(i, stage.kind));
        seams.filter(|seams| !seams.borders.is_empty()).collect()
    }

    fn seams_of(&self, stage: usize, kind: Kind) -> Seams {
        let mut borders = vec![];
        let mut every = 1;
        for unit in self.units.iter().filter(|u| u.stage == stage) {
            let Some(writes) = &unit.writes else { continue };
            let (start, end) = (writes.frames.start, writes.frames.end);
            match kind {
                // Windows may share frames, so their streams are longer than the video.
                Kind::Upsample => borders.extend(unit.reads.first().map(|span| span.frames.start)),
                Kind::Interpolate(_) => borders.extend([start, end - 1]),
                _ => borders.push(start),
            }
            if kind != Kind::Upsample && kind != Kind::Decode {
                let frames = self.streams[writes.stream].frames;
                let open = usize::from(!self.closed);
                every = ((self.frames - open) / (frames - open).max(1)).max(1);
            }
        }
        let last = (self.frames - 1) / every;
        borders.retain(|&b| b > 0 && b <= last);
        borders.dedup();
        Seams { name: kind.name().to_owned(), every, borders }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::testing::{bundle, plan, whole};
    use super::*;

    #[test]
    fn units_meet_where_their_frames_lie_in_the_video() {
        let mut document = whole(1);
        document["stages"][6]["overlap"] = json!(2);
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        let seams = layout.seams();
        let of = |name: &str| {
            seams.iter().find(|s| s.name == name).map(|s| (s.every, s.borders[..3.min(s.borders.len())].to_vec()))
        };
        // 4 key frames, 2 more by the chunk, 6 in all: 21, then 81 frames.
        assert_eq!(of("keyframes"), None, "a single unit");
        assert_eq!(of("predict"), Some((16, vec![4])));
        assert_eq!(of("interpolate-1"), Some((4, vec![4, 5, 8])));
        assert_eq!(of("interpolate-2"), Some((1, vec![4, 5, 8])));
        assert_eq!(of("decode"), Some((1, vec![8, 16, 24])));
        assert_eq!(of("upsample"), Some((1, vec![6, 12, 18])));
        for s in &seams {
            assert!(s.borders.iter().all(|b| b * s.every < layout.frames), "{s:?}");
        }
    }
}
