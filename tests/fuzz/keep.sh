#!/bin/sh
# keep.sh TARGET: the kept inputs become 60 of at most 2 KB, of all sizes, out of a set that covers what those kept and found reach.
set -eu
cd "$(dirname "$0")"
target=$1 found=../../target/fuzz/inputs/$1 merged=../../target/fuzz/merged/$1
rm -rf "$merged"
mkdir -p "$merged"
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
TARGET=$target ../../target/fuzz/release/fuzz -set_cover_merge=1 -max_len=2048 -timeout=10 -rss_limit_mb=1024 \
    "$merged" corpora/"$target" "$found" 2>&1 | tail -n 1
# Names of inputs that were found are digests of 40 digits; those with words were put there by hand, and stay.
find corpora/"$target" -type f -name '????????????????????????????????????????' -delete
every=$(($(find "$merged" -type f | wc -l) / 60 + 1))
find "$merged" -type f -printf '%s %p\n' | sort -n | awk -v every="$every" 'NR % every == 0 { print $2 }' |
    xargs -r -I {} cp {} corpora/"$target"/
