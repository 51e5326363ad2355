//! The clock of all groups of a process: one task that makes leaders send heartbeats and
//! followers campaign.
//!
//! openraft could tick each group on its own, at five times the cost when groups are
//! idle. Here the heartbeats of all leaders are sent at the same moment and share socket
//! writes. A follower campaigns when its last contact with the leader is older than the
//! lease.
//!
//! Most ticks find nothing to do: leaders are visited at every heartbeat, followers at
//! the time that they asked for, and all after any group's leader has changed.
//!
//! # Quiescence
//! Idle groups should cost less than busy ones. A leader without a request for
//! [`QUIESCE_HEARTBEATS`] heartbeats is quiescent: it sends every other heartbeat only. A
//! follower without an entry for [`QUIESCE_AFTER`], which is shorter, waits for another
//! [`LEADER_LEASE`] before it campaigns. The first read from a quiescent leader may have
//! to ask a quorum. Nothing else changes, as leases count from heartbeats that arrived.
//!
//! # Restart guard
//! At a restart openraft forgets until when it had promised its leader not to vote for
//! another. So a replica with a past neither votes nor campaigns until one lease has
//! passed since the process started, or since the group was last stopped in it. Without
//! this guard, a leader that renewed its lease with the restarted replica's
//! acknowledgement would answer reads after another leader was elected.
//!
//! # Suspended machines
//! openraft's clock stands still while a machine is suspended, so that an acknowledgement
//! from before looks fresh afterwards. The ticker checks whether the clocks have jumped
//! ([`Clocks`]). For a while after a jump, acknowledgements from before it do not count
//! ([`Ticker::trusts_acks`]), and holders of leases are notified
//! ([`Ticker::clock_jumps`]).
//!
//! # Invariants
//! - After a machine was suspended, acknowledgements from before confirm no leader
//!   (`tests/raft_leases.rs`,
//!   `acks_from_before_a_suspend_confirm_no_leader`).
//! - When a transfer fails, another member campaigns long before the lease is over
//!   (`tests/raft_groups.rs`, `transfer_to_a_dead_member_ends_in_an_election`).
//! - A replica that has voted - also a leader that is transferring - does not campaign
//!   before the candidate has had time to win and to send a heartbeat
//!   (`tests/raft_groups.rs`, `voter_lets_its_candidate_win`).
//! - Followers of a quiescent leader are quiescent
//!   (`followers_quiesce_before_their_leader`).
//! - No vote is given within one lease of the last contact with an earlier leader, across
//!   restarts (`tests/raft_leases.rs`, `restarted_voter_keeps_its_promise`).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::group::Inner;
use super::purge::{LogPolicy, RetainedTotal};
use super::snapshot::SnapshotThrottle;
use super::{LEADER_LEASE, QUORUM_ACK_AGE_MAX};
use crate::clocks::{Clocks, JumpDetector, SystemClocks};

/// Interval of ticks.
const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// Interval of a leader's heartbeats.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(300);
/// A leader without a request for this many heartbeats (5 s) is quiescent.
const QUIESCE_HEARTBEATS: u32 = 17;
/// A follower without an entry for this time is quiescent.
const QUIESCE_AFTER: Duration = Duration::from_secs(3);
/// Delay between the campaigns of two members, so that they don't split the votes.
const CAMPAIGN_STAGGER: Duration = Duration::from_millis(80);
/// The shortest wait after the lease before a campaign.
const CAMPAIGN_MARGIN: Duration = Duration::from_millis(20);
/// The shortest time between two campaigns of a candidate; the longest is twice that, at
/// random.
const VOTE_ROUND: Duration = Duration::from_millis(200);
/// A follower that knows of a transfer and sees no new leader for this time campaigns
/// itself.
const TRANSFER_WAIT: Duration = Duration::from_millis(400);
/// The time that a member of a new group waits for the first one to bootstrap it: that
/// one may be lost.
const BOOTSTRAP_WAIT: Duration = LEADER_LEASE.saturating_mul(3);

