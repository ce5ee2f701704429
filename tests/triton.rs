//! Model repositories: what NVIDIA's own protobuf reads in them is what the graphs are, and every model runs from its folder.

use std::fs;
use std::path::Path;

use vldm_graphs::bundle::Manifest;
use vldm_tests::{bundle, program, python};

/// Reads every configuration, compares it with the model beside it, and the model's numbers with those of the bundle.
const SCRIPT: &str = r#"
import pathlib, sys
import numpy, onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

repository, bundle, kind, accelerator = sys.argv[1:5]
types = {"tensor(float)": pb.TYPE_FP32, "tensor(int64)": pb.TYPE_INT64}
numbers = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
load = lambda path: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
for folder in sorted(pathlib.Path(repository).iterdir()):
    config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    assert config.name == folder.name and config.max_batch_size == 0
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    (group,) = config.instance_group
    assert group.kind == pb.ModelInstanceGroup.Kind.Value(kind), config
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [a.name for a in found] == accelerator.split(), config
    assert all(dict(a.parameters) == {"precision_mode": "FP32"} for a in found), config
    session = load(folder / "1" / "model.onnx")
    for ports, wanted in [(config.input, session.get_inputs()), (config.output, session.get_outputs())]:
        said = [(p.name, p.data_type, list(p.dims)) for p in ports]
        true = [(p.name, types[p.type], [d if isinstance(d, int) else -1 for d in p.shape]) for p in wanted]
        assert said == true, (folder.name, said, true)
    rng = numpy.random.default_rng(5)
    sizes = {"batch": 1, "frames": 4, "height": 16, "width": 16}
    def size(d):
        return d if isinstance(d, int) else eval(d.replace("floor", ""), {"__builtins__": {}}, Sizes())
    class Sizes(dict):
        def __missing__(self, name):
            return sizes.get(name, 1)
    given = {p.name: (rng.random([size(d) for d in p.shape])).astype(numbers[p.type]) for p in session.get_inputs()}
    ours, theirs = session.run(None, given), load(pathlib.Path(bundle) / (folder.name + ".onnx")).run(None, given)
    for a, b in zip(ours, theirs):
        assert numpy.isfinite(a).all() and abs(a - b).max() <= 1e-4 * abs(b).max(), (folder.name, abs(a - b).max())
    print(folder.name)
"#;

/// What the script says of the repository that `vldm export --layout triton` writes of a bundle.
fn checked(args: &[&str], folder: &Path, bundle: &Path, kind: [&str; 2]) -> Option<String> {
    let ran =
        program::vldm(["export", "--layout", "triton", "-o", folder.to_str().unwrap()].iter().chain(args)).expect(0);
    assert!(ran.stdout.contains("once on disk"), "{}", ran.stdout);
    let rest = [folder, bundle, Path::new(kind[0]), Path::new(kind[1])];
    python::run_with("tritonclient[grpc]==2.73.0", SCRIPT, &rest)
}

#[test]
fn tritons_protobuf_reads_what_the_graphs_are_and_every_model_runs_from_its_folder() {
    let scratch = tempfile::tempdir().unwrap();
    for set in ["tiny", "svd-short", "sd1"] {
        let (bundle, folder) = (bundle::of(set), scratch.path().join(set));
        let Some(said) = checked(&[bundle.to_str().unwrap()], &folder, &bundle, ["KIND_CPU", ""]) else { return };
        let names: Vec<String> = Manifest::open(&bundle).unwrap().parts.into_keys().collect();
        assert_eq!(said.lines().collect::<Vec<_>>(), names, "{set}");
    }
}

#[test]
fn a_checkpoint_becomes_a_repository_for_tensorrt_in_one_command() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("repository");
    let args = ["demo", "--target", "tensorrt"];
    let Some(said) = checked(&args, &folder, &bundle::of("demo"), ["KIND_GPU", "tensorrt"]) else { return };
    assert!(said.contains("keyframes"), "{said}");
    // Nothing of the way there is left.
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn weights_that_models_share_are_one_file() {
    use std::os::unix::fs::MetadataExt;

    let scratch = tempfile::tempdir().unwrap();
    let (bundle, folder) = (bundle::of("demo"), scratch.path().join("repository"));
    program::vldm(["export", bundle.to_str().unwrap(), "--layout", "triton", "-o", folder.to_str().unwrap()]).expect(0);
    let inode = |part: &str| fs::metadata(folder.join(part).join("1/weights/unet.safetensors")).unwrap().ino();
    assert_eq!(inode("keyframes"), inode("interpolate"));
    // The bundle's own file keeps its one name.
    assert_eq!(fs::metadata(bundle.join("weights/unet.safetensors")).unwrap().nlink(), 1);
}

#[test]
fn what_cannot_be_served_is_refused_and_nothing_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let (bundle, tract) = (bundle::of("tiny"), scratch.path().join("tract"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    program::vldm(["optimize", &text(&bundle), "--target", "tract", "-o", &text(&tract)]).expect(0);
    let out = scratch.path().join("repository");
    for (args, expected) in [
        (vec![text(&tract)], "which a Triton server has not"),
        (vec![text(&tract), "--target".into(), "cuda".into()], "it is optimised for tract, not for cuda"),
        (vec![text(&bundle), "--force".into()], "is not replaced"),
    ] {
        let args = args.into_iter().chain(["--layout", "triton", "-o", &text(&out)].map(str::to_owned));
        let said = program::vldm(std::iter::once("export".to_owned()).chain(args)).expect(1).stderr;
        assert!(said.contains(expected), "{said}");
    }
    let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["tract"]);
}
