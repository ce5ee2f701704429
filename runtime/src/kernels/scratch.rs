//! Memory of a thread that kernels use again and again: fresh pages would cost more than what is computed in them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers of any value; the thread that drops it can have the memory again.
pub struct Scratch {
    numbers: Vec<f32>,
    len: usize,
}

impl Scratch {
    pub fn take(len: usize) -> Self {
        let mut numbers = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        if numbers.len() < len {
            // Freed first: nothing of the old numbers needs to be copied.
            drop(numbers);
            numbers = vec![0.0; len];
        }
        Self { numbers, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        FREE.with_borrow_mut(|free| free.push(std::mem::take(&mut self.numbers)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_numbers_of_its_own_until_it_is_dropped() {
        let mut outer = Scratch::take(3);
        outer.fill(1.0);
        let inner = {
            let mut inner = Scratch::take(5);
            inner.fill(2.0);
            inner.as_ptr()
        };
        assert_eq!(outer.iter().sum::<f32>() as u32, 3);
        assert_eq!(Scratch::take(4).as_ptr(), inner);
        assert_eq!([7, 2].map(|n| Scratch::take(n).len()), [7, 2]);
    }
}
