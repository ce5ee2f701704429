//! The rules, one file each. Their order is that of the recipe.

mod constants;
mod dead;
mod duplicates;
mod layout;
mod no_ops;
mod shapes;
#[cfg(test)]
mod testing;

use crate::rule::Rule;
use crate::target::Target;

const ALL: &[Target] = &Target::ALL;

/// Every rule with the targets whose recipes have it. **READ FIRST**: this is all that `vldm optimize` does to a graph.
pub const RULES: &[(&dyn Rule, &[Target])] = &[
    (&dead::Dead, ALL),
    (&shapes::FoldShapes, ALL),
    (&constants::FoldConstants, ALL),
    (&no_ops::NoOps, ALL),
    (&layout::MergeLayout, ALL),
    (&duplicates::Duplicates, ALL),
];
