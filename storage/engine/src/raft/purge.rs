//! Compaction of a group's log: flushes of the store that bound the replay after a
//! restart, and purges of entries that no replica needs any more.
//!
//! A flush makes the state on disk current. openraft takes that for a snapshot, and only
//! entries that a snapshot covers are ever purged. RocksDB flushes on its own when its
//! memtables are full, and openraft is told then; a store that is idle, or whose
//! memtables take very long to fill, is flushed here.
//!
//! A leader also retains, within limits, the entries that its slowest follower lacks, and
//! those that follow a snapshot in flight. A follower beyond the limits is sent a
//! snapshot. A follower retains the entries between its last two flushes: it may become
//! leader, and others may be behind.
//!
//! # Invariants
//! - Only flushed entries are purged (`tests/machine.rs`,
//!   `only_flushed_entries_are_purged`).
//! - All groups of a process together observe the total limit
//!   (`groups_share_the_total_retention`).
//! - Entries that a follower lacks are retained while it is up
//!   (`tests/raft_snapshots.rs`, `log_is_retained_for_the_slowest_follower_that_is_up`).
//! - Flushes are triggered by the policy only, never by an earlier flush
//!   (`tests/machine.rs`, `a_flush_does_not_cause_the_next`).

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

/// Limits of the log between the state on disk and the last entry, and of the log that is
/// retained for followers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPolicy {
    /// Bytes of batches. A restart replays about 100 MB/s.
    pub bytes_max: u64,
    /// Entries. A restart replays about 100,000 small ones a second.
    pub entries_max: u64,
    /// The age of the oldest write that is not on disk.
    pub age_max: Duration,
    /// Bytes of batches retained for followers that lack them; four times as many while a
    /// snapshot is sent.
    pub retention_bytes: u64,
    /// Bytes of batches retained by all groups of a process together: beyond it each
    /// retains less, in proportion.
    pub retention_total_bytes: u64,
    /// Entries retained for followers that lack them; four times as many while a snapshot
    /// is sent.
    pub retention_entries: u64,
    /// The time after its last contact for which a follower counts as up, and for which a
    /// new leader waits for contact with all.
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

/// Bytes retained by all groups of a process.
pub(super) type RetainedTotal = Arc<AtomicU64>;

/// Bytes retained by one group, counted in the total while the group exists.
#[derive(Debug)]
pub(super) struct RetainedLog {
    in_all: RetainedTotal,
    own: AtomicU64,
}

impl RetainedLog {
    pub(super) fn new(in_all: RetainedTotal) -> RetainedLog {
        RetainedLog { in_all, own: AtomicU64::new(0) }
    }

