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
//! for [`QUIET_BEATS`] heartbeats sends every other one only, and a follower that got no
//! entry for [`QUIET`], which is shorter, waits for another [`LEADER_LEASE`] before it stands.
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
use super::purge::{KeptInAll, LogPolicy};
use super::snapshot::Transfers;
use super::{LEADER_LEASE, QUORUM_ACK_AGE_MAX};
use crate::clocks::{Clocks, JumpDetector, SystemClocks};

/// How often the groups are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often a leader sends heartbeats.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(300);
/// A leader of whom nothing was asked for so many heartbeats (5 s) is at rest.
const QUIET_BEATS: u32 = 17;
/// A follower that got no entry for so long is at rest.
const QUIET: Duration = Duration::from_secs(3);
/// Members stand for election one after another, this far apart, so that they don't take
/// each other's votes.
const STAGGER: Duration = Duration::from_millis(80);
/// The shortest wait beyond the lease.
const MARGIN: Duration = Duration::from_millis(20);
/// How long a candidate waits for votes before it asks again; twice that at most, at
/// random.
const ROUND: Duration = Duration::from_millis(200);
/// Who was told that another is to lead, and hears of no new leader for so long, stands
/// itself.
const HANDOVER: Duration = Duration::from_millis(400);
/// How long a member of a new group waits for the first one to form it: it may have been
/// lost.
const FORMING: Duration = LEADER_LEASE.saturating_mul(3);

/// What the groups of a process share: the clock, and the pace of state transfers.
pub struct Ticker {
    started: Instant,
    groups: Mutex<Groups>,
    /// What some group said of when to look at it may not be true any more.
    is_upset: AtomicBool,
    transfers: Arc<Transfers>,
    policy: Mutex<LogPolicy>,
    clocks: Arc<dyn Clocks>,
    detector: Mutex<JumpDetector>,
    /// Until when acknowledgements may be from before the last jump; behind the lock of
    /// the detector.
    clock_jumps: watch::Sender<Option<Instant>>,
    kept: KeptInAll,
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
            is_upset: false.into(),
            transfers: Arc::default(),
            policy: Mutex::default(),
            detector: Mutex::new(JumpDetector::new(&*clocks)),
            clocks,
            clock_jumps: watch::Sender::default(),
            kept: KeptInAll::default(),
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
        self.transfers.set_rate(bytes_per_s);
    }

    /// How long the logs of groups that are started from now on may get.
    pub fn set_log_policy(&self, policy: LogPolicy) {
        *self.policy.lock() = policy;
    }

    /// What its groups keep of their logs.
    pub(super) fn kept(&self) -> KeptInAll {
        self.kept.clone()
    }

    pub(super) fn log_policy(&self) -> LogPolicy {
        *self.policy.lock()
    }

    pub(super) fn transfers(&self) -> &Arc<Transfers> {
        &self.transfers
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
        self.look_at_clocks(now);
        self.clock_jumps.borrow().is_none_or(|until| now >= until)
    }

    fn look_at_clocks(&self, now: Instant) {
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
        self.note_word(group.number);
    }

    /// A replica of `group` that does not run after this has given its leader a word that
    /// it is to keep.
    pub(super) fn note_word(&self, group: u64) {
        self.groups.lock().stopped.insert(group, Instant::now());
    }

    /// A group has another leader, or none: to be called after that can be seen.
    pub(super) fn upset(&self) {
        self.is_upset.store(true, Ordering::Release);
    }

    /// Looks at those groups that are due.
    fn tick(&self, now: Instant, is_beat: bool) {
        self.look_at_clocks(now);
        let is_upset = self.is_upset.swap(false, Ordering::AcqRel);
        let mut groups = self.groups.lock();
        groups.stopped.retain(|_, stopped| now < *stopped + LEADER_LEASE);
        groups.running.retain_mut(|running| {
            if is_upset || running.due.map_or(is_beat, |due| now >= due) {
                let Some(group) = running.group.upgrade() else { return false };
                running.due = group.tick(now, is_beat);
            }
            true
        });
    }
}

