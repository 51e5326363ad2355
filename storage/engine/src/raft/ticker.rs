//! The clock of all groups of a process: one task that has leaders send heartbeats and
//! followers stand for election.
//!
//! openraft could tick each group by itself, at five times the cost when groups are idle.
//! Here all leaders' heartbeats leave at the same moment, so that they share socket
//! writes; and a follower stands when its own record of the leader's last word is older
//! than the lease.
//!
//! Most ticks have nothing to do: leaders are looked at at every heartbeat, followers
//! when they say; all after anybody's leader has changed.
//!
//! # Groups at rest
//! What heartbeats cost, groups cost that nobody uses. A leader of whom nothing was asked
//! for [`QUIESCE_HEARTBEATS`] heartbeats sends every other one only, and a follower that got no
//! entry for [`QUIESCE_AFTER`], which is shorter, waits for another [`LEADER_LEASE`] before it stands.
//! The first read from a leader at rest may have to ask for a quorum's word; nothing else
//! changes, as leases rest on heartbeats that arrived.
//!
//! # Restart guard
//! openraft forgets at a restart until when it had promised its leader not to vote for
//! another. So a replica that has a past neither votes nor stands until a whole lease has
//! gone by since the process started, or since the group was last stopped in it; without
//! this, a leader that renewed its lease with the restarted replica's word would answer
//! reads after another one was elected.
//!
//! # Machines that stand still
//! By the clock that openraft goes by, an acknowledgement from before the machine was
//! suspended is as fresh after it. So the ticker looks whether the clocks have jumped
//! ([`Clocks`]): until a while after a jump no acknowledgement from before it counts
//! ([`Ticker::trusts_acks`]), and whoever holds leases is told ([`Ticker::clock_jumps`]).
//!
//! # Invariants
//! - After the machine has stood still, nobody is confirmed as the leader by what was
//!   acknowledged before (`tests/raft_leases.rs`,
//!   `a_leader_whose_machine_stood_still_is_not_confirmed_by_what_was_before`).
//! - When a handover fails, another member stands long before a lease has gone by
//!   (`tests/raft_groups.rs`, `a_handover_to_one_that_is_gone_ends_in_an_election`).
//! - Who gave its vote, a leader that hands over included, stands against nobody before
//!   the other had time to win and to say so (`who_gave_its_vote_lets_the_other_win`).
//! - A leader at rest has all its followers at rest
//!   (`followers_rest_before_their_leader`).
//! - No vote is given within a lease of the last word to an earlier leader, restart or
//!   not (`tests/raft_leases.rs`, `a_restarted_voter_keeps_its_word`).

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

/// How often the groups are looked at.
const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// How often a leader sends heartbeats.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(300);
/// A leader of whom nothing was asked for so many heartbeats (5 s) is at rest.
const QUIESCE_HEARTBEATS: u32 = 17;
/// A follower that got no entry for so long is at rest.
const QUIESCE_AFTER: Duration = Duration::from_secs(3);
/// Members stand for election one after another, this far apart, so that they don't take
/// each other's votes.
const CAMPAIGN_STAGGER: Duration = Duration::from_millis(80);
/// The shortest wait beyond the lease.
const CAMPAIGN_MARGIN: Duration = Duration::from_millis(20);
/// How long a candidate waits for votes before it asks again; twice that at most, at
/// random.
const VOTE_ROUND: Duration = Duration::from_millis(200);
/// Who was told that another is to lead, and hears of no new leader for so long, stands
/// itself.
const TRANSFER_WAIT: Duration = Duration::from_millis(400);
/// How long a member of a new group waits for the first one to form it: it may have been
/// lost.
const BOOTSTRAP_WAIT: Duration = LEADER_LEASE.saturating_mul(3);

/// What the groups of a process share: the clock, and the pace of state transfers.
pub struct Ticker {
    started: Instant,
    groups: Mutex<Groups>,
    /// What some group said of when to look at it may not be true any more.
    wakes_all: AtomicBool,
    throttle: Arc<SnapshotThrottle>,
    policy: Mutex<LogPolicy>,
    clocks: Arc<dyn Clocks>,
    detector: Mutex<JumpDetector>,
    /// Until when acknowledgements may be from before the last jump; behind the lock of
    /// the detector.
    clock_jumps: watch::Sender<Option<Instant>>,
    retained: RetainedTotal,
}

#[derive(Default)]
struct Groups {
    running: Vec<Running>,
    /// When groups were last stopped in this process, by number, while it matters.
    stopped: HashMap<u64, Instant>,
}

