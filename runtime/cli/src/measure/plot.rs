//! Numbers along time as a picture: a curve each, a grey line where units meet.

use std::fmt::Write;

use vldm_runtime::measure::{Measurement, Seams};

/// Pixels: of the picture, left of the curves, of a curve, between curves.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 120.0;
const HEIGHT: f64 = 90.0;
const GAP: f64 = 24.0;
/// More lines than this would hide the curves.
const MAX_LINES: usize = 200;

/// The picture as SVG.
pub fn svg(m: &Measurement, seams: &[Seams]) -> String {
    let looks = m.series.looks().map(|(name, values)| (name, 0, values));
    let curves = [("change", 1, &m.series.change[..]), ("flicker", 1, &m.series.flicker)].into_iter().chain(looks);
    let curves: Vec<_> = curves.filter(|(_, _, values)| values.len() > 1).collect();
    let height = GAP + curves.len() as f64 * (HEIGHT + GAP) + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let x = |frame: f64| LEFT + frame * (WIDTH - LEFT - 12.0) / (m.frames.max(2) - 1) as f64;
    let mut lines: Vec<usize> = seams.iter().flat_map(|s| s.borders.iter().map(|b| b * s.every)).collect();
    lines.sort_unstable();
    lines.dedup();
    let lines = if lines.len() > MAX_LINES { &[][..] } else { &lines };
    let mut top = GAP;
    for (name, first, values) in curves {
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let y = |v: f64| top + HEIGHT * (1.0 - v / most);
        for line in lines {
            let x = x(*line as f64);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{}\" stroke=\"#dde2e8\"/>",
                top + HEIGHT
            );
        }
        let points = values.iter().enumerate().map(|(i, v)| format!("{:.1},{:.1}", x((i + first) as f64), y(*v)));
        let points = points.collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#9aa5b1\"/>\n\
             <line x1=\"{LEFT}\" x2=\"{}\" y1=\"{bottom}\" y2=\"{bottom}\" stroke=\"#9aa5b1\"/>\n\
             <polyline fill=\"none\" stroke=\"#2a7de1\" points=\"{points}\"/>\n\
             <text x=\"10\" y=\"{}\" font-weight=\"bold\">{name}</text>\n\
             <text x=\"10\" y=\"{}\">most {most:.4}</text>",
            WIDTH - 12.0,
            top + 14.0,
            top + 30.0,
            bottom = top + HEIGHT,
        );
        top += HEIGHT + GAP;
    }
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{top}\">frames 0 to {}</text>\n</svg>", m.frames - 1);
    out
}
