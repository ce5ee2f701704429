//! The sizes that a network is asked with, for engines that build it for a range of them.

use std::collections::BTreeMap;
use std::fmt;

use vldm_graphs::bundle::{self, PortDim};
#[cfg(feature = "ort")]
use vldm_graphs::ir::Graph;

use crate::tensor::Tensor;

/// Smallest and largest value of each open size of a network, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(BTreeMap<String, [usize; 2]>);

impl Profile {
    /// The sizes of one call: what the names in the shapes of `ports` are in `inputs`. Products such as `batch*frames` name
    /// nothing of their own.
    pub fn of(ports: &[bundle::Port], inputs: &[(&str, &Tensor)]) -> Self {
        let mut found = Self::default();
        for port in ports {
            let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == port.name) else { continue };
            for (dim, &size) in port.shape.iter().zip(tensor.shape()) {
                if let PortDim::Symbol(name) = dim
                    && name.chars().all(|c| c.is_alphanumeric() || c == '_')
                {
                    found.add(name, size);
                }
            }
        }
        found
    }

    /// Adds a value of a size.
    pub fn add(&mut self, name: &str, size: usize) {
        let [least, most] = self.0.entry(name.to_owned()).or_insert([size, size]);
        (*least, *most) = (size.min(*least), size.max(*most));
    }

    /// Adds all values of another one.
    pub fn widen(&mut self, other: &Self) {
        for (name, sizes) in &other.0 {
            for &size in sizes {
                self.add(name, size);
            }
        }
    }

    /// Whether all values of `other` are in the ranges of this one.
    pub fn contains(&self, other: &Self) -> bool {
        let within = |(name, &[least, most]): (&String, &[usize; 2])| {
            self.0.get(name).is_some_and(|&[from, to]| from <= least && most <= to)
        };
        other.0.iter().all(within)
    }

    /// The open inputs of a graph at their smallest, best and largest sizes, as `sample:1x8x4x32x32,timestep:1`; the best
    /// are the largest, which most calls have. Nothing when all sizes are numbers in the graph.
    ///
    /// # Errors
    /// The name of an input with a size that is not known.
    #[cfg(feature = "ort")]
    pub fn shapes(&self, graph: &Graph) -> Result<Option<[String; 3]>, String> {
        let at = |end: usize| -> BTreeMap<String, usize> {
            self.0.iter().map(|(name, sizes)| (name.clone(), sizes[end])).collect()
        };
        let (least, most) = (at(0), at(1));
        let mut lists: [Vec<String>; 2] = Default::default();
        for &id in &graph.inputs {
            let value = graph.value(id);
            let Some(ty) = value.ty.as_ref().filter(|ty| ty.shape.as_fixed().is_none()) else { continue };
            for (list, sizes) in lists.iter_mut().zip([&least, &most]) {
                let dims = ty.shape.0.iter().map(|dim| dim.evaluate(sizes).map(|n| n.to_string()));
                let dims = dims.collect::<Option<Vec<_>>>().ok_or_else(|| value.name.clone())?;
                list.push(format!("{}:{}", value.name, dims.join("x")));
            }
        }
        let [least, most] = lists.map(|list| list.join(","));
        Ok(Some([least, most.clone(), most]).filter(|[least, ..]| !least.is_empty()))
    }
}

/// `batch=1, frames=5..16`.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |(name, &[least, most]): (&String, &[usize; 2])| {
            if least == most { format!("{name}={least}") } else { format!("{name}={least}..{most}") }
        };
        f.write_str(&self.0.iter().map(size).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::bundle::{Port, PortType};

    use super::*;

    fn port(name: &str, shape: &[&str]) -> Port {
        let dim = |text: &&str| text.parse().map_or_else(|_| PortDim::Symbol((*text).to_owned()), PortDim::Fixed);
        Port { name: name.to_owned(), dtype: PortType::F32, shape: shape.iter().map(dim).collect() }
    }

    #[test]
    fn the_sizes_of_calls_are_those_of_names_and_their_range_is_that_of_all_calls() {
        let ports = [port("x", &["batch", "frames", "4"]), port("y", &["batch*frames"]), port("z", &["unasked"])];
        let of =
            |frames| Profile::of(&ports, &[("x", &Tensor::zeros(&[1, frames, 4])), ("y", &Tensor::zeros(&[frames]))]);
        let mut both = of(5);
        assert_eq!(both.to_string(), "batch=1, frames=5");
        both.widen(&of(9));
        assert_eq!(both.to_string(), "batch=1, frames=5..9");
        assert!(both.contains(&of(7)) && !both.contains(&of(4)) && !of(5).contains(&both));
        assert!(!both.contains(&Profile::of(&ports, &[("z", &Tensor::zeros(&[1]))])));
    }
}