struct Running {
    group: Weak<Inner>,
    /// When to look at it; `None`: at every heartbeat.
    due: Option<Instant>,
}

impl Ticker {
    /// Starts the task on the current runtime: that on which Raft runs. It ends when the
    /// ticker is dropped. To be called first thing in a process: the restart guard counts
    /// from here.
    pub fn start() -> Arc<Ticker> {
        Self::start_with(Arc::new(SystemClocks))
    }

    /// As [`Ticker::start`], by these clocks.
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

    /// When the process began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// How fast states may be sent to other servers, all groups together, bytes a second;
    /// 0 is no limit.
    pub fn set_snapshot_rate(&self, bytes_per_s: u64) {
        self.throttle.set_rate(bytes_per_s);
    }

    /// How long the logs of groups that are started from now on may get.
    pub fn set_log_policy(&self, policy: LogPolicy) {
        *self.policy.lock() = policy;
    }

    /// What its groups keep of their logs.
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

    /// Changes whenever the machine has stood still, or its time was set: leases that
    /// were taken before are to be revoked.
    pub fn clock_jumps(&self) -> watch::Receiver<Option<Instant>> {
        self.clock_jumps.subscribe()
    }

    /// Whether acknowledgements as old as [`QUORUM_ACK_AGE_MAX`] may be relied on: not if the
    /// clocks have jumped since.
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

    /// Until when a replica of `group` that has a past may not vote.
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

    /// A replica of `group` that does not run after this has given its leader a word that
    /// it is to keep.
    pub(super) fn record_promise(&self, group: u64) {
        self.groups.lock().stopped.insert(group, Instant::now());
    }

    /// A group has another leader, or none: to be called after that can be seen.
    pub(super) fn wake_all(&self) {
        self.wakes_all.store(true, Ordering::Release);
    }

    /// Looks at those groups that are due.
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
            // Not from `now`: ticks come late, and the period should not drift by that.
            next_heartbeat = (next_heartbeat + HEARTBEAT_INTERVAL).max(now);
        }
        ticker.tick(now, is_heartbeat);
    }
}

/// How often a leader sends heartbeats: less often while nobody asks anything of it.
#[derive(Debug, Default)]
pub(super) struct HeartbeatPacer {
    had_request: AtomicBool,
    idle_heartbeats: AtomicU32,
}

impl HeartbeatPacer {
    /// Something is asked of the group.
    pub(super) fn on_request(&self) {
        // Most of the time it is set already: others' caches are left alone.
        if !self.had_request.load(Ordering::Relaxed) {
            self.had_request.store(true, Ordering::Relaxed);
        }
    }

    /// Whether to send this heartbeat.
    pub(super) fn should_send(&self) -> bool {
        if self.had_request.swap(false, Ordering::Relaxed) {
            self.idle_heartbeats.store(0, Ordering::Relaxed);
            return true;
        }
        let quiet = self.idle_heartbeats.fetch_add(1, Ordering::Relaxed);
        quiet < QUIESCE_HEARTBEATS || quiet.is_multiple_of(2)
    }
}

/// What a replica that does not lead knows of those who might.
#[derive(Debug)]
pub(super) struct ElectionTimer {
    /// When the leader was last heard of.
    leader_seen: Option<Instant>,
    /// When it last sent entries.
    entries_received: Option<Instant>,
    /// When the leader said that it gives up its leadership, and of which term that is.
    leader_stepped_down: Option<(Instant, u64)>,
    /// The latest term that this replica was seen in.
    term: u64,
    /// Not to stand before this.
    not_before: Instant,
    /// Beyond the lease, drawn again for each attempt.
    jitter: Duration,
    /// When to form the group if nobody else does.
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

    /// When a member forms a new group: the first one at once.
    pub(super) fn first_bootstrap(now: Instant, is_first: bool) -> Instant {
        if is_first { now } else { now + BOOTSTRAP_WAIT + random_below(LEADER_LEASE) }
    }

    /// A leader of `term` was heard of.
    pub(super) fn leader_seen(&mut self, at: Instant, term: u64) {
        self.leader_seen = self.leader_seen.max(Some(at));
        self.leader_stepped_down = self
            .leader_stepped_down
            .filter(|(_, leader_stepped_down)| term <= *leader_stepped_down);
    }

    /// Whether a leader was heard of lately.
    pub(super) fn has_recent_leader(&self, now: Instant) -> bool {
        self.leader_seen.is_some_and(|leader_seen| now < leader_seen + LEADER_LEASE * 2)
    }