/// Shared by the groups of a process: the clock, and the throttle of snapshots.
pub struct Ticker {
    started: Instant,
    groups: Mutex<Groups>,
    /// Set when a group's role changes: the times at which groups asked to be visited may
    /// be too late now.
    wakes_all: AtomicBool,
    throttle: Arc<SnapshotThrottle>,
    policy: Mutex<LogPolicy>,
    clocks: Arc<dyn Clocks>,
    detector: Mutex<JumpDetector>,
    /// The time until which acknowledgements may be from before the last jump; changed
    /// under the detector's lock.
    clock_jumps: watch::Sender<Option<Instant>>,
    retained: RetainedTotal,
}

#[derive(Default)]
struct Groups {
    running: Vec<Running>,
    /// When groups were last stopped in this process, by number, for one lease.
    stopped: HashMap<u64, Instant>,
}

struct Running {
    group: Weak<Inner>,
    /// When to visit it; `None`: at every heartbeat.
    due: Option<Instant>,
}

impl Ticker {
    /// Starts the task on the current runtime, which must be the one that runs Raft. The
    /// task ends when the ticker is dropped. Must be called at the start of the process:
    /// the restart guard counts from here.
    pub fn start() -> Arc<Ticker> {
        Self::start_with(Arc::new(SystemClocks))
    }

    /// As [`Ticker::start`], with other clocks.
    pub fn start_with(clocks: Arc<dyn Clocks>) -> Arc<Ticker> {
        let ticker = Arc::new(Ticker {
            started: Instant::now(),
            groups: Mutex::default(),
            wakes_all: false.into(),
            throttle: Arc::default(),
            policy: Mutex::default(),
            detector: Mutex::new(JumpDetector::new(&*clocks)),
            clocks,
            clock_jumps: watch::Sender::default(),
            retained: RetainedTotal::default(),
        });
        tokio::spawn(run(Arc::downgrade(&ticker)));
        ticker
    }

    /// The start of the process.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Limits the rate at which snapshots are sent to other servers, all groups together,
    /// bytes per second; 0 is no limit.
    pub fn set_snapshot_rate(&self, bytes_per_s: u64) {
        self.throttle.set_rate(bytes_per_s);
    }

    /// Sets the log policy of groups that are started from now on.
    pub fn set_log_policy(&self, policy: LogPolicy) {
        *self.policy.lock() = policy;
    }

    /// Bytes of log that all groups retain.
    pub(super) fn retained(&self) -> RetainedTotal {
        self.retained.clone()
    }

    pub(super) fn log_policy(&self) -> LogPolicy {
        *self.policy.lock()
    }

    pub(super) fn throttle(&self) -> &Arc<SnapshotThrottle> {
        &self.throttle
    }

    /// The process's clocks.
    pub fn clocks(&self) -> &Arc<dyn Clocks> {
        &self.clocks
    }

    /// Changes after the machine was suspended or its time was set: leases granted before
    /// must be revoked.
    pub fn clock_jumps(&self) -> watch::Receiver<Option<Instant>> {
        self.clock_jumps.subscribe()
    }

    /// False while acknowledgements of [`QUORUM_ACK_AGE_MAX`] may be from before a jump
    /// of the clocks.
    pub(super) fn trusts_acks(&self, now: Instant) -> bool {
        self.check_clocks(now);
        self.clock_jumps.borrow().is_none_or(|until| now >= until)
    }

    fn check_clocks(&self, now: Instant) {
        let mut detector = self.detector.lock();
        if let Some(jump) = detector.jump(&*self.clocks) {
            self.clock_jumps.send_replace(Some(now + QUORUM_ACK_AGE_MAX));
            tracing::warn!(
                ms = jump.as_millis() as u64,
                "clocks have jumped: the machine stood still, or its time was set; leases are \
                 confirmed anew"
            );
        }
    }

