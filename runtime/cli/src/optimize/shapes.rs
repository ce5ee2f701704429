//! Sizes of `--shapes`: which of a part's open sizes become numbers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use vldm_graphs::bundle::{Manifest, Part, PortDim};

/// Largest size: products of the few that an axis is made of stay far from the largest integer.
const MAX_SIZE: usize = 65_536;

/// `PART.NAME=SIZE`, or `NAME=SIZE` for all parts that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    part: Option<String>,
    name: String,
    value: usize,
}

/// Reads one entry of `--shapes`.
///
/// # Errors
/// A sentence that says what was expected.
pub fn size(text: &str) -> Result<Size, String> {
    let (place, size) = text.split_once('=').ok_or("expected NAME=SIZE or PART.NAME=SIZE")?;
    let known = size.parse().ok().filter(|n| (1..=MAX_SIZE).contains(n));
    let size = known.ok_or_else(|| format!("expected a size of 1 to {MAX_SIZE}, found {size:?}"))?;
    let (part, name) = match place.rsplit_once('.') {
        Some((part, name)) => (Some(part), name),
        None => (None, place),
    };
    if name.is_empty() || part.is_some_and(str::is_empty) {
        return Err("expected NAME=SIZE or PART.NAME=SIZE".to_owned());
    }
    Ok(Size { part: part.map(str::to_owned), name: name.to_owned(), value: size })
}

/// The sizes of every part that become numbers.
///
/// # Errors
/// For a part or a size that there is not, and for a size that is given twice.
pub fn sizes(asked: &[Size], bundle: &Manifest) -> anyhow::Result<BTreeMap<String, BTreeMap<String, usize>>> {
    let mut all: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut given = BTreeSet::new();
    for Size { part, name, value } in asked {
        ensure!(given.insert((part, name)), "--shapes: `{name}` is given twice");
        let parts: Vec<(&String, &Part)> = match part {
            Some(part) => vec![(part, bundle.part(part).context("--shapes")?)],
            None => bundle.parts.iter().filter(|(_, part)| open(part).contains(name.as_str())).collect(),
        };
        let known: BTreeSet<&str> = match part {
            Some(_) => parts.iter().flat_map(|(_, part)| open(part)).collect(),
            None => bundle.parts.values().flat_map(open).collect(),
        };
        let what = part.as_ref().map_or("no part".to_owned(), |part| format!("no input of part `{part}`"));
        let names = known.iter().copied().collect::<Vec<_>>().join(", ");
        ensure!(known.contains(name.as_str()), "--shapes: {what} has a size `{name}`; there are {names}");
        for (found, _) in parts {
            let sizes = all.entry(found.clone()).or_default();
            // What is said of one part counts more than what is said of all, in any order.
            if part.is_some() || !asked.iter().any(|s| s.part.as_ref() == Some(found) && s.name == *name) {
                sizes.insert(name.clone(), *value);
            }
        }
    }
    Ok(all)
}

/// Sizes that graphs leave open and that are the same in every run: a network that is told of a picture alone, as that of
/// Stable Video Diffusion, gets one token, the picture's embedding.
pub fn settled(bundle: &Manifest) -> Vec<Size> {
    let told = |part: &str| bundle.parts.contains_key(part);
    let parts = bundle.parts.iter().filter(|(_, part)| open(part).contains("tokens"));
    if !told("image_encoder") || told("text_encoder") || told("conditions") {
        return Vec::new();
    }
    parts.map(|(name, _)| Size { part: Some(name.clone()), name: "tokens".to_owned(), value: 1 }).collect()
}

/// The open sizes of a part's inputs.
fn open(part: &Part) -> BTreeSet<&str> {
    let dims = part.inputs.iter().flat_map(|port| &port.shape);
    dims.filter_map(symbol).collect()
}

fn symbol(dim: &PortDim) -> Option<&str> {
    match dim {
        PortDim::Symbol(name) if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_of_a_name_or_of_the_name_of_a_part() {
        let read = |text: &str| size(text).map(|s| (s.part, s.name, s.value));
        assert_eq!(read("frames=8"), Ok((None, "frames".to_owned(), 8)));
        assert_eq!(read("keyframes.frames=8"), Ok((Some("keyframes".to_owned()), "frames".to_owned(), 8)));
        for wrong in ["", "=", "frames", "frames=", "frames=0", "frames=-1", "frames=8.5", "frames=65537", "=8", ".=8"]
        {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(size("a.frames=99999999999999999999").is_err() && size(".frames=8").is_err());
    }
}
