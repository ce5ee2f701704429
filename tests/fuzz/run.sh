#!/bin/sh
# run.sh TARGET SECONDS: fuzzes one target from its kept inputs and what earlier runs found; a finding ends it.
set -eu
cd "$(dirname "$0")"
target=$1 seconds=$2 found=../../target/fuzz/inputs/$1
mkdir -p "$found" ../../target/fuzz/findings
# Inputs that are read from files are written to memory, where there is such a folder.
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
TARGET=$target exec ../../target/fuzz/release/fuzz -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
    -malloc_limit_mb=512 -print_final_stats=1 -artifact_prefix=../../target/fuzz/findings/"$target"- "$found" corpora/"$target"
