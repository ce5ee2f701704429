//! Runs a bundle: engines, schedules, the cascade of stages and video files.
//!
//! [`BACKENDS`] lists the engines; each loads one part of a bundle
//! into a [`Session`].

pub mod backend;
pub mod cascade;
pub mod crew;
pub mod engines;
pub mod enlarge;
pub mod error;
pub mod image;
pub mod journal;
pub mod kernels;
pub mod measure;
pub mod noise;
pub mod parity;
pub mod pieces;
pub mod sampler;
pub mod scheduler;
pub mod tensor;
pub mod text;
pub mod video;

pub use backend::{
    Axis, BACKENDS, Backend, Kind, LoadOptions, Port, Probe, Profile, Session, Setting, Settings, backend,
};
pub use error::BackendError;
pub use tensor::{DType, Tensor};
