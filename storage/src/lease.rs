//! The leader's lease: the right to answer reads without a round to the other members,
//! for a limited time and in one term.
//!
//! After Raft has confirmed leadership (`ensure_linearizable` under `LeaseRead` with half
//! of the lease), no other leader can commit before the other half has passed; until then
//! reads are answered at once. The clock is the boot clock, which runs on while the
//! machine is suspended. Where even that clock stands still, leases are revoked as soon
//! as the jump shows ([`Ticker::clock_jumps`](engine::raft::Ticker::clock_jumps)).
//!
//! # Epochs
//! Leadership may be lost and won again during a read of the state, or between two reads.
//! So a lease is of one *epoch*: a new epoch begins whenever the lease is revoked, and
//! with each term in which this replica leads. A reader notes the epoch before its read,
//! and answers when that epoch's lease is valid after the read: the lease of another
//! epoch does not cover it. The executor uses the lease's term in the same way.
//!
//! # Invariants
//! - A lease that was revoked, or is of another term, covers no read that began before
//!   (`a_read_is_covered_by_the_lease_it_began_under`).
//! - A lease is over when the machine was suspended for longer
//!   (`a_machine_that_was_suspended_wakes_without_a_lease`).
//! - A confirmation of an earlier term than the lease's has no effect
//!   (`a_lease_never_goes_back_to_an_earlier_term`).
//!
//! Source of the rule: Raft thesis 6.4.1 with the margins of openraft's `leader_lease`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::clocks::Clocks;
use engine::mutants::{self, Rule};
use parking_lot::Mutex;

/// The time until which reads may be answered, and the term.
pub(crate) struct Lease {
    clocks: Arc<dyn Clocks>,
    /// The end of the lease by the boot clock; 0: there is none.
    valid_until_ns: AtomicU64,
    epoch: AtomicU64,
    /// The rest of the lease, and the lock under which the lease changes.
    state: Mutex<LeaseState>,
}

#[derive(Debug, Default)]
struct LeaseState {
    /// Grows with every revocation, so that a confirmation that was under way meanwhile
    /// has no effect.
    revoked: u64,
    /// The term of the last lease.
    term: u64,
}

/// A confirmation under way: the time at which it was requested, and the revocations
/// until then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseRequest {
    at_ns: u64,
    revoked: u64,
}

/// The lease under which a read began.
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

    /// True when a read may be answered now.
    pub(crate) fn is_valid(&self) -> bool {
        let valid_until_ns = self.valid_until_ns.load(Ordering::Acquire);
        self.now_ns() < valid_until_ns || (mutants::breaks(Rule::Lease) && valid_until_ns > 0)
    }

    /// The lease that is to cover a read, if there is one. It is noted before the read.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        // In this order: an epoch begins without a lease.
        let epoch = self.epoch.load(Ordering::Acquire);
        self.is_valid().then_some(Epoch(epoch))
    }

    /// True when what was read under this epoch may be answered. It is asked after the
    /// read.
    pub(crate) fn covers(&self, epoch: Epoch) -> bool {
        // In this order: a valid lease is of this epoch or an earlier one.
        self.is_valid() && self.epoch.load(Ordering::Acquire) == epoch.0
    }

    /// The term in which reads may be answered now, if they may.
    pub(crate) fn term(&self) -> Option<u64> {
        let state = self.state.lock();
        self.is_valid().then_some(state.term)
    }

    /// Notes time and revocations, before leadership is confirmed.
    pub(crate) fn request(&self) -> LeaseRequest {
        LeaseRequest { at_ns: self.now_ns(), revoked: self.state.lock().revoked }
    }

    /// Grants a lease after leadership of a term was confirmed. The acknowledgement is at
    /// most `age` old, and Raft's lease is twice that: the lease is valid for `age` from
    /// the request on. The caller has forgotten by now what it knew of rows in an earlier
    /// term.
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

    /// Ends the lease: leadership was given away or lost.
    pub(crate) fn revoke(&self) {
        let mut state = self.state.lock();
        state.revoked += 1;
        self.begin_epoch();
    }

    /// Begins an epoch, under the lock. The lease ends first: a reader that sees the new
    /// epoch must not see the lease of the old one.
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
        // Leadership goes away and comes back within the same read, in a later term and,
        // once, in the same.
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

    /// Only the boot clock runs, ms; the monotonic one stands still.
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
