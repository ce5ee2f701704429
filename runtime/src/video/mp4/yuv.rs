//! RGB to the planes that H.264 encodes, and back.

use openh264::formats::YUVSource;

use crate::image::RgbImage;

/// Luma and chroma planes, chroma at half the size. BT.709, limited range (16 to 235, 16 to 240).
pub(super) struct Yuv {
    width: usize,
    height: usize,
    y: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
}

/// Weights of red and blue in luma. Source: ITU-R BT.709-6, 3.2.
const RED: f32 = 0.2126;
const BLUE: f32 = 0.0722;

/// Luma in 0..255, and the two colour differences in −127.5..127.5.
fn luma_and_differences(r: f32, g: f32, b: f32) -> (f32, f32, f32) {
    let luma = RED * r + (1.0 - RED - BLUE) * g + BLUE * b;
    (luma, (b - luma) / (2.0 * (1.0 - BLUE)), (r - luma) / (2.0 * (1.0 - RED)))
}

impl Yuv {
    /// Black; both sides are even.
    pub(super) fn new(width: usize, height: usize) -> Self {
        let (pixels, quarter) = (width * height, width * height / 4);
        Self { width, height, y: vec![16; pixels], u: vec![128; quarter], v: vec![128; quarter] }
    }

    /// Takes over the pixels of a picture of the same size. Chroma is the mean of 2×2 pixels.
    pub(super) fn read(&mut self, pixels: &[u8]) {
        let half = self.width / 2;
        for block in 0..half * (self.height / 2) {
            let (row, column) = (block / half * 2, block % half * 2);
            let (mut u, mut v) = (0.0, 0.0);
            for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let at = (row + dy) * self.width + column + dx;
                let [r, g, b] = [0, 1, 2].map(|c| f32::from(pixels[at * 3 + c]));
                let (luma, blue, red) = luma_and_differences(r, g, b);
                self.y[at] = (16.0 + luma * (219.0 / 255.0)).round() as u8;
                u += blue;
                v += red;
            }
            self.u[block] = (128.0 + u / 4.0 * (224.0 / 255.0)).round() as u8;
            self.v[block] = (128.0 + v / 4.0 * (224.0 / 255.0)).round() as u8;
        }
    }
}

impl YUVSource for Yuv {
    fn dimensions(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.width, self.width / 2, self.width / 2)
    }

    fn y(&self) -> &[u8] {
        &self.y
    }

    fn u(&self) -> &[u8] {
        &self.u
    }

    fn v(&self) -> &[u8] {
        &self.v
    }
}

/// How planes become colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Colours {
    /// Weights of red and blue in luma.
    weights: [f32; 2],
    /// Luma of black, and codes from black to white and from one end of chroma to the other.
    range: [f32; 3],
}

impl Colours {
    /// ITU-R BT.709.
    pub(super) fn bt709(full: bool) -> Self {
        Self::of([RED, BLUE], full)
    }

    /// ITU-R BT.601. Source: ITU-R BT.601-7, 2.5.1.
    pub(super) fn bt601(full: bool) -> Self {
        Self::of([0.299, 0.114], full)
    }

    fn of(weights: [f32; 2], full: bool) -> Self {
        Self { weights, range: if full { [0.0, 255.0, 255.0] } else { [16.0, 219.0, 224.0] } }
    }

    /// The picture of three planes; each 2×2 pixels share their chroma.
    pub(super) fn picture(&self, planes: &impl YUVSource) -> RgbImage {
        let ((width, height), (y_stride, u_stride, v_stride)) = (planes.dimensions(), planes.strides());
        let ([red, blue], [black, span, chroma]) = (self.weights, self.range);
        let mut pixels = Vec::with_capacity(width * height * 3);
        for row in 0..height {
            for column in 0..width {
                let luma = (f32::from(planes.y()[row * y_stride + column]) - black) / span;
                let difference =
                    |plane: &[u8], stride: usize| (f32::from(plane[row / 2 * stride + column / 2]) - 128.0) / chroma;
                let b = luma + 2.0 * (1.0 - blue) * difference(planes.u(), u_stride);
                let r = luma + 2.0 * (1.0 - red) * difference(planes.v(), v_stride);
                let g = (luma - red * r - blue * b) / (1.0 - red - blue);
                pixels.extend([r, g, b].map(|c| (c * 255.0).round().clamp(0.0, 255.0) as u8));
            }
        }
        RgbImage { width, height, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_give_back_the_colours_they_were_made_of() {
        for rgb in [[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [12, 34, 250], [90, 140, 60]] {
            let mut yuv = Yuv::new(4, 2);
            yuv.read(&rgb.repeat(8));
            let picture = Colours::bt709(false).picture(&yuv);
            assert_eq!((picture.width, picture.height), (4, 2));
            assert!(picture.pixels.iter().zip(rgb.repeat(8)).all(|(a, b)| a.abs_diff(b) <= 3), "{picture:?}");
        }
    }

    /// White in full range is 255; BT.601 has another red. Source: ITU-R BT.601-7 colour bars, (81, 90, 240).
    #[test]
    fn the_range_and_the_matrix_are_those_that_the_file_names() {
        let flat = |y, u, v| Yuv { width: 2, height: 2, y: vec![y; 4], u: vec![u], v: vec![v] };
        let near = |a: &RgbImage, b: [u8; 3]| a.pixels.iter().zip(b.repeat(4)).all(|(a, b)| a.abs_diff(b) <= 1);
        assert!(near(&Colours::bt601(false).picture(&flat(81, 90, 240)), [254, 0, 0]));
        assert!(near(&Colours::bt709(true).picture(&flat(255, 128, 128)), [255, 255, 255]));
        assert!(!near(&Colours::bt709(false).picture(&flat(81, 90, 240)), [254, 0, 0]));
    }

    /// Colour bars of ITU-R BT.709 in limited range.
    #[test]
    fn colours_map_to_their_codes() {
        for (rgb, expected) in [
            ([255, 255, 255], (235, 128, 128)),
            ([0, 0, 0], (16, 128, 128)),
            ([255, 0, 0], (63, 102, 240)),
            ([0, 255, 0], (173, 42, 26)),
            ([0, 0, 255], (32, 240, 118)),
        ] {
            let mut yuv = Yuv::new(2, 2);
            yuv.read(&rgb.repeat(4));
            assert_eq!((yuv.y[3], yuv.u[0], yuv.v[0]), expected, "{rgb:?}");
        }
    }
}