    /// Sets the bytes that it retains now.
    fn set(&self, bytes: u64) {
        let before = self.own.swap(bytes, Ordering::Relaxed);
        // Wraps around, and back with the next share.
        self.in_all.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    /// The part of `most` that it may retain so that all groups retain at most
    /// `in_all_max`: everything while there is room; then a share in proportion to what
    /// it retains.
    fn share(&self, most: u64, in_all_max: u64) -> u64 {
        let (own, in_all) = (self.own.load(Ordering::Relaxed), self.in_all.load(Ordering::Relaxed));
        if in_all <= in_all_max {
            return most;
        }
        most.min((u128::from(own) * u128::from(in_all_max) / u128::from(in_all)) as u64)
    }
}

impl Drop for RetainedLog {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Interval at which a busy store is checked.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval at which the followers' needs are checked.
const FOLLOWER_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The most flushes that are remembered.
const FLUSH_POINTS_MAX: usize = 1024;

/// A flush: its last entry, and the bytes that had been applied by then.
#[derive(Debug, Clone, Copy)]
struct FlushPoint {
    index: u64,
    bytes: u64,
}

/// Flushes `store` and purges the log of `group` according to `policy`; ends with the
/// group's state machine. Costs nothing while nothing is written and no follower lags.
pub async fn run_log_compaction(
    group: Group,
    store: Store,
    mut progress: Progress,
    policy: LogPolicy,
) {
    let index =
        |progress: &mut Progress| progress.borrow_and_update().as_ref().map_or(0, |id| id.index);
    // Entries beyond the state on disk at the start were written before, and count.
    let mut last = FlushPoint {
        index: store.flushed().ok().flatten().map_or(0, |flushed| flushed.index),
        bytes: 0,
    };
    // The number of bytes before it is not known; they count from now on.
    let mut flush_points =
        VecDeque::from([FlushPoint { index: group.inner.purged_at_start, bytes: 0 }, last]);
    // After a flush at the end of an earlier process the log may be purged at once; a
    // group that is only read now would keep it otherwise.
    let mut has_unpurged = last.index > 0;
    let mut dirty_since = None;
    loop {
        // A flush that was triggered here covers the entries until its beginning.
        // Reporting it again would trigger another flush.
        last.index = last.index.max(group.inner.announced.index());
        if index(&mut progress) <= last.index {
            dirty_since = None;
            if !has_unpurged && progress.changed().await.is_err() {
                return;
            }
        }
        let is_dirty = index(&mut progress) > last.index;
        let mut wake = Instant::now() + FOLLOWER_POLL_INTERVAL;
        if is_dirty {
            let (flushed, now) = (
                store.flushed().ok().flatten().map_or(0, |flushed| flushed.index),
                store.applied_bytes(),
            );
            // RocksDB has flushed on its own, and openraft does not know.
            let has_flushed = flushed > last.index;
            let due = *dirty_since.get_or_insert_with(Instant::now) + policy.age_max;
            let entries = index(&mut progress).saturating_sub(last.index);
            let bytes = now.saturating_sub(last.bytes);
            if has_flushed
                || entries >= policy.entries_max
                || bytes >= policy.bytes_max
                || Instant::now() >= due
            {
                last = FlushPoint {
                    index: if has_flushed { flushed } else { index(&mut progress) },
                    bytes: now,
                };
                flush_points.push_back(last);
                dirty_since = None;
                if let Err(error) = group.flush().await {
                    tracing::debug!(%error, "the group has ended");
                    return;
                }
                has_unpurged = true;
            } else {
                wake = if has_unpurged { wake.min(due) } else { due };
            }
        }
        if has_unpurged {
            match group.purge_unneeded(&mut flush_points, &store, &policy).await {
                Ok(retained) => has_unpurged = retained,
                Err(error) => {
                    tracing::debug!(%error, "the group has ended");
                    return;
                }
            }
        }
        sleep(BUSY_POLL_INTERVAL).await;
        tokio::select! {
            // A timeout is an outcome like any other.
            _ = timeout_at(wake, progress.changed()) => {}
            () = store.flush_ended() => {}
        }
        if progress.has_changed().is_err() {
            return;
        }
    }
}

impl Group {
    /// Purges flushed entries that no replica needs. Returns whether flushed entries are
    /// left to be purged later.
    async fn purge_unneeded(
        &self,
        flush_points: &mut VecDeque<FlushPoint>,
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
                let is_there = |last_contact: Option<Duration>| {
                    last_contact.map_or(is_new, |last_contact| last_contact < policy.retention_time)
                };
                // A follower that lacks purged entries is sent a snapshot; a new leader
                // does not know yet how much each follower has.
                let is_served = |follower: &&Follower| {
                    is_there(follower.last_contact) && (is_new || follower.matched >= purged)
                };
                status
                    .followers
                    .iter()
                    .filter(is_served)
                    .map(|follower| follower.matched)
                    .min()
                    .unwrap_or(u64::MAX)
            }
            // A follower retains the entries since the flush before the last.
            false => flush_points.iter().rev().nth(1).map_or(0, |flush_point| flush_point.index),
        };
        let bytes = store.applied_bytes();
        let within = |factor: u64| {
            let is_within = |flush_point: &&FlushPoint| {
                bytes.saturating_sub(flush_point.bytes)
                    <= self.inner.retained.share(
                        policy.retention_bytes.saturating_mul(factor),
                        policy.retention_total_bytes,
                    )
                    && applied.saturating_sub(flush_point.index)
                        <= policy.retention_entries.saturating_mul(factor)
            };
            // If none is within the limits, the newest: no flushed entry is retained.
            flush_points
                .iter()
                .find(is_within)
                .or(flush_points.back())
                .map_or(0, |flush_point| flush_point.index)
        };
        let pinned = self.inner.peers.pins.lowest_pinned();
        let upto = match pinned {
            Some(pinned) => needed.max(within(1)).min(pinned.max(within(4))),
            None => needed.max(within(1)),
        };
        let upto = upto.min(flushed);
        while flush_points.len() > 2 && flush_points[1].index <= upto
            || flush_points.len() > FLUSH_POINTS_MAX
        {
            flush_points.pop_front();
        }
        let before = flush_points
            .iter()
            .rev()
            .find(|flush_point| flush_point.index <= upto)
            .map_or(bytes, |flush_point| flush_point.bytes);
        self.inner.retained.set(bytes.saturating_sub(before));
        if upto > purged {
            self.purge(upto).await?;
        }
        // A follower's last interval goes with the next flush.
        let newest = flush_points.back().map_or(0, |flush_point| flush_point.index);
        Ok(upto < newest && (status.stats.is_leader || flushed < newest || pinned.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_the_total_retention() {
        let in_all = RetainedTotal::default();
        let groups: Vec<RetainedLog> = (0..10).map(|_| RetainedLog::new(in_all.clone())).collect();
        groups.iter().for_each(|group| group.set(100));
        assert_eq!(groups[0].share(250, 1000), 250, "there is room");
        groups[0].set(1100);
        // Each takes its turn, and gives up what is beyond its share.
        for _ in 0..10 {
            for group in &groups {
                let share = group.share(250, 1000);
                group.set(group.own.load(Ordering::Relaxed).min(share));
            }
        }
        assert!((500..=1000).contains(&in_all.load(Ordering::Relaxed)), "{in_all:?}");
        drop(groups);
        assert_eq!(in_all.load(Ordering::Relaxed), 0);
    }
}
