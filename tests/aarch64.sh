#!/bin/sh
# The program for aarch64, and its unit tests, on a machine of another kind (docs/edge.md):
#   tests/aarch64.sh build     the program: target/aarch64-unknown-linux-gnu/release/vldm
#   tests/aarch64.sh test      unit tests of every crate, emulated; further words are a filter
#   tests/aarch64.sh run …     the program, emulated
# Needs, on Debian and Ubuntu: rustup target add aarch64-unknown-linux-gnu
#   apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static
set -eu
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export VLDM_TEST_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$VLDM_TEST_RUNNER
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
for tool in aarch64-linux-gnu-gcc aarch64-linux-gnu-g++; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu" >&2; exit 1; }
done
command -v qemu-aarch64-static >/dev/null || [ "${1:-}" = build ] ||
    { echo "qemu-aarch64-static is missing: apt-get install qemu-user-static" >&2; exit 1; }

what=${1:-}
[ $# -eq 0 ] || shift
case $what in
build) cargo build --release --locked --target $target -p vldm --bin vldm "$@" ;;
test) cargo test --release --locked --target $target --workspace --lib --no-fail-fast -- "$@" ;;
run) cargo run --release --locked --target $target -p vldm --bin vldm -- "$@" ;;
*)
    echo "expected build, test or run" >&2
    exit 2
    ;;
esac
