//! What a replica does that may have lost entries which it had acknowledged: it abstains
//! from votes.
//!
//! Where writes are acknowledged before they are on the disk (`durability` is `interval`
//! or `os`), a machine that loses power forgets the end of its log. Raft rests on no
//! voter forgetting: one that does makes a majority, with another that never had an
//! entry, for a leader that lacks what was acknowledged. A replica that remembers it for
//! both would then be told to give it up.
//!
//! # Life of a suspect
//! 1. A log that was not closed in order names its groups as suspects, this process's
//!    and, until they are cleared, the next ones' ([`Log::is_suspect`](crate::log::Log)).
//! 2. A suspect neither votes nor stands, and is handed no leadership. It takes entries
//!    and acknowledges them, as what it has by then it has: a leader asks for the entry
//!    before, and gives what is missing.
//! 3. It is cleared when it has all that its leader had committed in its own term: that
//!    is all that anybody was told of.
//! 4. Without a leader for [`SUSPECT_WAIT`], it asks the other members ([`MessageKind::LogStatus`]).
//!    While one does not answer, that one may have what is missing: it waits. When all do
//!    and those that have lost nothing are no majority, nobody can do better than to vote
//!    by log as if nothing were missing. Those stand whose log goes furthest.
//!
//! A group of one voter is exempt.
//!
//! # Invariants
//! - Of a write that was acknowledged nothing is lost while a majority has lost nothing
//!   (`tests/raft_lost.rs`, `a_replica_that_lost_its_logs_tail_elects_nobody`).
//! - All that have lost something elect after [`SUSPECT_WAIT`] whose log goes furthest
//!   (`when_all_may_have_lost_something_the_longest_log_leads`, there).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};

use super::group::Inner;
use super::message;
use super::peers::Peer;
use super::transport::MessageKind;
use super::types::{LogId, Node, RaftId, Vote};

/// How long suspects wait for a leader that others elect, from the start of the process.
pub(super) const SUSPECT_WAIT: Duration = Duration::from_secs(10);
/// Since the start of the group: a leader has been heard of by then, if there is one.
const SUSPECT_WAIT_MIN: Duration = Duration::from_millis(1500);
/// Between two questions.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a member may take to answer.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two lines in the log about the same.
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// A member's answer to [`MessageKind::LogStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogStatus {
    /// Whether it may have lost what it had acknowledged, or can't vote for another
    /// reason.
    pub(super) is_suspect: bool,
    /// Whether it leads or has just heard of who does.
    pub(super) has_leader: bool,
    /// The last entry of its log; `None` also of one that can't lead.
    pub(super) last: Option<LogId>,
}

/// What a replica does in elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Participation {
    /// As any member.
    Full,
    /// Nothing.
    Abstains,
    /// Votes, and leaves it to others to stand: their logs go further.
    VotesOnly,
}

/// A replica's part in elections, as long as it is suspect.
#[derive(Debug)]
pub(super) struct SuspectState {
    pub(super) participation: Participation,
    /// When to ask the others next.
    due: Instant,
    is_polling: bool,
    warned_at: Option<Instant>,
}

impl SuspectState {
    pub(super) fn new(is_suspect: bool, process_started: Instant, now: Instant) -> SuspectState {
        let participation = if is_suspect { Participation::Abstains } else { Participation::Full };
        SuspectState {
            participation,
            due: (process_started + SUSPECT_WAIT).max(now + SUSPECT_WAIT_MIN),
            is_polling: false,
            warned_at: None,
        }
    }

    fn should_warn(&mut self, now: Instant) -> bool {
        let should_warn = self.warned_at.is_none_or(|warned_at| now >= warned_at + WARN_INTERVAL);
        if should_warn {
            self.warned_at = Some(now);
        }
        should_warn
    }
}

impl Inner {
    /// Whether it neither votes nor stands.
    pub(super) fn abstains(&self) -> bool {
        self.suspect.lock().participation == Participation::Abstains
    }

