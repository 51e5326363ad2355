//! Keeps a group's log short: flushes the store often enough that what a restart has to
//! replay stays bounded under endless writes, and lets go of what nobody needs any more.
//!
//! A flush makes the state on disk current; openraft takes that for a snapshot, and only
//! what it covers is ever purged. RocksDB flushes by itself when its memtables are full,
//! and openraft is told then; a store that went quiet, or whose memtables take very long
//! to fill, is flushed here.
//!
//! Beyond that, a leader keeps what the slowest follower that is there lacks, and what a
//! state under way will be followed by, within limits; behind those a follower gets a
//! state instead. A follower keeps what was written between its last two flushes: it may
//! have to lead, and others may be behind.
//!
//! # Invariants
//! - What is purged was flushed (`tests/machine.rs`, `only_flushed_entries_are_purged`).
//! - All groups of a process together keep no more than they may
//!   (`many_groups_share_what_may_be_kept`).
//! - What a follower lacks that was heard of lately is kept (`tests/raft_states.rs`,
//!   `the_log_is_kept_for_the_slowest_that_is_there`).
//! - A flush is asked for when the policy says so, and never because of another flush
//!   (`a_flush_does_not_cause_the_next`, there).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, sleep, timeout_at};

use super::group::Group;
use super::machine::Progress;
use super::members::Follower;
use crate::store::Store;

/// How much log may lie between the state on disk and the last entry, and how much is
/// kept for followers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPolicy {
    /// Bytes of batches. A restart replays about 100 MB/s.
    pub bytes_max: u64,
    /// Entries. A restart replays about 100,000 small ones a second.
    pub entries_max: u64,
    /// The age of the oldest write that is not on disk.
    pub age_max: Duration,
    /// Bytes of batches kept for followers that lack them; four times as much while a
    /// state is sent.
    pub retention_bytes: u64,
    /// Bytes of batches kept by all groups of a process together: beyond it each keeps
    /// less, in proportion.
    pub retention_total_bytes: u64,
    /// Entries kept for followers that lack them; four times as many while a state is
    /// sent.
    pub retention_entries: u64,
    /// How long a follower counts as being there after it was heard of, and a new leader
    /// waits to hear of all.
    pub retention_time: Duration,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self {
            bytes_max: 48 << 20,
            entries_max: 100_000,
            age_max: Duration::from_secs(60),
            retention_bytes: 256 << 20,
            retention_total_bytes: 2 << 30,
            retention_entries: 1_000_000,
            retention_time: Duration::from_secs(60),
        }
    }
}

/// What all groups of a process keep, bytes.
pub(super) type KeptInAll = Arc<AtomicU64>;

/// What one group keeps, counted in what all do as long as it is there.
#[derive(Debug)]
pub(super) struct Kept {
    in_all: KeptInAll,
    own: AtomicU64,
}

impl Kept {
    pub(super) fn new(in_all: KeptInAll) -> Kept {
        Kept { in_all, own: AtomicU64::new(0) }
    }

