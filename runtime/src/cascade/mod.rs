//! The cascade: from a plan and a bundle to a video.

pub mod explain;
pub mod layout;
pub mod plan;
#[cfg(test)]
mod testing;
