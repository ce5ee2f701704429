//! A program that is timed beside ours, and the same from its side. `docs/bench.md` says how they speak.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use vldm_runtime::parity;

use super::paired::timed;
use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::machine;
use crate::output::text;

/// Most bytes of one answer, and of what is shown of a peer's complaints.
const MAX_LINE: u64 = 4096;

/// A running peer.
pub struct Peer {
    command: String,
    /// What it calls itself.
    pub name: String,
    child: Child,
    asks: ChildStdin,
    tells: BufReader<ChildStdout>,
    complaints: File,
}

/// What one call took.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Seconds on the clock.
    pub seconds: f64,
    /// Seconds of all processors together, where the system tells.
    pub processor_seconds: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    peer: String,
}

impl Peer {
    /// Starts `command`, tells it what is `asked`, and waits until it has answered once and written the answer.
    ///
    /// # Errors
    /// When it cannot be started, ends, or says anything else: with the end of what it wrote to standard error.
    pub fn start(command: &str, asked: &[OsString], threads: usize, answer: &Path) -> anyhow::Result<Self> {
        let complaints = tempfile::tempfile()?;
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {command} \"$@\""), "peer"])
            .args(asked)
            .args(["--threads", &threads.to_string(), "--answer"])
            .arg(answer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone()?)
            .spawn()
            .with_context(|| format!("--against `{command}`"))?;
        let (Some(asks), Some(tells)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("--against `{command}`: no pipes to it");
        };
        let (command, tells) = (command.to_owned(), BufReader::new(tells));
        let mut peer = Self { name: command.clone(), command, child, asks, tells, complaints };
        let Ready { peer: name } = peer.hear()?;
        peer.name = name;
        Ok(peer)
    }

    /// One call.
    ///
    /// # Errors
    /// As [`Peer::start`]; also when the times are no times.
    pub fn call(&mut self) -> anyhow::Result<Call> {
        // That the pipe is closed is found out by reading.
        let _ = self.asks.write_all(b"run\n").and_then(|()| self.asks.flush());
        let call: Call = self.hear()?;
        let time = |s: f64| s.is_finite() && s >= 0.0;
        ensure!(
            time(call.seconds) && call.processor_seconds.is_none_or(time),
            "--against `{}`: {call:?}",
            self.command
        );
        Ok(call)
    }

    /// The most memory it has held at once, in bytes, where the system tells.
    pub fn peak_memory(&self) -> Option<u64> {
        machine::peak_memory_of(self.child.id())
    }

    fn hear<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        let heard = self.tells.by_ref().take(MAX_LINE).read_line(&mut line);
        match (heard, serde_json::from_str(&line)) {
            (Ok(_), Ok(told)) => Ok(told),
            (Ok(0) | Err(_), _) => {
                // Dead or dying: what it complained of is complete then.
                let _ = self.child.kill();
                let _ = self.child.wait();
                let complaint = self.complaint();
                bail!("--against `{}` ended without an answer: {complaint}", self.command)
            }
            (Ok(_), Err(e)) => {
                bail!(
                    "--against `{}` said {:?}, which is no answer (docs/bench.md): {e}",
                    self.command,
                    line.trim_end()
                )
            }
        }
    }

    /// The end of what it wrote to standard error.
    fn complaint(&mut self) -> String {
        let mut bytes = Vec::new();
        let length = self.complaints.metadata().map_or(0, |m| m.len());
        let read = self.complaints.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE)));
        if read.and_then(|_| self.complaints.read_to_end(&mut bytes)).is_err() || bytes.is_empty() {
            return "it said nothing".to_owned();
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

/// What a peer is asked to do, as flags.
#[derive(Debug, Clone)]
pub struct Job {
    /// The file of recorded questions, named as the part.
    pub recording: PathBuf,
    /// Which of them.
    pub case: String,
    /// Where it writes its answer, in the format of a recording.
    pub answer: PathBuf,
}

/// The other side: answers the case with a part of `bundle`, named as the recording's file, until nobody asks any more.
///
/// # Errors
/// When the recording, the engine or the answer's file fails.
pub fn serve(bundle: &Bundle, engine: &Engine, job: &Job) -> anyhow::Result<()> {
    let part = job.recording.file_stem().unwrap_or_default().to_string_lossy();
    let cases = parity::cases(&job.recording)?;
    let Some(case) = cases.iter().find(|c| c.name == job.case) else {
        bail!("{}: no case is called `{}`", job.recording.display(), job.case);
    };
    let session = engine.backend.load(&bundle.path.join(&bundle.manifest.part(&part)?.file), &engine.options)?;
    let inputs: Vec<_> = case.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let names = session.outputs().iter().map(|port| port.name.clone());
    let answers: Vec<_> = names.zip(session.run(&inputs)?).collect();
    parity::write(&job.answer, &job.case, &answers)?;
    text(serde_json::json!({ "peer": format!("vldm {}", engine.backend.name()) }))?;
    for line in std::io::stdin().lines() {
        line?;
        let call = timed(|| session.run(&inputs).map(drop))?;
        text(serde_json::json!({ "seconds": call.seconds, "processor_seconds": call.processor_seconds }))?;
    }
    Ok(())
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(command: &str) -> anyhow::Result<Peer> {
        let path = Path::new("/nowhere");
        Peer::start(command, &["--case".into(), "a case".into()], 2, path)
    }

    fn error(command: &str) -> String {
        let run = || start(command)?.call();
        run().unwrap_err().to_string()
    }

    #[test]
    fn a_peer_is_told_its_job_and_asked_until_it_is_dropped() {
        let script = r#"sh -c 'echo "{\"peer\":\"$*\"}"; while read x; do echo "{\"seconds\":2,\"processor_seconds\":3}"; done' x"#;
        let mut peer = start(script).unwrap();
        assert_eq!(peer.name, "--case a case --threads 2 --answer /nowhere");
        for _ in 0..3 {
            let call = peer.call().unwrap();
            assert!((call.seconds - 2.0).abs() < 1e-9 && call.processor_seconds == Some(3.0));
        }
        assert!(peer.peak_memory().is_none_or(|n| n > 0));
    }

    #[test]
    fn a_peer_that_fails_is_an_error_with_its_own_last_words() {
        assert!(error("sh -c 'echo no module torch >&2; exit 3'").ends_with("no module torch"));
        assert!(error("no-such-program-anywhere").contains("not found"));
        assert!(error("sh -c 'echo hello; cat'").contains("\"hello\""));
        assert!(
            error(r#"sh -c 'echo "{\"peer\":\"p\"}"; read x; echo "{\"seconds\":-1,\"processor_seconds\":1}"'"#)
                .contains("-1")
        );
        assert!(error("true").contains("it said nothing"));
    }
}