    /// The time until which a replica of `group` with a past must not vote.
    pub(super) fn guard_until(&self, group: u64) -> Instant {
        let stopped = self.groups.lock().stopped.get(&group).copied();
        stopped.map_or(self.started, |stopped| stopped.max(self.started)) + LEADER_LEASE
    }

    pub(super) fn add(&self, group: &Arc<Inner>) {
        self.groups
            .lock()
            .running
            .push(Running { group: Arc::downgrade(group), due: Some(Instant::now()) });
    }

    pub(super) fn remove(&self, group: &Arc<Inner>) {
        self.groups.lock().running.retain(|running| running.group.as_ptr() != Arc::as_ptr(group));
        self.record_promise(group.number);
    }

    /// Records that a replica of `group` that does not run after this has promised its
    /// leader not to vote.
    pub(super) fn record_promise(&self, group: u64) {
        self.groups.lock().stopped.insert(group, Instant::now());
    }

    /// Visits all groups at the next tick: a group has another leader, or none. Must be
    /// called after that is visible.
    pub(super) fn wake_all(&self) {
        self.wakes_all.store(true, Ordering::Release);
    }

    /// Visits the groups that are due.
    fn tick(&self, now: Instant, is_heartbeat: bool) {
        self.check_clocks(now);
        let wakes_all = self.wakes_all.swap(false, Ordering::AcqRel);
        let mut groups = self.groups.lock();
        groups.stopped.retain(|_, stopped| now < *stopped + LEADER_LEASE);
        groups.running.retain_mut(|running| {
            if wakes_all || running.due.map_or(is_heartbeat, |due| now >= due) {
                let Some(group) = running.group.upgrade() else { return false };
                running.due = group.tick(now, is_heartbeat);
            }
            true
        });
    }
}

