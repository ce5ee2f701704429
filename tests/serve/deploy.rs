//! Files of `deploy/`: the flags, paths and ports that they name are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use vldm_tests::program::vldm;
use vldm_tests::python;

use super::http::Server;
use super::plan;

fn file(name: &str) -> String {
    fs::read_to_string(vldm_tests::root().join("deploy").join(name)).unwrap()
}

fn keys(folder: &Path) -> String {
    let keys = folder.join("keys");
    vldm(["keys".as_ref(), "new".as_ref(), keys.as_os_str(), "a".as_ref()]).expect(0);
    keys.to_str().unwrap().to_owned()
}

#[test]
fn the_unit_of_systemd_starts_the_server_with_flags_that_it_has() {
    let unit = file("vldm.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/vldm ")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (keys, plan) = (keys(scratch.path()), plan(scratch.path(), 1));
    let words = start.replace("%S", scratch.path().to_str().unwrap()).replace("%d/keys", &keys);
    let words: Vec<&str> = words.split(' ').collect();
    let (Some(("serve", rest)), true) = (words.split_first().map(|(f, r)| (*f, r)), words.contains(&"--keys")) else {
        panic!("{start}")
    };
    let at = rest.iter().position(|w| *w == "--listen").unwrap();
    let more: Vec<&str> = rest[1..at].iter().chain(&rest[at + 2..]).copied().collect();
    let server = Server::run(&[&[plan.to_str().unwrap()], &*more].concat());
    assert_eq!(server.get("/v1/videos").status, 401);
}

/// Checks a manifest against Kubernetes' own schemas, and prints its documents as JSON.
const MANIFEST: &str = r#"
import json, sys
import kubernetes_validate, yaml

documents = list(yaml.safe_load_all(open(sys.argv[1])))
for document in documents:
    kubernetes_validate.validate(document, "1.37", strict=True)
print(json.dumps(documents))
"#;

#[test]
fn the_manifest_of_kubernetes_is_valid_and_names_flags_and_probes_that_the_server_has() {
    let path = vldm_tests::root().join("deploy/kubernetes.yaml");
    let text = python::client("kubernetes-validate==1.37.0", MANIFEST, path.to_str().unwrap());
    let Some(text) = text else { return };
    let documents: Value = serde_json::from_str(&text).unwrap();
    let of = |kind: &str| documents.as_array().unwrap().iter().find(|d| d["kind"] == kind).unwrap()["spec"].clone();
    let (service, set) = (of("Service"), of("StatefulSet"));
    assert_eq!(service["selector"], set["template"]["metadata"]["labels"]);
    assert_eq!(set["replicas"], 1, "one server at a time has the folder");
    let container = &set["template"]["spec"]["containers"][0];
    let port = container["ports"][0]["containerPort"].as_u64().unwrap();
    assert_eq!(service["ports"][0]["targetPort"], container["ports"][0]["name"]);
    let mounts: BTreeSet<&str> =
        container["volumeMounts"].as_array().unwrap().iter().map(|m| m["mountPath"].as_str().unwrap()).collect();
    let args: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert_eq!(args[..2], ["serve", "/models/drive.json"]);
    assert!(args.contains(&&*format!("--listen=0.0.0.0:{port}")));
    let scratch = tempfile::tempdir().unwrap();
    let (keys, plan) = (keys(scratch.path()), plan(scratch.path(), 1));
    let mut real = vec![plan.to_str().unwrap().to_owned()];
    for arg in args[2..].iter().filter(|arg| !arg.starts_with("--listen=")) {
        let (_, place) = arg.split_once('=').unwrap();
        assert!(mounts.iter().any(|mount| place.starts_with(mount)), "{place} is on no volume");
        let jobs = scratch.path().join("jobs");
        let here = if arg.starts_with("--keys=") { &*keys } else { jobs.to_str().unwrap() };
        real.push(arg.replace(place, here));
    }
    let server = Server::run(&real.iter().map(String::as_str).collect::<Vec<_>>());
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], container["ports"][0]["name"]);
        server.get(get["path"].as_str().unwrap()).expect(200);
    }
    assert_eq!(server.get("/v1/videos").status, 401);
}

#[test]
fn images_are_built_with_the_pinned_compiler_and_commands_that_the_program_has() {
    let text = file("Dockerfile").replace("\\\n", " ");
    let pinned = fs::read_to_string(vldm_tests::root().join("rust-toolchain.toml")).unwrap();
    let version = pinned.lines().find_map(|l| l.strip_prefix("channel = \"")?.strip_suffix('"')).unwrap();
    assert!(text.contains(&format!("FROM rust:{version}-")), "the images are built with another compiler");
    let stages: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("FROM ")?.split(" AS ").nth(1)).collect();
    let said = text.lines().filter_map(|line| line.strip_prefix("#   docker build ")?.split("--target ").nth(1));
    let said: Vec<&str> = said.map(|rest| rest.split(' ').next().unwrap()).collect();
    assert_eq!(said, ["cpu", "cuda", "jetson"]);
    assert!(said.iter().all(|target| stages.contains(target)), "{stages:?}");
    for source in text.split("--from=").skip(1).map(|rest| rest.split(' ').next().unwrap()) {
        assert!(stages.contains(&source), "{source}");
    }
    let commands = text.lines().filter_map(|line| line.strip_prefix("RUN vldm "));
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let help =
            vldm(words.iter().copied().filter(|w| !w.starts_with(['-', '/'])).chain(["--help"])).expect(0).stdout;
        for flag in words.iter().filter(|w| w.starts_with("--")) {
            assert!(help.contains(flag), "{command}: no {flag}");
        }
    }
    assert!(text.contains("cargo build --release --locked -p vldm"));
    assert_eq!(text.matches("EXPOSE 8080").count(), 2, "jetson has that of cuda");
}
