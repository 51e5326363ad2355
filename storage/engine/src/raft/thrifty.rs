//! Thrifty replication: the leader sends every batch immediately to just enough followers
//! for a quorum, and to the others a little later.
//!
//! A leader needs one of two followers, or two of four. The others (lazy followers)
//! receive batches every [`LAZY_INTERVAL`]: one message, one fsync and one answer for
//! many batches. A write that is acknowledged is on the disks of a majority either way,
//! and on all others a few milliseconds later.
//!
//! A lazy follower that overtakes one of the quorum takes its place. When a follower of
//! the quorum becomes slow, freezes or dies, writes take one interval longer, once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::types::RaftId;

/// Interval at which lazy followers receive batches.
pub(super) const LAZY_INTERVAL: Duration = Duration::from_millis(5);
/// A follower of the quorum that has acknowledged nothing for this time may be replaced.
const STALE_AFTER: Duration = LAZY_INTERVAL.saturating_mul(2);

/// The followers of a leader's thrifty quorum.
#[derive(Debug, Default)]
pub(super) struct ThriftyQuorum(Mutex<QuorumState>);

#[derive(Debug, Default)]
struct QuorumState {
    /// Followers that vote.
    voters: BTreeSet<RaftId>,
    /// The number of followers that make a majority with the leader; `None` while members
    /// change: all are sent every batch.
    needed: Option<usize>,
    /// At most `needed` followers.
    quorum: Vec<AckedFollower>,
}

#[derive(Debug, Clone, Copy)]
struct AckedFollower {
    id: RaftId,
    acked: u64,
    at: Instant,
}

impl ThriftyQuorum {
    /// Sets the followers that vote; `is_stable` is false while members change.
    pub(super) fn set_voters(&self, voters: BTreeSet<RaftId>, is_stable: bool) {
        let mut state = self.0.lock();
        // The leader and half of the others, rounded up, are a majority.
        state.needed = is_stable.then(|| voters.len().div_ceil(2));
        let needed = state.needed.unwrap_or(0);
        state.quorum.retain(|follower| voters.contains(&follower.id));
        state.quorum.truncate(needed);
        state.voters = voters;
    }

    /// True when a follower is to receive every batch immediately.
    pub(super) fn is_in_quorum(&self, id: RaftId) -> bool {
        let state = self.0.lock();
        match state.needed {
            Some(needed) => {
                state.quorum.len() < needed || state.quorum.iter().any(|follower| follower.id == id)
            }
            None => true,
        }
    }

    /// Records that a follower has everything up to `index`.
    pub(super) fn acknowledged(&self, id: RaftId, index: u64, now: Instant) {
        let mut state = self.0.lock();
        let Some(needed) = state.needed else { return };
        if !state.voters.contains(&id) {
            return;
        }
        let new = AckedFollower { id, acked: index, at: now };
        let overtaken = |old: &&mut AckedFollower| old.acked < index && now >= old.at + STALE_AFTER;
        if let Some(old) = state.quorum.iter_mut().find(|old| old.id == id) {
            *old = AckedFollower { acked: old.acked.max(index), ..new };
        } else if state.quorum.len() < needed {
            state.quorum.push(new);
        } else if let Some(old) = state.quorum.iter_mut().find(overtaken) {
            *old = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thrifty_quorum_is_a_majority_and_replaces_the_overtaken() {
        let (quorum, start) = (ThriftyQuorum::default(), Instant::now());
        assert!(quorum.is_in_quorum(2) && quorum.is_in_quorum(3), "nothing is known yet");
        quorum.set_voters(BTreeSet::from([2, 3]), true);
        assert!(
            quorum.is_in_quorum(2) && quorum.is_in_quorum(3),
            "no follower has acknowledged anything yet"
        );
        quorum.acknowledged(9, 50, start);
        assert!(quorum.is_in_quorum(2) && quorum.is_in_quorum(3), "a learner does not count");
        quorum.acknowledged(3, 10, start);
        assert!(quorum.is_in_quorum(3) && !quorum.is_in_quorum(2));
        quorum.acknowledged(2, 12, start + LAZY_INTERVAL);
        assert!(quorum.is_in_quorum(3) && !quorum.is_in_quorum(2), "it may be about to answer");
        quorum.acknowledged(2, 13, start + STALE_AFTER);
        assert!(quorum.is_in_quorum(2) && !quorum.is_in_quorum(3));
        quorum.acknowledged(3, 13, start + 10 * STALE_AFTER);
        assert!(
            quorum.is_in_quorum(2) && !quorum.is_in_quorum(3),
            "nothing was to be acknowledged"
        );
        quorum.set_voters(BTreeSet::from([2, 3]), false);
        assert!(quorum.is_in_quorum(2) && quorum.is_in_quorum(3), "members change");
        quorum.set_voters(BTreeSet::from([3, 4, 5, 6]), true);
        for id in 3..=6 {
            quorum.acknowledged(id, 20, start);
        }
        assert_eq!((3..=6).filter(|id| quorum.is_in_quorum(*id)).collect::<Vec<_>>(), [3, 4]);
    }
}