async fn run(ticker: Weak<Ticker>) {
    let mut tick = tokio::time::interval(TICK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_heartbeat = Instant::now();
    loop {
        tick.tick().await;
        let Some(ticker) = ticker.upgrade() else { return };
        let now = Instant::now();
        let is_heartbeat = now >= next_heartbeat;
        if is_heartbeat {
            // Not from `now`: ticks come late, and the interval must not drift by that.
            next_heartbeat = (next_heartbeat + HEARTBEAT_INTERVAL).max(now);
        }
        ticker.tick(now, is_heartbeat);
    }
}

/// Paces a leader's heartbeats: fewer while the group has no requests.
#[derive(Debug, Default)]
pub(super) struct HeartbeatPacer {
    had_request: AtomicBool,
    idle_heartbeats: AtomicU32,
}

impl HeartbeatPacer {
    /// Records a request to the group.
    pub(super) fn on_request(&self) {
        // Usually it is set already: not writing leaves the cache lines of other cores
        // alone.
        if !self.had_request.load(Ordering::Relaxed) {
            self.had_request.store(true, Ordering::Relaxed);
        }
    }

    /// True when this heartbeat is to be sent.
    pub(super) fn should_send(&self) -> bool {
        if self.had_request.swap(false, Ordering::Relaxed) {
            self.idle_heartbeats.store(0, Ordering::Relaxed);
            return true;
        }
        let quiet = self.idle_heartbeats.fetch_add(1, Ordering::Relaxed);
        quiet < QUIESCE_HEARTBEATS || quiet.is_multiple_of(2)
    }
}

/// A non-leader's timers: when to campaign, or to bootstrap the group.
#[derive(Debug)]
pub(super) struct ElectionTimer {
    /// The last contact with the leader.
    leader_seen: Option<Instant>,
    /// The last entries from the leader.
    entries_received: Option<Instant>,
    /// When a leader announced that it transfers its leadership, and that leadership's
    /// term.
    leader_stepped_down: Option<(Instant, u64)>,
    /// The latest term that this replica has seen.
    term: u64,
    /// No campaign before this.
    not_before: Instant,
    /// Random wait beyond the lease, drawn again for each campaign.
    jitter: Duration,
    /// When to bootstrap the group if no other member does.
    bootstrap_due: Option<Instant>,
}

impl ElectionTimer {
    pub(super) fn new(not_before: Instant, bootstrap_due: Option<Instant>) -> Self {
        Self {
            leader_seen: None,
            entries_received: None,
            leader_stepped_down: None,
            term: 0,
            not_before,
            jitter: random_below(CAMPAIGN_STAGGER),
            bootstrap_due,
        }
    }

    /// When a member bootstraps a new group: the first member at once.
    pub(super) fn first_bootstrap(now: Instant, is_first: bool) -> Instant {
        if is_first { now } else { now + BOOTSTRAP_WAIT + random_below(LEADER_LEASE) }
    }

    /// Records contact with a leader of `term`.
    pub(super) fn leader_seen(&mut self, at: Instant, term: u64) {
        self.leader_seen = self.leader_seen.max(Some(at));
        // Late messages of the old leader undo no transfer; the next leader's do.
        self.leader_stepped_down = self.leader_stepped_down.filter(|(_, old)| term <= *old);
    }

    /// True after contact with a leader within two leases.
    pub(super) fn has_recent_leader(&self, now: Instant) -> bool {
        self.leader_seen.is_some_and(|leader_seen| now < leader_seen + LEADER_LEASE * 2)
    }

    /// Records entries from a leader of `term`.
    pub(super) fn entries_received(&mut self, at: Instant, term: u64) {
        self.leader_seen(at, term);
        self.entries_received = self.entries_received.max(Some(at));
    }

    /// Records that the leader of `term` is transferring to some member: its lease is
    /// over.
    pub(super) fn leader_stepped_down(&mut self, at: Instant, term: u64) {
        self.leader_stepped_down = Some((at, term));
    }

    /// Records the current term. A new term begins with a vote for this replica or
    /// another: the candidate is given time to win and to send a heartbeat.
    pub(super) fn on_term(&mut self, now: Instant, term: u64) {
        if term > self.term {
            self.term = term;
            self.not_before = self.not_before.max(now + VOTE_ROUND + random_below(VOTE_ROUND));
        }
    }

    /// Records contact with a member: that one bootstraps the group, if it is not done
    /// yet.
    pub(super) fn peer_seen(&mut self, at: Instant) {
        if let Some(due) = &mut self.bootstrap_due {
            *due = (*due).max(at + BOOTSTRAP_WAIT);
        }
    }

    /// True when the group is to be bootstrapped now; true again after one lease at the
    /// earliest.
    pub(super) fn should_bootstrap(&mut self, now: Instant) -> bool {
        let is_due = self.bootstrap_due.is_some_and(|due| now >= due);
        if is_due {
            self.bootstrap_due = Some(now + LEADER_LEASE);
            // Bootstrapping is a campaign as well.
            self.not_before = now + VOTE_ROUND;
        }
        is_due
    }

    /// When there is something to do for a group that is not bootstrapped yet.
    pub(super) fn bootstrap_at(&self) -> Option<Instant> {
        self.bootstrap_due
    }

    /// When to campaign without further contact; `rank` is this replica's position among
    /// the voters that may campaign.
    pub(super) fn campaign_at(&self, rank: u32) -> Instant {
        let is_quiescent =
            |seen| self.entries_received.is_none_or(|received| received + QUIESCE_AFTER <= seen);
        let lease = |seen| if is_quiescent(seen) { LEADER_LEASE * 2 } else { LEADER_LEASE };
        let expired_at = self.leader_seen.map(|seen| seen + lease(seen) + CAMPAIGN_MARGIN);
        // A leader that transfers has released its lease: whichever comes first counts.
        let released_at = self.leader_stepped_down.map(|(at, _)| at + TRANSFER_WAIT);
        let free_at = expired_at
            .into_iter()
            .chain(released_at)
            .min()
            .map(|at| at + CAMPAIGN_STAGGER * rank + self.jitter);
        // Without any contact there is no lease to wait for, only the restart guard.
        free_at.map_or(self.not_before, |free_at| free_at.max(self.not_before))
    }

    /// The reason to campaign now, if it is time.
    pub(super) fn should_campaign(&mut self, now: Instant, rank: u32) -> Option<String> {
        if now < self.campaign_at(rank) {
            return None;
        }
        self.not_before = now + VOTE_ROUND + random_below(VOTE_ROUND);
        self.jitter = random_below(CAMPAIGN_STAGGER);
        Some(match (self.leader_seen, self.leader_stepped_down) {
            (_, Some(_)) => {
                "the last leader transferred its leadership, and no other leads".to_owned()
            }
            (Some(leader_seen), None) => format!(
                "no message from a leader for {} ms",
                now.saturating_duration_since(leader_seen).as_millis()
            ),
            (None, None) => "no message from a leader since the start".to_owned(),
        })
    }
}

/// A duration below `most`. Not for secrets: it only keeps replicas from doing the same
/// at the same time.
fn random_below(most: Duration) -> Duration {
    let number = RandomState::new().build_hasher().finish();
    most.mul_f64((number >> 11) as f64 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One lost heartbeat, with the next one late by a tick, makes no follower campaign:
    /// in use, while becoming quiescent, and quiescent.
    #[test]
    fn followers_quiesce_before_their_leader() {
        let (heartbeats, start) = (HeartbeatPacer::default(), Instant::now());
        let mut election_timer = ElectionTimer::new(start, None);
        let next_heartbeat = |number: u32| start + HEARTBEAT_INTERVAL * number;
        let mut sent = Vec::new();
        for number in 0..60 {
            // Entries with the first heartbeats only.
            if number < 3 {
                heartbeats.on_request();
            }
            if heartbeats.should_send() {
                sent.push(number);
            }
        }
        assert_eq!(sent[..20], *(0..20).collect::<Vec<_>>(), "all, until it is at rest");
        assert!(
            sent[20..].windows(2).all(|should_send| should_send[1] - should_send[0] == 2),
            "then every other one: {sent:?}"
        );
        for (index, number) in sent.iter().enumerate() {
            match *number < 3 {
                true => election_timer.entries_received(next_heartbeat(*number), 1),
                false => election_timer.leader_seen(next_heartbeat(*number), 1),
            }
            if let Some(next) = sent.get(index + 2) {
                assert!(
                    next_heartbeat(*next) + TICK_INTERVAL < election_timer.campaign_at(0),
                    "beat {number}, the next but one {next}"
                );
            }
        }
        heartbeats.on_request();
        assert!(heartbeats.should_send() && heartbeats.should_send(), "in use again");
        let last = next_heartbeat(60);
        election_timer.leader_seen(last, 1);
        assert!(election_timer.campaign_at(0) >= last + LEADER_LEASE * 2);
        election_timer.entries_received(last, 1);
        assert!(
            election_timer.campaign_at(0)
                <= last + LEADER_LEASE + CAMPAIGN_MARGIN + CAMPAIGN_STAGGER
        );
        // A transfer: messages of the old leader may still arrive, and do not undo it;
        // those of the next leader do.
        election_timer.leader_stepped_down(last, 1);
        election_timer.entries_received(last, 1);
        assert!(
            (last + TRANSFER_WAIT..last + TRANSFER_WAIT + CAMPAIGN_STAGGER)
                .contains(&election_timer.campaign_at(0))
        );
        // It has voted: it does not campaign until the new leader had time for a
        // heartbeat, however long ago its last contact with a leader was.
        election_timer.on_term(last + TRANSFER_WAIT, 2);
        assert!(election_timer.campaign_at(0) >= last + TRANSFER_WAIT + VOTE_ROUND);
        election_timer.on_term(last + TRANSFER_WAIT * 9, 2);
        assert!(election_timer.campaign_at(0) <= last + TRANSFER_WAIT + VOTE_ROUND * 2);
        election_timer.leader_seen(last, 2);
        assert!(election_timer.campaign_at(0) >= last + LEADER_LEASE);
    }
}
