//! Passes over graphs: a network in, an equal network out that costs less.
//!
//! What sets a denoising network apart is the loop around it. [`binding`] tells from the graph alone when each value is
//! known: once a window, once a guidance branch, once a timestep, or only with the latents. [`mod@split`] cuts the network
//! along these times into graphs that run that often and no more; [`cost`] counts what that saves.

pub mod binding;
pub mod cost;
mod extract;
pub mod split;

pub use binding::{Binding, Bindings, Times};
pub use cost::Cost;
pub use split::{Phase, Split, split};
