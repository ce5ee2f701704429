#!/bin/sh
# keep.sh TARGET: adds to the kept inputs those that reach further, up to 100 of at most 2 KB, the smallest first.
set -eu
cd "$(dirname "$0")"
target=$1 found=../../target/fuzz/inputs/$1 merged=../../target/fuzz/merged/$1
rm -rf "$merged"
mkdir -p "$merged"
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
TARGET=$target ../../target/fuzz/release/fuzz -merge=1 -max_len=16384 -timeout=10 -rss_limit_mb=1024 "$merged" corpora/"$target" "$found" 2>&1 | tail -n 3
# The names of earlier ones are digests of 40 digits; those with words were put there by hand.
find corpora/"$target" -type f -name '????????????????????????????????????????' -delete
find "$merged" -type f -size -2049c -printf '%s %p\n' | sort -n | head -n 100 | cut -d ' ' -f 2 | xargs -I {} cp {} corpora/"$target"/
