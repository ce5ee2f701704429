#!/bin/sh
# Compiles as cargo asks, and has what reads files from outside count its edges and comparisons.
# `fuzzing` has the crate png take any checksum, which no fuzzer could guess.
rustc=$1
shift
case " $* " in
*" --crate-name png "*) set -- "$@" --cfg fuzzing ;;
esac
case " $* " in
*" --crate-name vldm_"* | *" --crate-name serde_json "* | *" --crate-name prost "* | *" --crate-name png "* | *" --crate-name gif "* | \
    *" --crate-name weezl "* | *" --crate-name fdeflate "*)
    exec "$rustc" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
    ;;
esac
exec "$rustc" "$@"
