//! Tests that MP4 files are read as they were written, and that broken ones are refused.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::video::{Input, Out, create};

const FRAMES: usize = 20;

fn picture(frame: usize) -> RgbImage {
    let (width, height) = (64, 32);
    let pixel = |i: usize| {
        let inside = (2 * frame..2 * frame + 16).contains(&(i % width)) && (8..24).contains(&(i / width));
        if inside { [220, 60, 40] } else { [60, 90, 160] }
    };
    RgbImage { width, height, pixels: (0..width * height).flat_map(pixel).collect() }
}

fn written(folder: &Path, fps: f64) -> PathBuf {
    let path = folder.join("a.mp4");
    let spec = VideoSpec { width: 64, height: 32, fps, frames: FRAMES, quality: 100 };
    let mut sink = create(&Out::at(&path), &spec).unwrap();
    (0..FRAMES).for_each(|i| sink.push(&picture(i)).unwrap());
    sink.finish().unwrap();
    path
}

/// Mean difference of two pictures, 0..255.
fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    a.pixels.iter().zip(&b.pixels).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.pixels.len() as f64
}

#[test]
fn frames_are_read_back_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let input = Input::open(&written(dir.path(), 4.0)).unwrap();
    assert_eq!((input.frames(), input.size), (FRAMES, [32, 64]));
    assert!((input.fps.unwrap() - 4.0).abs() < 1e-9);
    // Key frames are 0, 8 and 16. In order, backwards, across key frames, one frame twice, and all at once.
    for range in [0..8, 8..16, 16..20, 3..5, 15..17, 4..5, 4..5, 0..20] {
        let frames = input.read(range.clone()).unwrap();
        assert_eq!(frames.len(), range.len());
        for (i, frame) in range.zip(&frames) {
            let found = difference(frame, &picture(i));
            assert!(found < 4.0, "frame {i}: {found}");
            let others = (0..FRAMES).filter(|&j| j != i).map(|j| difference(frame, &picture(j)));
            assert!(others.fold(f64::MAX, f64::min) > found, "frame {i} is nearest to itself");
        }
    }
}

/// How the file was made: `tests/fixtures/video/README.md`. Its luma is of limited range.
#[test]
fn frames_that_are_stored_out_of_order_are_shown_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/video/bframes.mp4");
    let input = Input::open(&path).unwrap();
    assert_eq!((input.frames(), input.size), (12, [32, 32]));
    assert!((input.fps.unwrap() - 12.0).abs() < 1e-9);
    for window in [12, 5, 1] {
        for start in (0..12).step_by(window) {
            let range = start..12.min(start + window);
            for (n, frame) in range.clone().zip(input.read(range).unwrap()) {
                let mean = frame.pixels.iter().map(|p| f64::from(*p)).sum::<f64>() / frame.pixels.len() as f64;
                let luma = 30.0 + 14.0 * n as f64 + 15.5;
                let expected = ((luma - 16.0) * 255.0 / 219.0).min(255.0);
                assert!((mean - expected).abs() < 6.0, "frame {n}: {mean}, expected {expected}");
            }
        }
    }
}

#[test]
fn what_is_no_film_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(written(dir.path(), 4.0)).unwrap();
    let path = dir.path().join("b.mp4");
    let refusal = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Input::open(&path).unwrap_err().to_string()
    };
    let at = |name: &[u8]| good.windows(name.len()).position(|w| w == name).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    assert!(refusal(b"").contains("b.mp4: not an MP4 that can be read: no index (`moov`)"));
    assert!(refusal(&good[..200]).contains("a box that ends too early"));
    assert!(refusal(&with(at(b"avc1\0"), b"hvc1")).contains("video of the kind `hvc1` instead of H.264 (`avc1`)"));
    assert!(refusal(&with(at(b"moov"), b"moof")).contains("a fragmented file; `ffmpeg -i FILE -c copy"));
    assert!(refusal(&with(at(b"vide"), b"soun")).contains("no video track"));
    assert!(refusal(&with(at(b"stsz") + 12, &[0xff; 4])).contains("4294967295 frames; 1 to 100000 are read"));
    assert!(refusal(&with(at(b"stsz") + 16, &[0x7f; 4])).contains("frame 0 lies outside the file"));
    assert!(refusal(&with(at(b"co64") + 12, &[0xff; 8])).contains("frame 0 lies outside the file"));
    assert!(refusal(&with(at(b"stsc") + 16, &[0, 0, 0, 1])).contains("places of 1 frames out of 20"));
    assert!(refusal(&with(at(b"mdat") + 12, &[0xff; 4])).contains("has a unit that is longer than itself"));
    assert!(refusal(&with(at(b"avc1\0") + 28, &[0xff; 4])).contains("65535 x 65535 pixels"));
    assert!(refusal(&with(at(b"avc1\0") + 28, &[0, 48])).contains("expected 48 x 32 pixels, found 64 x 32"));
}

/// No index, whatever is wrong with it, makes the reader panic, hang or take what the file cannot hold.
#[test]
fn every_damaged_index_is_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(written(dir.path(), 4.0)).unwrap();
    let index = good.windows(4).position(|w| w == b"mdat").unwrap();
    let path = dir.path().join("b.mp4");
    let mut refused = 0;
    for at in 0..index {
        for value in [0, 0x7f, 0xff] {
            let mut copy = good.clone();
            copy[at] = value;
            fs::write(&path, &copy).unwrap();
            refused += usize::from(index::Index::read(&mut fs::File::open(&path).unwrap()).is_err());
        }
    }
    assert!(refused > index / 4, "{refused} of {}", 3 * index);
    for length in 0..index {
        fs::write(&path, &good[..length]).unwrap();
        assert!(index::Index::read(&mut fs::File::open(&path).unwrap()).is_err(), "{length} bytes");
    }
}

#[test]
fn damaged_frames_are_refused_or_shown_but_nothing_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let good = fs::read(written(dir.path(), 4.0)).unwrap();
    let data = good.windows(4).position(|w| w == b"mdat").unwrap();
    let path = dir.path().join("b.mp4");
    for at in (data + 12..good.len()).step_by(17) {
        let mut copy = good.clone();
        copy[at] ^= 0x55;
        fs::write(&path, &copy).unwrap();
        if let Ok(input) = Input::open(&path) {
            let _either = input.read(0..input.frames());
        }
    }
}
