//! `vldm export`: from a checkpoint to a bundle.

use std::path::PathBuf;

use vldm_exporter::{LinkMode, Lora, Request, export, parse_lora};

use crate::output::Output;

/// Turn a checkpoint (safetensors and config.json) into a bundle of ONNX graphs over its weights.
///
/// The weights stay as they are: the graphs refer to offsets in the safetensors files, which are copied into the bundle
/// (copies share their blocks where the file system can) or hard-linked with --link.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder with model_index.json, or a single .safetensors file with Stable Diffusion's original names
    #[arg(required_unless_present = "spatial")]
    checkpoint: Option<PathBuf>,
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
    /// What the network predicts, where the checkpoint does not say it (single files) or says it wrongly
    #[arg(long, value_name = "TYPE", value_parser = ["epsilon", "v_prediction", "sample"])]
    prediction_type: Option<String>,
    /// Folder with vocab.json and merges.txt, which single files lack
    #[arg(long, value_name = "FOLDER")]
    tokenizer: Option<PathBuf>,
    /// Checkpoint whose UNet, autoencoder and text encoder are used (such as a DreamBooth), instead of the checkpoint's own
    #[arg(long, value_name = "CHECKPOINT")]
    spatial: Option<PathBuf>,
    /// Temporal layers to add: a Video LDM checkpoint, or AnimateDiff's motion modules (folder or file)
    #[arg(long, value_name = "LAYERS")]
    temporal: Option<PathBuf>,
    /// Low-rank adaptation to merge (kohya, diffusers or peft names), with what to multiply it by; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = parse_lora)]
    lora: Vec<Lora>,
    /// Replace a bundle that is already there
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let (checkpoint, spatial) = match (args.checkpoint, args.spatial) {
        (Some(checkpoint), spatial) => (checkpoint, spatial),
        (None, spatial) => (spatial.unwrap_or_default(), None),
    };
    let mut request = Request::new(&checkpoint, &args.out);
    (request.spatial, request.temporal) = (spatial, args.temporal);
    request.link = if args.link && !args.copy { LinkMode::HardLink } else { LinkMode::Copy };
    request.force = args.force;
    request.variant = args.variant;
    request.prediction_type = args.prediction_type;
    request.tokenizer = args.tokenizer;
    request.loras = args.lora;
    let report = export(&request)?;
    out.result(&report)
}
