//! Tests that span crates, in one program: one link, and what is slow to make (bundles, Python) is made once.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod architecture;
mod bench;
mod cli;
mod cluster;
mod edge;
mod export;
mod fine_tunes;
mod fuzz;
mod hostile;
mod measure;
mod optimize;
mod original;
mod parity;
mod pipelines;
mod predict;
mod python;
mod resume;
mod serve;
mod tensorrt;
mod tokenizer;
mod triton;
mod upscale;
mod verify;
mod video;