    /// A leader of `term` was heard of that sent entries.
    pub(super) fn entries_received(&mut self, at: Instant, term: u64) {
        self.leader_seen(at, term);
        self.entries_received = self.entries_received.max(Some(at));
    }

    /// The leader of `term` hands over to some member: the lease on it is over.
    pub(super) fn leader_stepped_down(&mut self, at: Instant, term: u64) {
        self.leader_stepped_down = Some((at, term));
    }

    /// The term that this replica is in. A new one begins with a vote, its own or
    /// another's: whoever stands is given time to win and to say so.
    pub(super) fn on_term(&mut self, now: Instant, term: u64) {
        if term > self.term {
            self.term = term;
            self.not_before = self.not_before.max(now + VOTE_ROUND + random_below(VOTE_ROUND));
        }
    }

    /// Some member was heard of: it will form the group, if that is still to be done.
    pub(super) fn peer_seen(&mut self, at: Instant) {
        if let Some(due) = &mut self.bootstrap_due {
            *due = (*due).max(at + BOOTSTRAP_WAIT);
        }
    }

    /// Whether the group is to be formed now; says so once in a while.
    pub(super) fn should_bootstrap(&mut self, now: Instant) -> bool {
        let is_due = self.bootstrap_due.is_some_and(|due| now >= due);
        if is_due {
            self.bootstrap_due = Some(now + LEADER_LEASE);
            // Forming is standing, too.
            self.not_before = now + VOTE_ROUND;
        }
        is_due
    }

    /// When there is something to do for a group that is not formed yet.
    pub(super) fn bootstrap_at(&self) -> Option<Instant> {
        self.bootstrap_due
    }

    /// When to stand for election, if nobody is heard of before; `rank` is this replica's
    /// place among those who may.
    pub(super) fn campaign_at(&self, rank: u32) -> Instant {
        let is_at_rest = |leader_seen| {
            self.entries_received
                .is_none_or(|entries_received| entries_received + QUIESCE_AFTER <= leader_seen)
        };
        let patience =
            |leader_seen| if is_at_rest(leader_seen) { LEADER_LEASE * 2 } else { LEADER_LEASE };
        let silent_at = self
            .leader_seen
            .map(|leader_seen| leader_seen + patience(leader_seen) + CAMPAIGN_MARGIN);
        let over_at = self.leader_stepped_down.map(|(at, _)| at + TRANSFER_WAIT);
        let free_at = silent_at
            .into_iter()
            .chain(over_at)
            .min()
            .map(|at| at + CAMPAIGN_STAGGER * rank + self.jitter);
        free_at.map_or(self.not_before, |free_at| free_at.max(self.not_before))
    }

    /// Whether to stand for election now, and why.
    pub(super) fn should_campaign(&mut self, now: Instant, rank: u32) -> Option<String> {
        if now < self.campaign_at(rank) {
            return None;
        }
        self.not_before = now + VOTE_ROUND + random_below(VOTE_ROUND);
        self.jitter = random_below(CAMPAIGN_STAGGER);
        Some(match (self.leader_seen, self.leader_stepped_down) {
            (_, Some(_)) => "the last leader gave up, and nobody else leads".to_owned(),
            (Some(leader_seen), None) => format!(
                "no leader was heard of for {} ms",
                now.saturating_duration_since(leader_seen).as_millis()
            ),
            (None, None) => "no leader was heard of since the start".to_owned(),
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

    /// A leader's heartbeats of which one is lost, the next late by a tick, do not make a
    /// follower stand: in use, on the way to rest, and at rest.
    #[test]
    fn followers_rest_before_their_leader() {
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
        // A handover: words of the old leader may still be on their way, those of the
        // next say that it is over.
        election_timer.leader_stepped_down(last, 1);
        election_timer.entries_received(last, 1);
        assert!(
            (last + TRANSFER_WAIT..last + TRANSFER_WAIT + CAMPAIGN_STAGGER)
                .contains(&election_timer.campaign_at(0))
        );
        // Its vote is given: until the new leader says so, it does not stand against it,
        // however long ago it heard of one.
        election_timer.on_term(last + TRANSFER_WAIT, 2);
        assert!(election_timer.campaign_at(0) >= last + TRANSFER_WAIT + VOTE_ROUND);
        election_timer.on_term(last + TRANSFER_WAIT * 9, 2);
        assert!(election_timer.campaign_at(0) <= last + TRANSFER_WAIT + VOTE_ROUND * 2);
        election_timer.leader_seen(last, 2);
        assert!(election_timer.campaign_at(0) >= last + LEADER_LEASE);
    }
}
