//! Pictures against what Pillow, diffusers and transformers make of them.

use ndarray::ArrayD;
use serde::Deserialize;
use vldm_graphs::bundle::Picture;

use super::*;

/// Pillow 13.0.0, diffusers 0.42.1, transformers 5.23.0; see `tests/golden/README.md`.
const GOLDEN: &str = include_str!("../../../tests/golden/image.json");

#[derive(Deserialize)]
struct Golden {
    mean: [f64; 3],
    std: [f64; 3],
    every: usize,
    lanczos: Vec<Case>,
    bicubic: Vec<Case>,
    frame: Vec<f64>,
    smooth: Vec<Case>,
    cropped: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    from: [usize; 2],
    to: [usize; 2],
    pixels: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(GOLDEN).unwrap()
}

/// The picture of `tests/golden/image.py`.
fn picture([height, width]: [usize; 2]) -> RgbImage {
    let at = |i: usize| {
        let (y, x, c) = (i / 3 / width, i / 3 % width, i % 3);
        ((37 * x + 91 * y + 53 * c + 7 * x * y) % 256) as u8
    };
    RgbImage { width, height, pixels: (0..height * width * 3).map(at).collect() }
}

fn shown(golden: &Golden, case: &Case) -> Picture {
    Picture { size: case.to, mean: golden.mean, std: golden.std }
}

fn assert_close(got: &ArrayD<f32>, expected: &[f64], every: usize, what: &[usize; 2]) {
    let every = if got.len() <= 1000 { 1 } else { every };
    let got: Vec<f32> = got.iter().copied().step_by(every).collect();
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() < 2e-5, "{what:?}: {a} is not {b}");
    }
}

#[test]
fn pictures_are_scaled_bit_by_bit_as_pillow_does() {
    let golden = golden();
    for (filter, cases) in [(Filter::Lanczos, &golden.lanczos), (Filter::Bicubic, &golden.bicubic)] {
        for case in cases {
            let scaled = resize(&picture(case.from), case.to, filter);
            assert_eq!([scaled.height, scaled.width], case.to);
            let pixels: Vec<f64> = scaled.pixels.iter().map(|&p| f64::from(p)).collect();
            assert_eq!(pixels, case.pixels, "{filter:?} {:?} to {:?}", case.from, case.to);
        }
    }
}

#[test]
fn a_scaled_frame_is_that_of_diffusers() {
    assert_close(&lanczos(&picture([9, 14]), [4, 6]).into_dyn(), &golden().frame, 1, &[9, 14]);
}

#[test]
fn a_picture_of_the_right_size_is_left_alone() {
    assert_eq!(resize(&picture([7, 9]), [7, 9], Filter::Lanczos), picture([7, 9]));
}

#[test]
fn pixel_values_are_those_of_stable_video_diffusion() {
    let golden = golden();
    for case in &golden.smooth {
        let pixels = clip_pixels(&picture(case.from).to_frame(), &shown(&golden, case));
        assert_close(&pixels.into_dyn(), &case.pixels, golden.every, &case.from);
    }
}

#[test]
fn cut_pixel_values_are_those_of_clips_processor() {
    let golden = golden();
    for case in &golden.cropped {
        let pixels = cropped_pixels(&picture(case.from), &shown(&golden, case));
        assert_close(&pixels.into_dyn(), &case.pixels, golden.every, &case.from);
    }
}

#[test]
fn pictures_of_one_pixel_are_prepared_too() {
    let shown = Picture { size: [8, 8], mean: [0.0; 3], std: [1.0; 3] };
    let one = RgbImage { width: 1, height: 1, pixels: vec![255; 3] };
    assert!(clip_pixels(&one.to_frame(), &shown).iter().all(|v| (v - 1.0).abs() < 1e-6));
    assert!(cropped_pixels(&one, &shown).iter().all(|v| (v - 1.0).abs() < 1e-6));
    assert!(lanczos(&one, [3, 5]).iter().all(|v| (v - 1.0).abs() < 1e-6));
}

fn write(path: &Path, colour: png::ColorType, depth: png::BitDepth, width: u32, height: u32, data: &[u8]) {
    let mut encoder = png::Encoder::new(File::create(path).unwrap(), width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

#[test]
fn eight_bits_are_rounded_as_the_reference_does() {
    let frame = Array3::from_shape_vec((3, 1, 2), vec![-1.0, 1.0, 0.0, 5.0, -9.0, 0.1]).unwrap();
    let image = RgbImage::from_frame(&frame.view());
    // torch: ((x.clamp(-1, 1) + 1) * 127.5).round() gives 0 255 128 255 0 140
    assert_eq!(image.pixels, [0, 128, 0, 255, 255, 140]);
    assert_eq!(RgbImage::from_frame(&image.to_frame().view()), image);
}

#[test]
fn pictures_of_every_colour_type_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.png");
    for (colour, depth, data, expected) in [
        (png::ColorType::Rgb, png::BitDepth::Eight, vec![1, 2, 3], [1, 2, 3]),
        (png::ColorType::Grayscale, png::BitDepth::Eight, vec![9], [9, 9, 9]),
        (png::ColorType::Grayscale, png::BitDepth::One, vec![0x80], [255, 255, 255]),
        (png::ColorType::Rgba, png::BitDepth::Eight, vec![255, 100, 0, 51], [51, 20, 0]),
        (png::ColorType::Rgb, png::BitDepth::Sixteen, vec![7, 1, 8, 1, 9, 1], [7, 8, 9]),
    ] {
        write(&path, colour, depth, 1, 1, &data);
        assert_eq!(RgbImage::open(&path).unwrap().pixels, expected, "{colour:?} {depth:?}");
    }
}

#[test]
fn what_is_no_picture_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.png");
    assert!(matches!(RgbImage::open(&path), Err(ImageError::Io { .. })));
    std::fs::write(&path, "hello").unwrap();
    let e = RgbImage::open(&path).unwrap_err().to_string();
    assert!(e.contains("x.png: expected a PNG picture"), "{e}");
}

#[test]
fn a_picture_as_thin_as_a_thread_is_refused_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.png");
    let depth = png::BitDepth::Eight;
    write(&path, png::ColorType::Grayscale, depth, MAX_SIDE + 1, 1, &vec![0; MAX_SIDE as usize + 1]);
    let e = RgbImage::open(&path).unwrap_err().to_string();
    assert!(e.contains("16384 on a side, found 16385 x 1"), "{e}");
}

#[test]
fn covering_keeps_the_centre_and_the_shape() {
    let ramp = Array3::from_shape_fn((3, 4, 8), |(_, _, x)| x as f32);
    assert_eq!(cover(&ramp, [4, 8]), ramp);
    let cut = cover(&ramp, [4, 4]);
    assert_eq!(cut.slice(ndarray::s![0, 0, ..]).to_vec(), [2.0, 3.0, 4.0, 5.0]);
    let half = cover(&ramp, [2, 4]);
    assert!((half[[0, 0, 1]] - 2.5).abs() < 1e-6, "{half}");
    assert_eq!(cover(&ramp, [8, 16]).dim(), (3, 8, 16));
}
