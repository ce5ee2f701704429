//! Digests of large files, as fast as all processor threads can read and at the memory of one block a thread.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes that one thread takes at a time: a whole subtree of BLAKE3, so a power of two.
const BLOCK: u64 = 16 << 20;
/// Bytes between file and hasher; small enough to stay in a processor's cache.
const BUFFER: usize = 512 << 10;
/// More threads than this wait for the disk only.
const MAX_THREADS: usize = 16;

/// Size and BLAKE3 digest (64 lower-case hexadecimal digits) of the file `path`, which is read but never mapped.
///
/// # Errors
/// Any [`io::Error`]; [`io::ErrorKind::UnexpectedEof`] when the file is cut short meanwhile.
pub fn digest(path: &Path) -> io::Result<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS);
    digest_by(path, threads, BLOCK)
}

/// [`digest`] by `threads` threads in blocks of `block` bytes, a power of two of at least 1024.
fn digest_by(path: &Path, threads: usize, block: u64) -> io::Result<(u64, String)> {
    let length = File::open(path)?.metadata()?.len();
    let blocks = length.div_ceil(block);
    if blocks <= 1 {
        let mut hasher = Hasher::new();
        feed(&mut File::open(path)?, length, &mut hasher)?;
        return Ok((length, hasher.finalize().to_hex().to_string()));
    }
    let (next, done) = (AtomicU64::new(0), Mutex::new(vec![ChainingValue::default(); blocks as usize]));
    let work = || -> io::Result<()> {
        let mut file = File::open(path)?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= blocks {
                return Ok(());
            }
            let mut hasher = Hasher::new();
            hasher.set_input_offset(i * block);
            file.seek(SeekFrom::Start(i * block))?;
            feed(&mut file, block.min(length - i * block), &mut hasher)?;
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[i as usize] = hasher.finalize_non_root();
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(blocks as usize)).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(mine, Result::and)
    })?;
    let values = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (left, right) = values.split_at(left(values.len()));
    let root = merge_subtrees_root(&merge(left), &merge(right), Mode::Hash);
    Ok((length, root.to_hex().to_string()))
}

/// The next `length` bytes of `file`.
fn feed(file: &mut File, mut length: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; (BUFFER as u64).min(length) as usize];
    while length > 0 {
        let part = (buffer.len() as u64).min(length) as usize;
        file.read_exact(&mut buffer[..part])?;
        hasher.update(&buffer[..part]);
        length -= part as u64;
    }
    Ok(())
}

/// Blocks in the left one of two subtrees: the largest power of two below all.
fn left(blocks: usize) -> usize {
    1 << (blocks - 1).ilog2()
}

fn merge(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = values.split_at(left(values.len()));
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_on_several_threads_give_the_digest_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for length in [0, 1, 1023, 1024, 1025, 2048, 3 * 1024, 5 * 1024 + 7, 8 * 1024, 17 * 1024 + 1] {
            let bytes: Vec<u8> = (0..length).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let expected = blake3::hash(&bytes).to_hex().to_string();
            for threads in [1, 3] {
                assert_eq!(digest_by(&path, threads, 1024).unwrap(), (u64::from(length), expected.clone()));
            }
            assert_eq!(digest(&path).unwrap().1, expected);
        }
    }
}
