//! `vldm completions`: prints a completion script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::output::text;

/// Print a completion script, for example `vldm completions bash > ~/.local/share/bash-completion/completions/vldm`.
#[derive(clap::Args)]
pub struct Args {
    /// The shell that will read it
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "vldm", &mut script);
    text(String::from_utf8_lossy(&script))
}
