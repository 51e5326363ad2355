//! Suspects: replicas that may have lost entries which they had acknowledged. They
//! abstain from votes.
//!
//! With `durability` `interval` or `os`, writes are acknowledged before they are on the
//! disk, and a machine that loses power forgets the end of its log. Raft relies on voters
//! that never forget. A voter that has forgotten makes a majority, with another that
//! never had the entry, for a leader without an acknowledged entry; and a replica that
//! still has the entry must then truncate it.
//!
//! # Life of a suspect
//! 1. A log that was not closed properly marks its groups as suspects, for this process
//!    and, until they are cleared, for later ones ([`Log::is_suspect`](crate::log::Log)).
//! 2. A suspect neither votes nor campaigns, and is no target of a transfer. It takes
//!    entries and acknowledges them, as it then has them: a leader checks the entry
//!    before, and sends the missing ones.
//! 3. It is cleared when it has everything that its leader had committed in the leader's
//!    own term: that covers all entries that were acknowledged to clients.
//! 4. Without a leader for [`SUSPECT_WAIT`], it asks the other members
//!    ([`MessageKind::LogStatus`]). While one does not answer, that one may have the
//!    missing entries, so the suspect waits. When all answer and the members that are no
//!    suspects are no majority, voting as if nothing were missing is the best that is
//!    left. The members with the longest log campaign.
//!
//! A group of one voter is exempt.
//!
//! # Invariants
//! - No acknowledged write is lost while a majority has lost nothing
//!   (`tests/raft_data_loss.rs`, `replica_that_lost_its_log_tail_elects_no_leader`).
//! - When all members have lost something, those with the longest log are elected after
//!   [`SUSPECT_WAIT`] (`longest_log_leads_when_all_members_are_suspects`, there).

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

/// The time that suspects wait for a leader that others elect, from the start of the
/// process.
pub(super) const SUSPECT_WAIT: Duration = Duration::from_secs(10);
/// The shortest wait since the start of the group: an existing leader has sent a
/// heartbeat by then.
const SUSPECT_WAIT_MIN: Duration = Duration::from_millis(1500);
/// Interval between two rounds of questions.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a member's answer.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval of repeated log lines.
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// A member's answer to [`MessageKind::LogStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogStatus {
    /// True when it may have lost acknowledged entries, or can't vote for another reason.
    pub(super) is_suspect: bool,
    /// True when it leads or had contact with a leader lately.
    pub(super) has_leader: bool,
    /// The last entry of its log; `None` also of a replica that can't lead.
    pub(super) last: Option<LogId>,
}

/// A replica's part in elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Participation {
    /// Votes and campaigns.
    Full,
    /// Neither votes nor campaigns.
    Abstains,
    /// Votes, and leaves campaigns to members with a longer log.
    VotesOnly,
}

/// A replica's part in elections and its questions to the others, while it is suspect.
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
    /// True when it neither votes nor campaigns.
    pub(super) fn abstains(&self) -> bool {
        self.suspect.lock().participation == Participation::Abstains
    }

    /// Succeeds when it may campaign; else returns when to ask again.
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

    /// Ends the suspicion: all acknowledged entries are here, or the missing ones are
    /// lost.
    pub(super) fn clear_suspicion(&self) {
        self.log.clear();
        let before = std::mem::replace(&mut self.suspect.lock().participation, Participation::Full);
        if before == Participation::Abstains {
            tracing::info!(
                group = self.name,
                "this replica was not shut down properly; it has all acknowledged entries now, and \
                 votes again"
            );
        }
    }

    /// Records that a leader of `vote` that has committed `committed` was told that all
    /// entries up to `matched` are here.
    pub(super) fn on_caught_up(
        &self,
        vote: &Vote,
        committed: Option<LogId>,
        matched: Option<LogId>,
    ) {
        // The leader's first own entry is committed after all entries of earlier terms.
        let is_all = committed.is_some_and(|committed| {
            committed.leader_id == vote.leader_id && matched >= Some(committed)
        });
        if is_all && self.log.is_suspect() {
            self.clear_suspicion();
        }
    }

    /// This replica's answer to [`MessageKind::LogStatus`].
    pub(super) fn log_status(&self) -> LogStatus {
        // Not by the last vote: the leader that it names may be long gone.
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

    /// The configurations each of which elects by a majority, and the voters' servers.
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
                "too many members of a group were not shut down properly, with a durability that \
                 acknowledges writes before they are on disk: the members vote by what is left of \
                 their logs. Writes acknowledged shortly before the stop (interval: during the \
                 last interval; os: not yet written by the kernel) may be lost"
            );
        } else if should_warn {
            tracing::warn!(
                group = self.name,
                ?missing,
                "this replica was not shut down properly and may lack acknowledged entries: it \
                 does not vote until a leader has brought it up to date or all members answer"
            );
        }
    }
}

/// A suspect's part in elections, from the members' answers; `None`: it goes on waiting.
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
    fn suspects_vote_only_if_all_answer_and_no_others_can_elect() {
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
        // Joint consensus: a majority of both is needed.
        let joint = [config(&[1, 2, 3]), config(&[3, 4, 5])];
        let mut all = known(&[(1, lost), (2, whole), (3, whole), (4, lost), (5, lost)]);
        assert_eq!(participation(1, &joint, &all), Some(Participation::VotesOnly));
        all.insert(5, whole);
        assert_eq!(participation(1, &joint, &all), None);
        all.remove(&5);
        assert_eq!(participation(1, &joint, &all), None);
    }
}
