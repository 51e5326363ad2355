//! Which followers get every batch at once, and which may wait a little.
//!
//! A leader needs as many followers as make a majority with it: one of two, two of four.
//! These are served promptly. The others get what has gathered every [`LAZY_PERIOD`]: a
//! letter, an fsync and an answer for many batches. What is acknowledged is on the disks
//! of a majority either way, and all others have it a few milliseconds later.
//!
//! A follower that was not prompt takes the place of one that it has overtaken: when a
//! prompt one is slow, frozen or dead, writes take a period longer, once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::types::RaftId;

/// How often followers that no majority waits for are given what has gathered.
pub(super) const LAZY_PERIOD: Duration = Duration::from_millis(5);
/// A prompt follower that has acknowledged nothing for so long may be replaced.
const STALE: Duration = LAZY_PERIOD.saturating_mul(2);

/// The prompt followers of a group; of use while this replica leads.
#[derive(Debug, Default)]
pub(super) struct Prompt(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Followers that vote.
    voters: BTreeSet<RaftId>,
    /// How many of them the leader needs; `None`: all, while members change.
    needed: Option<usize>,
    /// At most as many as are needed.
    prompt: Vec<Follower>,
}

#[derive(Debug, Clone, Copy)]
struct Follower {
    id: RaftId,
    acked: u64,
    at: Instant,
}

impl Prompt {
    /// The followers that vote; `is_stable` unless members are being changed.
    pub(super) fn set_voters(&self, voters: BTreeSet<RaftId>, is_stable: bool) {
        let mut state = self.0.lock();
        // The leader and half of the others, rounded up, are a majority.
        state.needed = is_stable.then(|| voters.len().div_ceil(2));
        let needed = state.needed.unwrap_or(0);
        state.prompt.retain(|follower| voters.contains(&follower.id));
        state.prompt.truncate(needed);
        state.voters = voters;
    }

    /// Whether a follower is to get every batch at once.
    pub(super) fn is_prompt(&self, id: RaftId) -> bool {
        let state = self.0.lock();
        match state.needed {
            Some(needed) => {
                state.prompt.len() < needed || state.prompt.iter().any(|follower| follower.id == id)
            }
            None => true,
        }
    }

    /// A follower has everything up to an index.
    pub(super) fn acknowledged(&self, id: RaftId, index: u64, now: Instant) {
        let mut state = self.0.lock();
        let Some(needed) = state.needed else { return };
        if !state.voters.contains(&id) {
            return;
        }
        let new = Follower { id, acked: index, at: now };
        let overtaken = |old: &&mut Follower| old.acked < index && now >= old.at + STALE;
        if let Some(old) = state.prompt.iter_mut().find(|old| old.id == id) {
            *old = Follower { acked: old.acked.max(index), ..new };
        } else if state.prompt.len() < needed {
            state.prompt.push(new);
        } else if let Some(old) = state.prompt.iter_mut().find(overtaken) {
            *old = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_prompt_as_make_a_majority_and_the_overtaken_are_replaced() {
        let (prompt, start) = (Prompt::default(), Instant::now());
        assert!(prompt.is_prompt(2) && prompt.is_prompt(3), "nothing is known yet");
        prompt.set_voters(BTreeSet::from([2, 3]), true);
        assert!(prompt.is_prompt(2) && prompt.is_prompt(3), "nobody has acknowledged anything yet");
        prompt.acknowledged(9, 50, start);
        assert!(prompt.is_prompt(2) && prompt.is_prompt(3), "a learner does not count");
        prompt.acknowledged(3, 10, start);
        assert!(prompt.is_prompt(3) && !prompt.is_prompt(2));
        prompt.acknowledged(2, 12, start + LAZY_PERIOD);
        assert!(prompt.is_prompt(3) && !prompt.is_prompt(2), "it may be about to answer");
        prompt.acknowledged(2, 13, start + STALE);
        assert!(prompt.is_prompt(2) && !prompt.is_prompt(3));
        prompt.acknowledged(3, 13, start + 10 * STALE);
        assert!(prompt.is_prompt(2) && !prompt.is_prompt(3), "nothing was to be acknowledged");
        prompt.set_voters(BTreeSet::from([2, 3]), false);
        assert!(prompt.is_prompt(2) && prompt.is_prompt(3), "members change");
        prompt.set_voters(BTreeSet::from([3, 4, 5, 6]), true);
        for id in 3..=6 {
            prompt.acknowledged(id, 20, start);
        }
        assert_eq!((3..=6).filter(|id| prompt.is_prompt(*id)).collect::<Vec<_>>(), [3, 4]);
    }
}
