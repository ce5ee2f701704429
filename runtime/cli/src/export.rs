//! `vldm export`: from a checkpoint to a bundle.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValuesParser;
use vldm_exporter::{LinkMode, Lora, Request, TritonDevice, export, parse_lora, triton};
use vldm_graphs::bundle::MANIFEST;
use vldm_optimize::Target;

use crate::bundle::Bundle;
use crate::optimize::{Settings, rewrite};
use crate::output::{Output, note};

/// Turn a checkpoint (safetensors and config.json) into a bundle of ONNX graphs over its weights.
///
/// The weights stay as they are: the graphs refer to offsets in the safetensors files, which are copied into the bundle
/// (copies share their blocks where the file system can) or hard-linked with --link.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder with model_index.json, or a single .safetensors file with Stable Diffusion's original names; with
    /// --layout triton a bundle too
    #[arg(required_unless_present = "spatial")]
    checkpoint: Option<PathBuf>,
    /// Bundle folder to write
    #[arg(short, long, value_name = "BUNDLE")]
    out: PathBuf,
    /// What to write: a bundle, or a model repository for a Triton server (docs/engines.md)
    #[arg(long, value_name = "LAYOUT", value_enum, default_value_t = Layout::Bundle)]
    layout: Layout,
    /// With --layout triton, what to optimise the graphs for, and what the server runs them on
    #[arg(long, value_name = "TARGET", value_parser = PossibleValuesParser::new(SERVED.map(Target::name)))]
    target: Option<String>,
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

/// What to write.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Layout {
    /// A bundle.
    Bundle,
    /// A model repository for a Triton server.
    Triton,
}

/// What Triton's backend runs.
const SERVED: [Target; 3] = [Target::Cpu, Target::Cuda, Target::TensorRt];

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    if args.layout == Layout::Triton {
        return repository(args, out);
    }
    ensure!(args.target.is_none(), "--target is for --layout triton; `vldm optimize` writes optimised bundles");
    let report = export(&request(args))?;
    out.result(&report)
}

fn request(args: Args) -> Request {
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
    request
}

/// Writes a model repository: of a bundle, or of a checkpoint that is exported on the way.
fn repository(args: Args, out: Output) -> anyhow::Result<()> {
    let folder = args.out.clone();
    ensure!(
        !args.force,
        "{}: a served repository is not replaced: write another one, then swap them",
        folder.display()
    );
    let target = args.target.as_deref().and_then(Target::from_name);
    let above = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(above).with_context(|| format!("{}", above.display()))?;
    // Beside the repository, so that weights are linked and not copied again.
    let scratch = tempfile::Builder::new().prefix(".vldm-triton-").tempdir_in(above)?;
    let given = args.checkpoint.as_ref().filter(|path| path.join(MANIFEST).is_file()).cloned();
    let mut mode = if args.link && !args.copy { LinkMode::HardLink } else { LinkMode::Copy };
    let mut bundle = if let Some(path) = given {
        let alone = args.spatial.is_none() && args.temporal.is_none() && args.lora.is_empty();
        ensure!(alone, "{}: a bundle cannot be merged with anything; give its checkpoint", path.display());
        Bundle::open(&path)?
    } else {
        let mut request = request(args);
        request.out = scratch.path().join("bundle");
        export(&request)?;
        mode = LinkMode::HardLink;
        Bundle::open(&request.out)?
    };
    if let Some(target) = target.filter(|_| bundle.manifest.optimized.is_none()) {
        let optimized = scratch.path().join("optimized");
        let settings = Settings { split: false, ..Settings::of(target, &bundle.manifest) };
        note(format!("optimising for {target}"));
        rewrite(&bundle, &settings, &optimized, mode, false)?;
        (bundle, mode) = (Bundle::open(&optimized)?, LinkMode::HardLink);
    }
    let device = device(&bundle, target)?;
    out.result(&triton(&bundle.path, &bundle.manifest, &folder, mode, device)?)
}

/// Where the graphs of a bundle are to run.
fn device(bundle: &Bundle, asked: Option<Target>) -> anyhow::Result<TritonDevice> {
    let Some(optimized) = &bundle.manifest.optimized else { return Ok(TritonDevice::Cpu) };
    let (path, found) = (bundle.path.display(), optimized.target.as_str());
    if let Some(asked) = asked {
        ensure!(asked.name() == found, "{path}: it is optimised for {found}, not for {asked}");
    }
    match Target::from_name(found) {
        Some(Target::Cpu) => Ok(TritonDevice::Cpu),
        Some(Target::Cuda) => Ok(TritonDevice::Cuda),
        Some(Target::TensorRt) => Ok(TritonDevice::TensorRt),
        _ => bail!(
            "{path}: it is optimised for {found}, which a Triton server has not; give the bundle that `vldm export` wrote"
        ),
    }
}
