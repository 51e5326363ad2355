//! The right to answer reads without asking anybody, for a while and in one term.
//!
//! After Raft has confirmed leadership (`ensure_linearizable` under `LeaseRead` with half
//! of the lease), no other leader can commit before the other half has passed; until then
//! reads are answered at once. The clock is the boot clock, which runs on while the
//! machine is suspended; where even that stands still, leases are revoked as soon as it
//! shows ([`Ticker::jumps`](engine::raft::Ticker::jumps)).
//!
//! # Epochs
//! Leadership may go and come back while somebody looks at the state, or between two
//! looks. So a lease is of one *epoch*: a new one begins whenever the lease is revoked,
//! and with each term of ours. A reader notes the epoch before its look, and answers when
//! that epoch's lease is valid after the look: another one says nothing about what it
//! saw. The executor goes by the lease's term in the same way.
//!
//! # Invariants
//! - A lease that was revoked, or is of another term, covers no look that began before
//!   (`a_read_is_covered_by_the_lease_it_began_under`).
//! - A lease is over when the machine was suspended for longer
//!   (`a_machine_that_was_suspended_wakes_without_a_lease`).
//! - A confirmation of an earlier term than the lease's counts for nothing
//!   (`a_lease_never_goes_back_to_an_earlier_term`).
//!
//! Source of the rule: Raft thesis 6.4.1 with the margins of openraft's `leader_lease`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::clocks::Clocks;
use engine::mutants::{self, Rule};
use parking_lot::Mutex;

/// Until when reads may be answered, and in which term.
pub(crate) struct Lease {
    clocks: Arc<dyn Clocks>,
    /// 0 = not now.
    valid_until_ns: AtomicU64,
    epoch: AtomicU64,
    /// Also the lock under which the lease changes.
    state: Mutex<LeaseState>,
}

#[derive(Debug, Default)]
struct LeaseState {
    /// Grows with every revocation, so that a confirmation that was under way meanwhile
    /// counts for nothing.
    revoked: u64,
    /// Of the last lease.
    term: u64,
}

/// A confirmation under way: when it was asked for, and under which revocation count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseRequest {
    at_ns: u64,
    revoked: u64,
}

/// The lease under which a look began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Lease {
    pub(crate) fn new(clocks: Arc<dyn Clocks>) -> Lease {
        Lease {
            clocks,
            valid_until_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// May a read be answered now?
    pub(crate) fn is_valid(&self) -> bool {
        let valid_until_ns = self.valid_until_ns.load(Ordering::Acquire);
        self.now_ns() < valid_until_ns || (mutants::breaks(Rule::Lease) && valid_until_ns > 0)
    }

    /// Before a look at the state: the lease that is to cover it, if there is one.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        // In this order: an epoch begins without a lease.
        let epoch = self.epoch.load(Ordering::Acquire);
        self.is_valid().then_some(Epoch(epoch))
    }

    /// After a look at the state: may what was seen be told?
    pub(crate) fn covers(&self, epoch: Epoch) -> bool {
        // In this order: what is valid is so in this epoch or an earlier one.
        self.is_valid() && self.epoch.load(Ordering::Acquire) == epoch.0
    }

    /// The term in which reads may be answered now, if they may.
    pub(crate) fn term(&self) -> Option<u64> {
        let state = self.state.lock();
        self.is_valid().then_some(state.term)
    }

    /// Before leadership is confirmed.
    pub(crate) fn request(&self) -> LeaseRequest {
        LeaseRequest { at_ns: self.now_ns(), revoked: self.state.lock().revoked }
    }

    /// Leadership of a term was confirmed with an acknowledgement at most `age` old, and
    /// Raft's lease is twice that: good for `age` from the question on. Whatever was
    /// known of rows in an earlier term must be forgotten by now.
    pub(crate) fn grant(&self, request: LeaseRequest, age: Duration, term: u64) {
        let mut state = self.state.lock();
        if state.revoked != request.revoked || term < state.term {
            return;
        }
        if term > state.term {
            state.term = term;
            self.begin_epoch();
        }
        self.valid_until_ns.fetch_max(request.at_ns + age.as_nanos() as u64, Ordering::AcqRel);
    }

    /// Leadership was given away or lost.
    pub(crate) fn revoke(&self) {
        let mut state = self.state.lock();
        state.revoked += 1;
        self.begin_epoch();
    }

    /// Under the lock. Without a lease first: who sees the epoch must not see the lease
    /// of the one before.
    fn begin_epoch(&self) {
        self.valid_until_ns.store(0, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn now_ns(&self) -> u64 {
        self.clocks.boot().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use engine::clocks::SystemClocks;

    use super::*;

    fn new() -> Lease {
        Lease::new(Arc::new(SystemClocks))
    }

    const LONG: Duration = Duration::from_secs(9);

    #[test]
    fn a_revocation_outlives_the_confirmation_that_was_under_way() {
        let lease = new();
        assert!(!lease.is_valid());
        let request = lease.request();
        lease.revoke();
        lease.grant(request, LONG, 1);
        assert!(!lease.is_valid());
        lease.grant(lease.request(), LONG, 1);
        assert!(lease.is_valid());
        lease.revoke();
        assert!(!lease.is_valid());
    }

    #[test]
    fn a_read_is_covered_by_the_lease_it_began_under() {
        let lease = new();
        assert_eq!(lease.epoch(), None);
        lease.grant(lease.request(), LONG, 5);
        let look = lease.epoch().expect("a lease");
        assert!(lease.covers(look));
        lease.grant(lease.request(), LONG, 5);
        assert!(lease.covers(look), "it was renewed");
        // Handed over and back within the same look, in a later term and, once, in the
        // same.
        lease.revoke();
        assert!(!lease.covers(look));
        lease.grant(lease.request(), LONG, 5);
        assert!(lease.is_valid() && !lease.covers(look));
        let look = lease.epoch().expect("a lease");
        lease.grant(lease.request(), LONG, 7);
        assert!(
            lease.is_valid() && !lease.covers(look),
            "nobody has revoked it, and it is another"
        );
        assert_eq!(lease.term(), Some(7));
    }

    #[test]
    fn a_lease_never_goes_back_to_an_earlier_term() {
        let lease = new();
        let late = lease.request();
        lease.grant(lease.request(), Duration::ZERO, 7);
        lease.grant(late, LONG, 5);
        assert_eq!((lease.is_valid(), lease.term()), (false, None));
        lease.grant(lease.request(), LONG, 7);
        assert_eq!(lease.term(), Some(7));
    }

    /// The boot clock only, ms; the monotonic one stands still.
    struct Suspended(AtomicU64);

    impl Clocks for Suspended {
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        fn boot(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn wall(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn a_machine_that_was_suspended_wakes_without_a_lease() {
        let clocks = Arc::new(Suspended(AtomicU64::new(1_000)));
        let lease = Lease::new(clocks.clone());
        lease.grant(lease.request(), Duration::from_millis(475), 5);
        let look = lease.epoch().expect("a lease");
        clocks.0.fetch_add(474, Ordering::Relaxed);
        assert!(lease.covers(look));
        clocks.0.fetch_add(5_000, Ordering::Relaxed);
        assert!(!lease.covers(look) && lease.term().is_none());
    }
}
