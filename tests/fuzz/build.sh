#!/bin/sh
# Builds the fuzzer with the toolchain of the project: target/fuzz/release/fuzz.
set -eu
cd "$(dirname "$0")"
RUSTC_WRAPPER="$PWD/rustc.sh" CARGO_TARGET_DIR=../../target/fuzz cargo build --release --locked "$@"