    /// It keeps so much now.
    fn note(&self, bytes: u64) {
        let before = self.own.swap(bytes, Ordering::Relaxed);
        // Wraps around, and back with the next one's share.
        self.in_all.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Of `most`, what it may keep so that all keep `in_all_max` at most: all, as long as
    /// there is room; then its part, by what it keeps.
    fn share(&self, most: u64, in_all_max: u64) -> u64 {
        let (own, in_all) = (self.own.load(Ordering::Relaxed), self.in_all.load(Ordering::Relaxed));
        if in_all <= in_all_max {
            return most;
        }
        most.min((u128::from(own) * u128::from(in_all_max) / u128::from(in_all)) as u64)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.note(0);
    }
}

/// How often a busy store is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often it is looked whether followers still need what is kept for them.
const LOOK_FOR_FOLLOWERS_EVERY: Duration = Duration::from_secs(2);
/// The most flushes that are remembered.
const MARKS_MAX: usize = 1024;

/// A flush: up to which entry, and how many bytes had been applied by then.
#[derive(Debug, Clone, Copy)]
struct Mark {
    index: u64,
    bytes: u64,
}

/// Flushes `store` and lets `group` purge its log whenever `policy` says so; ends when
/// the group's state machine does. Costs nothing while nothing is written and nobody
/// lags.
pub async fn run_log_compaction(
    group: Group,
    store: Store,
    mut progress: Progress,
    policy: LogPolicy,
) {
    let index =
        |progress: &mut Progress| progress.borrow_and_update().as_ref().map_or(0, |id| id.index);
    // What the log holds beyond the state on disk at the start was written before: it
    // counts.
    let mut last =
        Mark { index: store.flushed().ok().flatten().map_or(0, |flushed| flushed.index), bytes: 0 };
    // How many bytes lie before it is not known; they count from now on.
    let mut marks = VecDeque::from([Mark { index: group.inner.purged_at_start, bytes: 0 }, last]);
    // What an earlier process flushed as it stopped may need no log any more; a group
    // that is only read now would keep it.
    let mut is_kept = last.index > 0;
    let mut dirty_since = None;
    loop {
        // A flush that was asked for here has what came until it began. It is not to be
        // told of again: that would be another flush.
        last.index = last.index.max(group.inner.named.index());
        if index(&mut progress) <= last.index {
            dirty_since = None;
            if !is_kept && progress.changed().await.is_err() {
                return;
            }
        }
        let is_dirty = index(&mut progress) > last.index;
        let mut wake = Instant::now() + LOOK_FOR_FOLLOWERS_EVERY;
        if is_dirty {
            let (flushed, now) = (
                store.flushed().ok().flatten().map_or(0, |flushed| flushed.index),
                store.applied_bytes(),
            );
            // Flushed for another reason, and openraft does not know.
            let has_flushed = flushed > last.index;
            let due = *dirty_since.get_or_insert_with(Instant::now) + policy.age_max;
            let entries = index(&mut progress).saturating_sub(last.index);
            let bytes = now.saturating_sub(last.bytes);
            if has_flushed
                || entries >= policy.entries_max
                || bytes >= policy.bytes_max
                || Instant::now() >= due
            {
                last = Mark {
                    index: if has_flushed { flushed } else { index(&mut progress) },
                    bytes: now,
                };
                marks.push_back(last);
                dirty_since = None;
                if let Err(error) = group.flush().await {
                    tracing::debug!(%error, "the group has ended");
                    return;
                }
                is_kept = true;
            } else {
                wake = if is_kept { wake.min(due) } else { due };
            }
        }
        if is_kept {
            match group.purge_what_nobody_needs(&mut marks, &store, &policy).await {
                Ok(kept) => is_kept = kept,
                Err(error) => {
                    tracing::debug!(%error, "the group has ended");
                    return;
                }
            }
        }
        sleep(LOOK_EVERY).await;
        tokio::select! {
            // Nothing new until then is an outcome like any other.
            _ = timeout_at(wake, progress.changed()) => {}
            () = store.flush_ended() => {}
        }
        if progress.has_changed().is_err() {
            return;
        }
    }
}

impl Group {
    /// Purges what is flushed and nobody needs; says whether something flushed is left
    /// that is to go later.
    async fn purge_what_nobody_needs(
        &self,
        marks: &mut VecDeque<Mark>,
        store: &Store,
        policy: &LogPolicy,
    ) -> Result<bool, super::GroupError> {
        let flushed =
            self.inner.raft.metrics().borrow_watched().snapshot.as_ref().map_or(0, |id| id.index);
        let status = self.status();
        let (applied, purged) =
            (status.stats.applied, status.stats.purged.max(self.inner.purged_at_start));
        let needed = match status.stats.is_leader {
            true => {
                let is_new = self
                    .inner
                    .leads_since()
                    .is_none_or(|since| since.elapsed() < policy.retention_time);
                let is_there = |heard: Option<Duration>| {
                    heard.map_or(is_new, |heard| heard < policy.retention_time)
                };
                // Who lacks what is gone already gets a state; a new leader knows of
                // nobody how much he has.
                let is_served = |follower: &&Follower| {
                    is_there(follower.heard) && (is_new || follower.matched >= purged)
                };
                status
                    .followers
                    .iter()
                    .filter(is_served)
                    .map(|follower| follower.matched)
                    .min()
                    .unwrap_or(u64::MAX)
            }
            // All but what came since the flush before the last.
            false => marks.iter().rev().nth(1).map_or(0, |mark| mark.index),
        };
        let bytes = store.applied_bytes();
        let within = |factor: u64| {
            let is_within = |mark: &&Mark| {
                bytes.saturating_sub(mark.bytes)
                    <= self.inner.kept.share(
                        policy.retention_bytes.saturating_mul(factor),
                        policy.retention_total_bytes,
                    )
                    && applied.saturating_sub(mark.index)
                        <= policy.retention_entries.saturating_mul(factor)
            };
            // Without any, the newest: nothing flushed is kept.
            marks.iter().find(is_within).or(marks.back()).map_or(0, |mark| mark.index)
        };
        let held = self.inner.peers.holds.lowest();
        let upto = match held {
            Some(held) => needed.max(within(1)).min(held.max(within(4))),
            None => needed.max(within(1)),
        };
        let upto = upto.min(flushed);
        while marks.len() > 2 && marks[1].index <= upto || marks.len() > MARKS_MAX {
            marks.pop_front();
        }
        let before =
            marks.iter().rev().find(|mark| mark.index <= upto).map_or(bytes, |mark| mark.bytes);
        self.inner.kept.note(bytes.saturating_sub(before));
        if upto > purged {
            self.purge(upto).await?;
        }
        // A follower's last cycle goes with the next flush.
        let newest = marks.back().map_or(0, |mark| mark.index);
        Ok(upto < newest && (status.stats.is_leader || flushed < newest || held.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_groups_share_what_may_be_kept() {
        let in_all = KeptInAll::default();
        let groups: Vec<Kept> = (0..10).map(|_| Kept::new(in_all.clone())).collect();
        groups.iter().for_each(|group| group.note(100));
        assert_eq!(groups[0].share(250, 1000), 250, "there is room");
        groups[0].note(1100);
        // Each looks in turn, and lets go of what is beyond its share.
        for _ in 0..10 {
            for group in &groups {
                let share = group.share(250, 1000);
                group.note(group.own.load(Ordering::Relaxed).min(share));
            }
        }
        assert!((500..=1000).contains(&in_all.load(Ordering::Relaxed)), "{in_all:?}");
        drop(groups);
        assert_eq!(in_all.load(Ordering::Relaxed), 0);
    }
}
