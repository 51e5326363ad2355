//! The right to answer reads without asking anybody, for a while.
//!
//! After Raft has confirmed leadership (`ensure_linearizable` under `LeaseRead` with half of the lease), no other leader can commit before
//! the other half has passed; until then reads are answered at once. The clock is the monotonic one.
//!
//! Source of the rule: Raft thesis 6.4.1 with the margins of openraft's `leader_lease`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::mutants::{self, Rule};
use parking_lot::Mutex;

/// Until when reads may be answered. 0 = not now.
#[derive(Debug)]
pub(crate) struct Lease {
    start: Instant,
    valid_until_ns: AtomicU64,
    /// Grows with every revocation, so that a confirmation that was under way meanwhile counts for nothing.
    /// Also the lock under which the lease changes.
    revoked: Mutex<u64>,
}

/// A confirmation under way: when it was asked for, and under which revocation count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    at_ns: u64,
    revoked: u64,
}

impl Lease {
    pub(crate) fn new() -> Lease {
        Lease { start: Instant::now(), valid_until_ns: AtomicU64::new(0), revoked: Mutex::new(0) }
    }

    /// May a read be answered now?
    pub(crate) fn is_valid(&self) -> bool {
        let valid_until_ns = self.valid_until_ns.load(Ordering::Acquire);
        self.now_ns() < valid_until_ns || (mutants::breaks(Rule::Lease) && valid_until_ns > 0)
    }

    /// Before leadership is confirmed.
    pub(crate) fn ask(&self) -> Asked {
        Asked { at_ns: self.now_ns(), revoked: *self.revoked.lock() }
    }

    /// Leadership was confirmed with an acknowledgement at most `age` old, and the lease is twice that: good for `age` from the question on.
    pub(crate) fn grant(&self, asked: Asked, age: Duration) {
        let revoked = self.revoked.lock();
        if *revoked == asked.revoked {
            self.valid_until_ns.fetch_max(asked.at_ns + age.as_nanos() as u64, Ordering::AcqRel);
        }
    }

    /// Leadership was given away or lost.
    pub(crate) fn revoke(&self) {
        let mut revoked = self.revoked.lock();
        *revoked += 1;
        self.valid_until_ns.store(0, Ordering::Release);
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_outlives_the_confirmation_that_was_under_way() {
        let lease = Lease::new();
        assert!(!lease.is_valid());
        let asked = lease.ask();
        lease.revoke();
        lease.grant(asked, Duration::from_secs(9));
        assert!(!lease.is_valid());
        lease.grant(lease.ask(), Duration::from_secs(9));
        assert!(lease.is_valid());
        lease.revoke();
        assert!(!lease.is_valid());
    }
}
