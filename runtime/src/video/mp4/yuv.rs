//! RGB to the planes that H.264 encodes.

use openh264::formats::YUVSource;

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

#[cfg(test)]
mod tests {
    use super::*;

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
