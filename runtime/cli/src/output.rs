//! Where results and notes go: results to standard output as text or JSON, everything else to standard error.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

/// How this run prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Results and errors as JSON.
    pub json: bool,
}

impl Output {
    /// Prints the result of a command: `Display` for people, `Serialize` with `--json`.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn result<T: Serialize + Display>(self, value: &T) -> anyhow::Result<()> {
        if self.json { json(value) } else { text(value) }
    }

    /// The end of a failed run.
    pub fn error(self, error: &anyhow::Error) {
        let sentence = sentence(error);
        if self.json {
            note(serde_json::json!({ "error": sentence }));
        } else {
            note(format!("error: {sentence}"));
        }
    }
}

/// Prints text to standard output, ending in a line break.
///
/// # Errors
/// When standard output cannot be written.
pub fn text(value: impl Display) -> anyhow::Result<()> {
    let text = value.to_string();
    write_out(text.trim_end_matches('\n').as_bytes())
}

/// Prints a value as JSON.
///
/// # Errors
/// When standard output cannot be written.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    write_out(serde_json::to_string_pretty(value)?.as_bytes())
}

/// One line for the person at the terminal.
pub fn note(line: impl Display) {
    // Nobody can be told that standard error is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// The error and its causes, joined by colons and on one line; a cause that its parent already quotes is left out.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A reader that closes the pipe early (`| head`) has seen enough: that is no failure.
fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Bytes for people: `27.2 MB`.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        _ if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        _ if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        _ => format!("{n} B"),
    }
}

/// Seconds for people: `640 ms`, `12.3 s`, `2 min 05 s`.
pub fn seconds(s: f64) -> String {
    match s {
        _ if s < 1.0 => format!("{:.0} ms", s * 1e3),
        _ if s < 100.0 => format!("{s:.1} s"),
        _ => format!("{} min {:02} s", (s / 60.0) as u64, (s % 60.0) as u64),
    }
}

/// Columns of text, each as wide as its widest cell; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(
            table(&[row("part", "nodes"), row("image_upsampler", "9")]),
            "part             nodes\nimage_upsampler  9"
        );
    }

    #[test]
    fn a_cause_that_is_already_quoted_is_not_repeated() {
        let error = anyhow::anyhow!("no such\n file").context("a.json: no such file").context("part `unet`");
        assert_eq!(sentence(&error), "part `unet`: a.json: no such file");
        assert_eq!(sentence(&anyhow::anyhow!("b").context("a")), "a: b");
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([bytes(12), bytes(27_200_000), bytes(2_500_000_000)], ["12 B", "27.2 MB", "2.50 GB"]);
        assert_eq!([seconds(0.64), seconds(12.34), seconds(125.2)], ["640 ms", "12.3 s", "2 min 05 s"]);
    }
}
