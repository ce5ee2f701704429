//! Frames from one key frame to the next, encoded, and how they are kept.

/// Bit of a sample's size that says that playing can start there.
const KEY: u32 = 1 << 31;

/// One frame in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) bytes: u32,
    /// Can playing start here?
    pub(super) key: bool,
}

/// Encoded frames of which the first needs none before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) sps: Vec<u8>,
    pub(super) pps: Vec<u8>,
    pub(super) samples: Vec<Sample>,
    /// The samples, one after the other: NAL units, each after its length in 4 bytes.
    pub(super) payload: Vec<u8>,
}

impl Segment {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![];
        for set in [&self.sps, &self.pps] {
            bytes.extend((set.len() as u16).to_le_bytes());
            bytes.extend(set);
        }
        bytes.extend((self.samples.len() as u32).to_le_bytes());
        for sample in &self.samples {
            bytes.extend((sample.bytes | if sample.key { KEY } else { 0 }).to_le_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// The segment that was kept; `None` when it is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (sps, rest) = parameter_set(bytes)?;
        let (pps, rest) = parameter_set(rest)?;
        let (count, rest) = rest.split_first_chunk()?;
        let (sizes, payload) =
            rest.split_at_checked((u32::from_le_bytes(*count) as usize).checked_mul(size_of::<u32>())?)?;
        let sample = |size: &[u8; 4]| {
            let size = u32::from_le_bytes(*size);
            Sample { bytes: size & !KEY, key: size & KEY != 0 }
        };
        let samples: Vec<Sample> = sizes.as_chunks().0.iter().map(sample).collect();
        let total: u64 = samples.iter().map(|s| u64::from(s.bytes)).sum();
        let whole = total == payload.len() as u64 && samples.first().is_some_and(|first| first.key);
        whole.then(|| Self { sps, pps, samples, payload: payload.to_vec() })
    }
}

fn parameter_set(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (set, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some((set.to_vec(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_comes_back_whole_or_not_at_all() {
        let segment = Segment {
            sps: vec![0x67, 66],
            pps: vec![0x68],
            samples: vec![Sample { bytes: 5, key: true }, Sample { bytes: 2, key: false }],
            payload: (0..7).collect(),
        };
        let bytes = segment.to_bytes();
        assert_eq!(Segment::parse(&bytes).unwrap(), segment);
        for cut in 0..bytes.len() {
            assert!(Segment::parse(&bytes[..cut]).is_none(), "{cut}");
        }
    }
}
