//! Passes over graphs: a network in, an equal network out that costs less.
//!
//! [`optimize`] runs the recipe of a [`Target`]: the rules of [`rules::RULES`], each in a file of its own, until none
//! finds anything more to do.
//!
//! Some passes are not rules, because they change what a caller gets: [`pin()`] makes open sizes numbers, [`half()`] computes in
//! half precision, and [`store`] says which weights are stored in fewer bits.
//!
//! What sets a denoising network apart is the loop around it. [`binding`] tells from the graph alone when each value is
//! known: once a window, once a guidance branch, once a timestep, or only with the latents. [`mod@split`] cuts the network
//! along these times into graphs that run that often and no more; [`cost`] counts what that saves.
//!
//! [`mod@kernels`] models what a GPU's compiler makes of a graph, [`mod@device`] how long that takes on which device.

pub mod binding;
mod check;
pub mod cost;
pub mod device;
mod edit;
mod extract;
pub mod half;
pub mod kernels;
pub mod pin;
mod recipe;
mod rule;
pub mod rules;
pub mod split;
pub mod store;
mod target;

pub use binding::{Binding, Bindings, Times};
pub use check::CheckError;
pub use cost::Cost;
pub use device::{DEVICES, Device, device};
pub use edit::Edit;
pub use half::half;
pub use kernels::{Kernels, kernels};
pub use pin::pin;
pub use recipe::{OptimizeError, Options, Report, RuleReport, optimize, recipe};
pub use rule::{Outcome, Refusal, Rule};
pub use split::{Phase, Split, split};
pub use target::Target;