async fn run(ticker: Weak<Ticker>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut beat = Instant::now();
    loop {
        tick.tick().await;
        let Some(ticker) = ticker.upgrade() else { return };
        let now = Instant::now();
        let is_beat = now >= beat;
        if is_beat {
            // Not from `now`: ticks come late, and the period should not drift by that.
            beat = (beat + HEARTBEAT).max(now);
        }
        ticker.tick(now, is_beat);
    }
}

/// How often a leader sends heartbeats: less often while nobody asks anything of it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    was_used: AtomicBool,
    quiet_beats: AtomicU32,
}

impl Pulse {
    /// Something is asked of the group.
    pub(super) fn used(&self) {
        // Most of the time it is set already: others' caches are left alone.
        if !self.was_used.load(Ordering::Relaxed) {
            self.was_used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether to send this heartbeat.
    pub(super) fn beats(&self) -> bool {
        if self.was_used.swap(false, Ordering::Relaxed) {
            self.quiet_beats.store(0, Ordering::Relaxed);
            return true;
        }
        let quiet = self.quiet_beats.fetch_add(1, Ordering::Relaxed);
        quiet < QUIET_BEATS || quiet.is_multiple_of(2)
    }
}

/// What a replica that does not lead knows of those who might.
#[derive(Debug)]
pub(super) struct Standing {
    /// When the leader was last heard of.
    heard: Option<Instant>,
    /// When it last sent entries.
    busy: Option<Instant>,
    /// When the leader said that it gives up its leadership, and of which term that is.
    given_up: Option<(Instant, u64)>,
    /// The latest term that this replica was seen in.
    term: u64,
    /// Not to stand before this.
    not_before: Instant,
    /// Beyond the lease, drawn again for each attempt.
    jitter: Duration,
    /// When to form the group if nobody else does.
    forming_due: Option<Instant>,
}

impl Standing {
    pub(super) fn new(not_before: Instant, forming_due: Option<Instant>) -> Self {
        Self {
            heard: None,
            busy: None,
            given_up: None,
            term: 0,
            not_before,
            jitter: random(STAGGER),
            forming_due,
        }
    }

    /// When a member forms a new group: the first one at once.
    pub(super) fn forming(now: Instant, is_first: bool) -> Instant {
        if is_first { now } else { now + FORMING + random(LEADER_LEASE) }
    }

    /// A leader of `term` was heard of.
    pub(super) fn heard(&mut self, at: Instant, term: u64) {
        self.heard = self.heard.max(Some(at));
        self.given_up = self.given_up.filter(|(_, given_up)| term <= *given_up);
    }

    /// Whether a leader was heard of lately.
    pub(super) fn has_heard(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now < heard + LEADER_LEASE * 2)
    }

    /// A leader of `term` was heard of that sent entries.
    pub(super) fn busy(&mut self, at: Instant, term: u64) {
        self.heard(at, term);
        self.busy = self.busy.max(Some(at));
    }

    /// The leader of `term` hands over to some member: the lease on it is over.
    pub(super) fn given_up(&mut self, at: Instant, term: u64) {
        self.given_up = Some((at, term));
    }

    /// The term that this replica is in. A new one begins with a vote, its own or
    /// another's: whoever stands is given time to win and to say so.
    pub(super) fn in_term(&mut self, now: Instant, term: u64) {
        if term > self.term {
            self.term = term;
            self.not_before = self.not_before.max(now + ROUND + random(ROUND));
        }
    }

    /// Some member was heard of: it will form the group, if that is still to be done.
    pub(super) fn met(&mut self, at: Instant) {
        if let Some(due) = &mut self.forming_due {
            *due = (*due).max(at + FORMING);
        }
    }

    /// Whether the group is to be formed now; says so once in a while.
    pub(super) fn forms(&mut self, now: Instant) -> bool {
        let is_due = self.forming_due.is_some_and(|due| now >= due);
        if is_due {
            self.forming_due = Some(now + LEADER_LEASE);
            // Forming is standing, too.
            self.not_before = now + ROUND;
        }
        is_due
    }

    /// When there is something to do for a group that is not formed yet.
    pub(super) fn forms_at(&self) -> Option<Instant> {
        self.forming_due
    }

    /// When to stand for election, if nobody is heard of before; `rank` is this replica's
    /// place among those who may.
    pub(super) fn stands_at(&self, rank: u32) -> Instant {
        let is_at_rest = |heard| self.busy.is_none_or(|busy| busy + QUIET <= heard);
        let patience = |heard| if is_at_rest(heard) { LEADER_LEASE * 2 } else { LEADER_LEASE };
        let silent_at = self.heard.map(|heard| heard + patience(heard) + MARGIN);
        let over_at = self.given_up.map(|(at, _)| at + HANDOVER);
        let free_at =
            silent_at.into_iter().chain(over_at).min().map(|at| at + STAGGER * rank + self.jitter);
        free_at.map_or(self.not_before, |free_at| free_at.max(self.not_before))
    }

    /// Whether to stand for election now, and why.
    pub(super) fn stands(&mut self, now: Instant, rank: u32) -> Option<String> {
        if now < self.stands_at(rank) {
            return None;
        }
        self.not_before = now + ROUND + random(ROUND);
        self.jitter = random(STAGGER);
        Some(match (self.heard, self.given_up) {
            (_, Some(_)) => "the last leader gave up, and nobody else leads".to_owned(),
            (Some(heard), None) => format!(
                "no leader was heard of for {} ms",
                now.saturating_duration_since(heard).as_millis()
            ),
            (None, None) => "no leader was heard of since the start".to_owned(),
        })
    }
}

/// A duration below `most`. Not for secrets: it only keeps replicas from doing the same
/// at the same time.
fn random(most: Duration) -> Duration {
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
        let (pulse, start) = (Pulse::default(), Instant::now());
        let mut standing = Standing::new(start, None);
        let beat = |number: u32| start + HEARTBEAT * number;
        let mut sent = Vec::new();
        for number in 0..60 {
            // Entries with the first heartbeats only.
            if number < 3 {
                pulse.used();
            }
            if pulse.beats() {
                sent.push(number);
            }
        }
        assert_eq!(sent[..20], *(0..20).collect::<Vec<_>>(), "all, until it is at rest");
        assert!(
            sent[20..].windows(2).all(|beats| beats[1] - beats[0] == 2),
            "then every other one: {sent:?}"
        );
        for (index, number) in sent.iter().enumerate() {
            match *number < 3 {
                true => standing.busy(beat(*number), 1),
                false => standing.heard(beat(*number), 1),
            }
            if let Some(next) = sent.get(index + 2) {
                assert!(
                    beat(*next) + TICK < standing.stands_at(0),
                    "beat {number}, the next but one {next}"
                );
            }
        }
        pulse.used();
        assert!(pulse.beats() && pulse.beats(), "in use again");
        let last = beat(60);
        standing.heard(last, 1);
        assert!(standing.stands_at(0) >= last + LEADER_LEASE * 2);
        standing.busy(last, 1);
        assert!(standing.stands_at(0) <= last + LEADER_LEASE + MARGIN + STAGGER);
        // A handover: words of the old leader may still be on their way, those of the
        // next say that it is over.
        standing.given_up(last, 1);
        standing.busy(last, 1);
        assert!((last + HANDOVER..last + HANDOVER + STAGGER).contains(&standing.stands_at(0)));
        // Its vote is given: until the new leader says so, it does not stand against it,
        // however long ago it heard of one.
        standing.in_term(last + HANDOVER, 2);
        assert!(standing.stands_at(0) >= last + HANDOVER + ROUND);
        standing.in_term(last + HANDOVER * 9, 2);
        assert!(standing.stands_at(0) <= last + HANDOVER + ROUND * 2);
        standing.heard(last, 2);
        assert!(standing.stands_at(0) >= last + LEADER_LEASE);
    }
}
