//! A race as a picture: a bar for the median of each contestant, a line from its least to its most.

use std::fmt::Write;

use super::paired::{Measured, median};

/// Pixels: of the picture, left of the bars, of a row, of a heading.
const WIDTH: f64 = 760.0;
const LABELS: f64 = 270.0;
const ROW: f64 = 26.0;
const HEAD: f64 = 36.0;
/// Room for the numbers right of the longest line.
const NUMBERS: f64 = 130.0;

/// The picture as SVG, one block of bars a case.
pub fn svg(cases: &[Measured]) -> String {
    let height: f64 = cases.iter().map(|case| HEAD + ROW * case.contestants.len() as f64 + ROW / 2.0).sum();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = 0.0;
    for case in cases {
        text(&mut out, [10.0, top + HEAD - 12.0], "font-weight=\"bold\"", &case.title());
        top += HEAD;
        let longest = case.contestants.iter().map(|c| c.range()[1]).fold(f64::MIN_POSITIVE, f64::max);
        let scale = (WIDTH - LABELS - NUMBERS) / longest;
        for (i, c) in case.contestants.iter().enumerate() {
            let (middle, [least, most]) = (median(c.seconds.iter().copied()), c.range());
            let colour = if i == 0 { "#2a7de1" } else { "#9aa5b1" };
            text(&mut out, [10.0, top + 17.0], "", &c.name);
            let _ = writeln!(
                out,
                "<rect x=\"{LABELS}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
                 <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"black\"/>",
                top + 4.0,
                middle * scale,
                ROW - 8.0,
                LABELS + least * scale,
                LABELS + most * scale,
                y = top + ROW / 2.0,
            );
            let numbers = format!("{:.3} s, {:.2}x", middle, c.ratio);
            text(&mut out, [LABELS + most * scale + 8.0, top + 17.0], "", &numbers);
            top += ROW;
        }
        top += ROW / 2.0;
    }
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, [x, y]: [f64; 2], more: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::super::paired::Contestant;
    use super::*;

    #[test]
    fn each_contestant_has_a_bar_as_long_as_its_median() {
        let contestants = [("ours", 1.0), ("<theirs> & more", 2.0)].map(|(name, s)| {
            let mut c = Contestant::new(name.to_owned(), 0.0);
            (c.seconds, c.ratio) = (vec![s, s, s], s);
            c
        });
        let picture = svg(&[Measured::new("unet", "t8", 2, contestants.into())]);
        let long = WIDTH - LABELS - NUMBERS;
        for width in [long, long / 2.0] {
            assert!(picture.contains(&format!("width=\"{width:.1}\"")), "{picture}");
        }
        assert!(picture.contains("&lt;theirs&gt; &amp; more") && picture.contains("2.00x"));
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
