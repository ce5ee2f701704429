//! The cascade: from a plan and a bundle to a video.

pub mod plan;