    /// Whether it may stand for election; else when it is to look again.
    pub(super) fn may_campaign(
        self: &Arc<Self>,
        now: Instant,
        voters: &[RaftId],
    ) -> Result<(), Instant> {
        let mut suspect = self.suspect.lock();
        if suspect.participation == Participation::Full {
            return Ok(());
        }
        if voters == [self.id] {
            drop(suspect);
            self.clear_suspicion();
            return Ok(());
        }
        if now >= suspect.due && !suspect.is_polling {
            (suspect.is_polling, suspect.due) = (true, now + STATUS_INTERVAL);
            tokio::spawn(self.clone().poll_log_status());
        }
        Err(suspect.due)
    }

    /// It has all that was acknowledged, or what is missing is lost.
    pub(super) fn clear_suspicion(&self) {
        self.log.clear();
        let before = std::mem::replace(&mut self.suspect.lock().participation, Participation::Full);
        if before == Participation::Abstains {
            tracing::info!(
                group = self.name,
                "a replica that was not stopped in order has all that was acknowledged, and votes \
                 again"
            );
        }
    }

    /// A leader of `vote` that has committed `committed` was told that all is here up to
    /// `matched`.
    pub(super) fn on_caught_up(
        &self,
        vote: &Vote,
        committed: Option<LogId>,
        matched: Option<LogId>,
    ) {
        // Its first entry is committed after all of earlier terms.
        let is_all = committed.is_some_and(|committed| {
            committed.leader_id == vote.leader_id && matched >= Some(committed)
        });
        if is_all && self.log.is_suspect() {
            self.clear_suspicion();
        }
    }

    /// The answer to [`MessageKind::LogStatus`].
    pub(super) fn log_status(&self) -> LogStatus {
        // Whom the last vote names may be long gone.
        let has_leader = self.role.borrow().is_leader
            || self.election_timer.lock().has_recent_leader(Instant::now());
        LogStatus { is_suspect: self.log.is_suspect(), has_leader, last: self.log.last() }
    }

    async fn poll_log_status(self: Arc<Self>) {
        let (configs, nodes) = self.voter_configs();
        let others: Vec<(RaftId, Node)> =
            nodes.into_iter().filter(|(id, _)| *id != self.id).collect();
        let asked = others.iter().map(|(target, node)| {
            let peer = Peer {
                peers: self.peers.clone(),
                target: *target,
                node: *node,
                is_for_heartbeats: false,
            };
            async move {
                let reply = peer
                    .call(MessageKind::LogStatus, Bytes::new(), STATUS_TIMEOUT)
                    .await
                    .map_err(|error| error.to_string())?;
                message::decode::<LogStatus>(&reply)
            }
        });
        let answers = join_all(asked).await;
        let mut known = BTreeMap::from([(self.id, self.log_status())]);
        let mut missing = Vec::new();
        for ((id, node), answer) in others.into_iter().zip(answers) {
            match answer {
                Ok(answer) => drop(known.insert(id, answer)),
                Err(_) => missing.push(node),
            }
        }
        self.update_participation(&configs, &known, &missing);
        self.suspect.lock().is_polling = false;
        if let Some(ticker) = &self.ticker {
            ticker.wake_all();
        }
    }

    /// Whose majority elects, by configuration, and where they live.
    fn voter_configs(&self) -> (Vec<BTreeSet<RaftId>>, BTreeMap<RaftId, Node>) {
        let server = self.server.borrow_watched();
        let membership = server.membership_config.membership();
        let configs: Vec<BTreeSet<RaftId>> = membership.get_joint_config().clone();
        if configs.iter().all(BTreeSet::is_empty) {
            return (vec![self.initial.keys().copied().collect()], self.initial.clone());
        }
        let nodes = membership
            .voter_ids()
            .map(|id| (id, membership.get_node(&id).copied().unwrap_or_default()))
            .collect();
        (configs, nodes)
    }

