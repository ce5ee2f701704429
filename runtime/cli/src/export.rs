//! `vldm export`: from a checkpoint to a bundle.

use std::path::PathBuf;

use vldm_exporter::{LinkMode, Request, export};

use crate::output::Output;

/// Turn a checkpoint (safetensors and config.json) into a bundle of ONNX graphs over its weights.
///
/// The weights stay as they are: the graphs refer to offsets in the safetensors files, which are copied into the bundle
/// (copies share their blocks where the file system can) or hard-linked with --link.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder, with model_index.json
    checkpoint: PathBuf,
    /// Bundle folder to write
    #[arg(short, long, value_name = "BUNDLE")]
    out: PathBuf,
    /// Copy the weights (the default)
    #[arg(long, conflicts_with = "link")]
    copy: bool,
    /// Hard-link the weights: no second copy on disk, but `onnx.checker` refuses files with several links
    #[arg(long)]
    link: bool,
    /// Weights to prefer where a component has several sets, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Replace a bundle that is already there
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let mut request = Request::new(&args.checkpoint, &args.out);
    request.link = if args.link && !args.copy { LinkMode::HardLink } else { LinkMode::Copy };
    request.force = args.force;
    request.variant = args.variant;
    let report = export(&request)?;
    out.result(&report)
}
