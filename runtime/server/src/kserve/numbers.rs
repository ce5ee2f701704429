//! Tensor elements out of JSON, nested or flat, straight into a vector: no tree of values is built, so a hostile body
//! takes memory in proportion to its own size.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// Most elements of one tensor in JSON; larger ones come in binary.
pub(super) const MAX_JSON_ELEMENTS: usize = 1 << 22;
/// Deepest nesting, and so the largest rank of a tensor.
pub(super) const MAX_RANK: usize = 16;

/// The elements of a tensor in row-major order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) elements: Elements,
    /// Length of the lists at each depth; all of one depth are equally long.
    pub(super) nesting: Vec<usize>,
}

/// Whole numbers as long as all are whole.
#[derive(Debug, PartialEq)]
pub(super) enum Elements {
    Whole(Vec<i64>),
    Real(Vec<f64>),
}

impl Default for Elements {
    fn default() -> Self {
        Self::Whole(Vec::new())
    }
}

impl Elements {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(v) => v.len(),
            Self::Real(v) => v.len(),
        }
    }

    fn push_whole(&mut self, n: i64) {
        match self {
            Self::Whole(v) => v.push(n),
            Self::Real(v) => v.push(n as f64),
        }
    }

    fn push_real(&mut self, x: f64) {
        if let Self::Whole(v) = self {
            *self = Self::Real(v.iter().map(|&n| n as f64).collect());
        }
        if let Self::Real(v) = self {
            v.push(x);
        }
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut reading = Reading::default();
        deserializer.deserialize_seq(Level { reading: &mut reading, depth: 0 })?;
        Ok(Self {
            elements: reading.elements,
            nesting: reading.lengths.into_iter().map(Option::unwrap_or_default).collect(),
        })
    }
}

#[derive(Default)]
struct Reading {
    elements: Elements,
    lengths: Vec<Option<usize>>,
    /// Depth of the numbers.
    leaves: Option<usize>,
}

impl Reading {
    fn leaf<E: Error>(&mut self, depth: usize) -> Result<(), E> {
        if *self.leaves.get_or_insert(depth) != depth {
            return Err(E::custom("numbers and lists side by side"));
        }
        if self.elements.len() >= MAX_JSON_ELEMENTS {
            return Err(E::custom(format!("more than {MAX_JSON_ELEMENTS} elements; send larger tensors in binary")));
        }
        Ok(())
    }
}

/// A list at some depth, or what stands in it.
struct Level<'r> {
    reading: &'r mut Reading,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.depth == 0 { "a list of numbers" } else { "a number" })
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<(), E> {
        self.reading.leaf(self.depth)?;
        self.reading.elements.push_whole(n);
        Ok(())
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<(), E> {
        match i64::try_from(n) {
            Ok(n) => self.visit_i64(n),
            Err(_) => self.visit_f64(n as f64),
        }
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<(), E> {
        self.reading.leaf(self.depth)?;
        self.reading.elements.push_real(x);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let (reading, depth) = (self.reading, self.depth);
        if depth >= MAX_RANK {
            return Err(A::Error::custom(format!("lists nested deeper than {MAX_RANK}")));
        }
        if reading.leaves == Some(depth) {
            return Err(A::Error::custom("numbers and lists side by side"));
        }
        if reading.lengths.len() == depth {
            reading.lengths.push(None);
        }
        let mut length = 0;
        while seq.next_element_seed(Level { reading: &mut *reading, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        if *reading.lengths[depth].get_or_insert(length) != length {
            return Err(A::Error::custom("lists of one depth differ in length"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Numbers, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn nested_and_flat_lists_give_the_same_elements() {
        let nested = read("[[1, 2, 3], [4, 5, 6]]").unwrap();
        assert_eq!((nested.nesting, nested.elements), (vec![2, 3], Elements::Whole((1..=6).collect())));
        let flat = read("[1, 2.5, -3]").unwrap();
        assert_eq!((flat.nesting, flat.elements), (vec![3], Elements::Real(vec![1.0, 2.5, -3.0])));
        assert_eq!(read("[9223372036854775807]").unwrap().elements, Elements::Whole(vec![i64::MAX]));
        assert_eq!(read("[[], []]").unwrap().nesting, [2, 0]);
    }

    #[test]
    fn ragged_lists_and_words_are_refused_by_what_is_wrong() {
        for (text, wanted) in [
            ("[[1, 2], [3]]", "lists of one depth differ in length"),
            ("[[1], 2]", "numbers and lists side by side"),
            ("[1, [2]]", "numbers and lists side by side"),
            ("[\"NaN\"]", "invalid type: string \"NaN\", expected a number"),
            ("[NaN]", "expected value"),
            ("[true]", "invalid type: boolean"),
            ("[null]", "invalid type: null"),
            ("[1e999]", "number out of range"),
            ("3", "expected a list of numbers"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        assert!(read(&"[".repeat(100_000)).unwrap_err().contains("nested deeper than 16"));
    }

    #[test]
    fn there_is_a_largest_tensor_in_json() {
        let text = format!("[{}0]", "0,".repeat(MAX_JSON_ELEMENTS));
        assert!(read(&text).unwrap_err().contains("send larger tensors in binary"));
    }
}