    fn update_participation(
        &self,
        configs: &[BTreeSet<RaftId>],
        known: &BTreeMap<RaftId, LogStatus>,
        missing: &[Node],
    ) {
        let participation = participation(self.id, configs, known);
        let mut suspect = self.suspect.lock();
        if suspect.participation == Participation::Full {
            return;
        }
        let is_first = participation.is_some() && suspect.participation == Participation::Abstains;
        suspect.participation = participation.unwrap_or(suspect.participation);
        let should_warn =
            is_first || participation.is_none() && suspect.should_warn(Instant::now());
        drop(suspect);
        if is_first {
            metrics::counter!("bridle_raft_unclean_votes_total", "group" => self.name.clone())
                .increment(1);
            tracing::error!(
                group = self.name,
                "more members of a group than it can spare were not stopped in order, under a \
                 durability that acknowledges before the disk has it: they vote by what is left \
                 of their logs. What was acknowledged shortly before the stop (interval: its \
                 length; os: what the kernel had not written yet) may be lost"
            );
        } else if should_warn {
            tracing::warn!(
                group = self.name,
                ?missing,
                "this replica was not stopped in order and may lack what it had acknowledged: it \
                 does not vote before a leader has brought it up to date, or all members answer"
            );
        }
    }
}

/// What a suspect does now that it knows of the members; `None`: it goes on waiting.
fn participation(
    me: RaftId,
    configs: &[BTreeSet<RaftId>],
    known: &BTreeMap<RaftId, LogStatus>,
) -> Option<Participation> {
    let is_known = |id: &RaftId| known.contains_key(id);
    let is_intact = |id: &&RaftId| known.get(*id).is_some_and(|member| !member.is_suspect);
    let elects =
        |config: &BTreeSet<RaftId>| config.iter().filter(is_intact).count() * 2 > config.len();
    let cannot_elect = configs.iter().flatten().all(is_known)
        && !configs.iter().all(elects)
        && !known.values().any(|member| member.has_leader);
    let longest = known.values().map(|member| member.last).max().flatten();
    let is_longest = known.get(&me).is_some_and(|own| own.last >= longest);
    cannot_elect.then_some(if is_longest { Participation::Full } else { Participation::VotesOnly })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::LeaderId;

    fn member(is_suspect: bool, index: u64) -> LogStatus {
        LogStatus {
            is_suspect,
            has_leader: false,
            last: Some(LogId { leader_id: LeaderId { term: 2.into(), node_id: 1 }, index }),
        }
    }

    #[test]
    fn suspects_vote_only_when_all_answer_and_the_others_are_no_majority() {
        let config = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
        let three = [config(&[1, 2, 3])];
        let known =
            |members: &[(u64, LogStatus)]| members.iter().copied().collect::<BTreeMap<_, _>>();
        let (lost, whole) = (member(true, 7), member(false, 9));
        assert_eq!(
            participation(1, &three, &known(&[(1, lost), (2, lost)])),
            None,
            "one does not answer"
        );
        assert_eq!(
            participation(1, &three, &known(&[(1, lost), (2, whole), (3, whole)])),
            None,
            "the others elect"
        );
        assert_eq!(
            participation(1, &three, &known(&[(1, lost), (2, lost), (3, whole)])),
            Some(Participation::VotesOnly),
            "one has more"
        );
        assert_eq!(
            participation(1, &three, &known(&[(1, lost), (2, lost), (3, lost)])),
            Some(Participation::Full)
        );
        let led = LogStatus { has_leader: true, ..lost };
        assert_eq!(
            participation(1, &three, &known(&[(1, lost), (2, led), (3, lost)])),
            None,
            "its leader comes to us"
        );
        let rebuilt = LogStatus { last: None, ..lost };
        assert_eq!(
            participation(1, &three, &known(&[(1, lost), (2, rebuilt), (3, lost)])),
            Some(Participation::Full)
        );
        // Members change: a majority of both is needed.
        let joint = [config(&[1, 2, 3]), config(&[3, 4, 5])];
        let mut all = known(&[(1, lost), (2, whole), (3, whole), (4, lost), (5, lost)]);
        assert_eq!(participation(1, &joint, &all), Some(Participation::VotesOnly));
        all.insert(5, whole);
        assert_eq!(participation(1, &joint, &all), None);
        all.remove(&5);
        assert_eq!(participation(1, &joint, &all), None);
    }
}
