//! Windows that share frames with the one before, and where the shared frames go.

use std::ops::Range;

use super::Span;

/// `frames` frames in windows of `window`, each sharing `overlap` with the one before. The stream of the windows'
/// frames holds window after window, shared frames twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub(super) frames: usize,
    pub(super) window: usize,
    pub(super) overlap: usize,
}

impl Windows {
    fn stride(self) -> usize {
        self.window - self.overlap
    }

    /// How many windows it takes.
    pub(super) fn count(self) -> usize {
        if self.frames <= self.window { 1 } else { (self.frames - self.overlap).div_ceil(self.stride()) }
    }

    /// Frames that window `i` covers.
    pub(super) fn covered(self, i: usize) -> Range<usize> {
        let start = i * self.stride();
        start..self.frames.min(start + self.window)
    }

    /// Where window `i` lies in the stream of windows.
    pub(super) fn stored(self, i: usize) -> Range<usize> {
        let start = i * self.window;
        start..start + self.covered(i).len()
    }

    /// Length of the stream of windows.
    pub(super) fn stream_len(self) -> usize {
        self.stored(self.count() - 1).end
    }

    /// Frames that are complete once window `i` is.
    pub(super) fn completed(self, i: usize) -> Range<usize> {
        let covered = self.covered(i);
        if i + 1 == self.count() { covered } else { covered.start..covered.start + self.stride() }
    }

    /// What the completed frames are made of: those of window `i`, then the end of the window before, which fades out
    /// over the first `overlap` of them.
    pub(super) fn sources(self, stream: usize, i: usize) -> Vec<Span> {
        let stored = self.stored(i);
        let mut spans = vec![Span { stream, frames: stored.start..stored.start + self.completed(i).len() }];
        if i > 0 && self.overlap > 0 {
            spans.push(Span { stream, frames: stored.start - self.overlap..stored.start });
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_complete_every_frame_once_in_order() {
        for frames in 1..40 {
            for (window, overlap) in [(8, 0), (8, 2), (8, 4), (1, 0), (3, 1)] {
                let w = Windows { frames, window, overlap };
                let all: Vec<usize> = (0..w.count()).flat_map(|i| w.completed(i)).collect();
                assert_eq!(all, (0..frames).collect::<Vec<_>>(), "{w:?}");
                for i in 0..w.count() {
                    assert!(w.completed(i).len() <= w.covered(i).len() && !w.completed(i).is_empty());
                    let fading = w.sources(0, i).get(1).map_or(0, |s| s.frames.len());
                    assert!(fading <= w.completed(i).len(), "{w:?} {i}");
                }
            }
        }
    }
}
