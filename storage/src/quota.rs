//! Memory for requests and batches: one quota for all partitions of a node.
//!
//! A partition's queue is bounded, and so is a batch; hundreds of partitions that wait
//! for one slow disk are not. So one quota counts what waits for an executor, and what
//! batches in flight hold (edits, answers), in the form in which it is kept. What does
//! not fit is refused before anything is proposed.
//!
//! The first few KiB of each holder are free: a request that is answered at once touches
//! no memory that all partitions share.
//!
//! # Invariants
//! - Reserved bytes are given back when their [`Reservation`] is dropped, whatever
//!   becomes of its holder.
//! - A node on which nothing is reserved takes any one request, so that none is refused
//!   for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that each holder has for free, and the step in which further bytes are counted.
const FREE_BYTES: usize = 16 << 10;

/// The memory that requests and batches of all partitions may take, and do take.
#[derive(Debug)]
pub(crate) struct Quota {
    bytes_max: usize,
    reserved: AtomicUsize,
}

/// A part of a [`Quota`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    quota: Arc<Quota>,
    bytes: usize,
}

impl Quota {
    pub(crate) fn new(bytes_max: usize) -> Arc<Quota> {
        Arc::new(Quota { bytes_max, reserved: AtomicUsize::new(0) })
    }

    /// An empty reservation for one holder, to be grown.
    pub(crate) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { quota: self.clone(), bytes: 0 }
    }

    /// The bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes_max.saturating_sub(self.reserved.load(Ordering::Acquire))
    }

    /// The whole quota, bytes.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

impl Reservation {
    /// Grows the reservation to this many bytes, before its holder takes them, if they
    /// are left or nothing is reserved.
    pub(crate) fn try_resize(&mut self, bytes: usize) -> bool {
        let wanted = counted(bytes);
        if wanted > self.bytes {
            let (more, bytes_max) = (wanted - self.bytes, self.quota.bytes_max);
            let grown = |reserved: usize| {
                (reserved == 0 || reserved.saturating_add(more) <= bytes_max)
                    .then(|| reserved + more)
            };
            if self.quota.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_err()
            {
                return false;
            }
            self.bytes = wanted;
        }
        true
    }

    /// Sets the reservation to the bytes that its holder has now, even beyond what is
    /// left.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let wanted = counted(bytes);
        match wanted.checked_sub(self.bytes) {
            Some(0) => return,
            Some(more) => self.quota.reserved.fetch_add(more, Ordering::AcqRel),
            None => self.quota.reserved.fetch_sub(self.bytes - wanted, Ordering::AcqRel),
        };
        self.bytes = wanted;
    }
}

fn counted(bytes: usize) -> usize {
    bytes.saturating_sub(FREE_BYTES).next_multiple_of(FREE_BYTES)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: usize = FREE_BYTES;

    #[test]
    fn reservations_are_bounded_and_returned() {
        let quota = Quota::new(100 * STEP);
        let (mut first, mut second) = (quota.reservation(), quota.reservation());
        assert!(first.try_resize(STEP) && quota.left() == 100 * STEP, "the first step is free");
        assert!(first.try_resize(61 * STEP));
        assert!(!second.try_resize(42 * STEP) && second.try_resize(41 * STEP));
        assert_eq!(quota.left(), 0);
        drop(first);
        assert_eq!(quota.left(), 60 * STEP);
        // Memory that is taken already is counted, even beyond the bound; then no
        // reservation grows.
        second.resize(150 * STEP);
        assert!(quota.left() == 0 && !quota.reservation().try_resize(2 * STEP));
        second.resize(11 * STEP);
        assert_eq!(quota.left(), 90 * STEP);
        drop(second);
        assert!(quota.reservation().try_resize(1000 * STEP), "alone, anything fits");
        assert_eq!(quota.left(), 100 * STEP);
    }
}
