//! How a kernel uses more than one processor. What it computes never depends on how many there are: work is cut where
//! no sum crosses the cut.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// Runs independent jobs, side by side where there is room.
pub trait Spread: Sync {
    /// How many jobs can run side by side, at least 1.
    fn width(&self) -> usize;

    /// Calls `job(0)` to `job(jobs − 1)`, in any order. Returns when all are done.
    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync));
}

/// One job after the other.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Spread for Alone {
    fn width(&self) -> usize {
        1
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..jobs).for_each(job);
    }
}

/// Numbers for which it pays to ask another processor.
const WORTH: usize = 1 << 15;
/// Pieces for each processor: one that is late leaves less to wait for.
const PIECES: usize = 4;

/// Calls `work` with ranges that together are `0..items`; `cost` is about how many numbers each item touches. Ranges
/// start at multiples of `unit`.
pub fn split(spread: &dyn Spread, items: usize, unit: usize, cost: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    let units = items.div_ceil(unit);
    let pieces = if spread.width() == 1 { 1 } else { spread.width() * PIECES };
    let each = units.div_ceil(pieces).max(WORTH.div_ceil(unit.saturating_mul(cost).max(1))) * unit;
    match items.div_ceil(each) {
        0 => {}
        1 => work(0..items),
        jobs => spread.spread(jobs, &|i| work(i * each..items.min((i + 1) * each))),
    }
}

/// Into how many pieces to cut each of `items`, none of more than `most`, so that there is something to do for
/// everyone.
pub fn pieces(spread: &dyn Spread, items: usize, most: usize) -> usize {
    if spread.width() == 1 { 1 } else { (spread.width() * PIECES).div_ceil(items.max(1)).clamp(1, most.max(1)) }
}

/// `split` for a result of rows of `row` numbers, each of which one call of `work` writes: it gets the first row's
/// index and the rows.
pub fn split_rows(
    spread: &dyn Spread,
    y: &mut [f32],
    row: usize,
    cost: usize,
    work: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let (rows, y) = (y.len() / row.max(1), Parts::new(y));
    split(spread, rows, 1, cost, &|range| {
        // SAFETY: ranges of rows do not overlap.
        work(range.start, unsafe { y.part(range.start * row..range.end * row) });
    });
}

/// A result whose parts are written by different jobs.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    start: *mut f32,
    len: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]` that is handed out in parts that do not overlap.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub fn new(y: &'a mut [f32]) -> Self {
        Self { start: y.as_mut_ptr(), len: y.len(), owner: PhantomData }
    }

    /// One part.
    ///
    /// # Safety
    /// Parts that exist at the same time do not overlap.
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies inside of the whole");
        // SAFETY: inside of the slice that `new` got, which stays borrowed; no other part overlaps.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}

/// Runs jobs in an order of its own, on threads, as wide as it says: what results must not depend on.
#[cfg(test)]
pub struct Backwards(pub usize);

#[cfg(test)]
impl Spread for Backwards {
    fn width(&self) -> usize {
        self.0
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            (0..jobs).rev().for_each(|i| drop(scope.spawn(move || job(i))));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Never;
    impl Spread for Never {
        fn width(&self) -> usize {
            8
        }
        fn spread(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {
            panic!("not for so little");
        }
    }

    #[test]
    fn every_item_is_in_one_range_that_starts_at_a_multiple_of_the_unit() {
        for (items, unit, width) in [(0, 1, 2), (1, 4, 2), (7, 2, 3), (100, 8, 2), (1000, 1, 5), (1000, 48, 64)] {
            let hits = std::sync::Mutex::new(vec![0; items]);
            split(&Backwards(width), items, unit, WORTH, &|range| {
                assert!(range.start % unit == 0);
                range.for_each(|i| hits.lock().unwrap()[i] += 1);
            });
            assert_eq!(*hits.lock().unwrap(), vec![1; items], "{items} {unit} {width}");
        }
    }

    #[test]
    fn rows_come_with_their_index_and_little_work_stays_where_it_is() {
        for cost in [0, 1, WORTH] {
            let mut y = vec![0.0; 60];
            split_rows(&Backwards(3), &mut y, 3, cost, &|first, rows| {
                for (i, row) in rows.chunks_exact_mut(3).enumerate() {
                    row.fill((first + i) as f32);
                }
            });
            assert!(y.iter().enumerate().all(|(i, &y)| y.to_bits() == ((i / 3) as f32).to_bits()));
        }
        split(&Never, 100, 1, 10, &|range| assert_eq!(range, 0..100));
    }
}
