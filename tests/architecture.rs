//! The house rules that no compiler checks: crate arrows, file sizes, pure folders, links that lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vldm_tests::root;

/// Most lines a source file may have.
const MAX_LINES: usize = 600;

/// Every Rust file of ours: path from the root, text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["graphs", "exporter", "optimize", "runtime", "tests"] {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "only {} source files found", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The part of a file before its tests.
fn body(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

fn metadata() -> serde_json::Value {
    let mut cargo = Command::new(env!("CARGO"));
    let out = cargo.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root()).output();
    serde_json::from_slice(&out.unwrap().stdout).unwrap()
}

#[test]
fn crates_depend_on_each_other_as_drawn_and_not_otherwise() {
    let drawn: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([
        ("vldm-graphs", BTreeSet::new()),
        ("vldm-exporter", BTreeSet::from(["vldm-graphs"])),
        ("vldm-optimize", BTreeSet::from(["vldm-graphs"])),
        ("vldm-runtime", BTreeSet::from(["vldm-graphs"])),
        ("vldm-cluster", BTreeSet::from(["vldm-graphs", "vldm-runtime"])),
        ("vldm-server", BTreeSet::from(["vldm-graphs", "vldm-runtime", "vldm-cluster"])),
        (
            "vldm",
            BTreeSet::from([
                "vldm-graphs",
                "vldm-exporter",
                "vldm-optimize",
                "vldm-runtime",
                "vldm-cluster",
                "vldm-server",
            ]),
        ),
        ("vldm-tests", BTreeSet::from(["vldm-graphs", "vldm-exporter", "vldm-optimize", "vldm-runtime"])),
    ]);
    let metadata = metadata();
    let found: BTreeMap<&str, BTreeSet<&str>> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let ours = dependencies.map(|d| d["name"].as_str().unwrap()).filter(|n| n.starts_with("vldm")).collect();
            (package["name"].as_str().unwrap(), ours)
        })
        .collect();
    assert_eq!(found, drawn);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for package in metadata()["packages"].as_array().unwrap() {
        let manifest = package["manifest_path"].as_str().unwrap();
        let text = fs::read_to_string(manifest).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{manifest}");
    }
}

#[test]
fn files_are_short_and_say_first_what_they_are() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{name}: {lines} lines, at most {MAX_LINES}");
        assert!(text.starts_with("//!"), "{name}: the first line must say what is here");
    }
}

#[test]
fn ops_are_named_by_strings_only_where_they_are_defined() {
    for (name, text) in sources() {
        let allowed = name.starts_with("graphs/src/ops") || name.starts_with("tests/") || name.ends_with("/tests.rs");
        assert!(allowed || !body(&text).contains("\"Conv\""), "{name}: an op named by a string");
    }
}

#[test]
fn pure_folders_touch_no_file_clock_or_environment() {
    let pure = [
        "graphs/src/ir/",
        "graphs/src/ops/",
        "graphs/src/nn/",
        "graphs/src/temporal/",
        "graphs/src/families/",
        "runtime/src/scheduler/",
        "runtime/src/sampler/",
        "runtime/src/kernels/",
    ];
    for (name, text) in sources().iter().filter(|(name, _)| pure.iter().any(|p| name.starts_with(p))) {
        for forbidden in ["std::fs", "std::env", "std::time"] {
            assert!(!body(text).contains(forbidden), "{name}: {forbidden} in a folder of pure functions");
        }
    }
}

#[test]
fn there_is_at_most_one_macro() {
    let with: Vec<String> = sources()
        .into_iter()
        .filter(|(name, text)| name != "tests/architecture.rs" && text.contains("macro_rules!"))
        .map(|(name, _)| name)
        .collect();
    assert!(with.len() <= 1, "macros in {with:?}");
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let documents = [
        "README.md",
        "docs/architecture.md",
        "docs/plan.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "demo/README.md",
        "tests/golden/README.md",
    ];
    for document in documents {
        let path = root().join(document);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{document}: {e}"));
        for link in links(&text) {
            let target: PathBuf = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{document}: `{link}` leads nowhere");
        }
    }
}

/// Targets of Markdown links that are paths.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|t| !t.contains("://") && !t.starts_with('#') && !t.is_empty()).collect()
}

#[test]
fn the_readme_is_short_enough_to_be_read() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 250, "README.md: {lines} lines, at most 250");
}
