//! What the servers have reported: who is there, who leads what, how far replicas are.
//!
//! Only in the memory of the meta that leads, and made anew from the servers' first
//! reports when another does. Pure: whoever calls says what time it is.
//!
//! # Invariants
//! - What is kept is bounded by what was placed: reports of replicas, tables and
//!   compactions that meta does not know are dropped (`strange_reports_leave_nothing`).
//! - The leader of a partition is the one of the highest term that was reported
//!   (`the_higher_term_is_the_later_truth`).
//! - A channel that was replaced by a newer one of the same server changes nothing any
//!   more (`an_old_session_is_not_heard`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cluster::meta_protocol::{CompactionProgress, Replica, ReplicaHealth, Report, ServerStats};
use cluster::{Leader, PartitionId, ServerId, TableId};

use crate::state::{State, Status};

/// A server that was not heard for so long is down.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// The most compactions that are kept in mind of a server.
const COMPACTIONS_MAX: usize = 64;

/// One server, as far as it was heard of under this leader.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which of its channels counts.
    session: u64,
    /// When it was last heard.
    pub heard: Instant,
    /// Whether it is there.
    pub up: bool,
    /// Its version of Bridle.
    pub software: String,
    /// The version of the assignments that it has made true.
    pub followed: u64,
    /// Its replicas.
    pub replicas: BTreeMap<PartitionId, Replica>,
    /// Tables of which nothing is left there.
    pub destroyed: BTreeSet<TableId>,
    /// Its part of compactions, by run.
    pub compactions: BTreeMap<u64, CompactionProgress>,
    /// Its own figures, once it has told them.
    pub figures: Option<ServerStats>,
}

/// Everything that was reported.
#[derive(Debug, Default)]
pub struct Roster {
    servers: BTreeMap<ServerId, Seen>,
    leaders: BTreeMap<PartitionId, Leader>,
    sessions: u64,
    /// Grows when a leader changes.
    leaders_version: u64,
}

impl Roster {
    /// Forgets everything: another leadership begins. Channels of before are not heard
    /// any more.
    pub fn begin(&mut self) {
        *self = Roster {
            sessions: self.sessions,
            leaders_version: self.leaders_version + 1,
            ..Roster::default()
        };
    }

    /// A server has opened a channel; the number by which its reports are to come.
    pub fn arrive(&mut self, server: ServerId, software: String, now: Instant) -> u64 {
        self.sessions += 1;
        let seen = Seen {
            session: self.sessions,
            heard: now,
            up: true,
            software,
            followed: 0,
            replicas: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            compactions: BTreeMap::new(),
            figures: None,
        };
        self.servers.insert(server, seen);
        self.sessions
    }

    fn heard(&mut self, server: ServerId, session: u64, now: Instant) -> Option<&mut Seen> {
        let seen = self.servers.get_mut(&server).filter(|seen| seen.session == session)?;
        (seen.heard, seen.up) = (now, true);
        Some(seen)
    }

    /// A sign of life from somebody who has no channel: the process itself.
    pub fn touch(&mut self, server: ServerId, now: Instant) {
        if let Some(seen) = self.servers.get_mut(&server) {
            (seen.heard, seen.up) = (now, true);
        }
    }

    /// A server's channel is broken; true when it was the one that counts.
    pub fn leave(&mut self, server: ServerId, session: u64) -> bool {
        match self.servers.get_mut(&server) {
            Some(seen) if seen.session == session => std::mem::replace(&mut seen.up, false),
            _ => false,
        }
    }

    /// The channel of a server that counts.
    pub fn session(&self, server: ServerId) -> Option<u64> {
        self.servers.get(&server).map(|seen| seen.session)
    }

    /// Whether this channel still counts.
    pub fn is_current(&self, server: ServerId, session: u64) -> bool {
        self.servers.get(&server).is_some_and(|seen| seen.session == session)
    }

    /// A server reports.
    pub fn report(
        &mut self,
        server: ServerId,
        session: u64,
        report: Report,
        state: &State,
        now: Instant,
    ) {
        if self.heard(server, session, now).is_none() {
            return;
        }
        let Some(seen) = self.servers.get_mut(&server) else { return };
        if report.whole {
            seen.replicas.clear();
            seen.destroyed.clear();
            seen.compactions.clear();
        }
        seen.followed = seen.followed.max(report.followed);
        if report.figures.is_some() {
            seen.figures = report.figures;
        }
        seen.destroyed
            .extend(report.destroyed.into_iter().filter(|table| state.tables.contains_key(table)));
        for compaction in report
            .compactions
            .into_iter()
            .filter(|compaction| state.tables.contains_key(&compaction.table))
        {
            seen.compactions.insert(compaction.run, compaction);
            if seen.compactions.len() > COMPACTIONS_MAX {
                seen.compactions.pop_first();
            }
        }
        for replica in report.replicas {
            let partition = replica.partition;
            let Some(placement) = state.placements.get(&partition) else { continue };
            if placement.member(replica.raft_id).is_none_or(|member| member.server != server) {
                continue;
            }
            if replica.leads
                && self.leaders.get(&partition).is_none_or(|leader| replica.term > leader.term)
            {
                self.leaders.insert(partition, Leader { server, term: replica.term });
                self.leaders_version += 1;
            }
            seen.replicas.insert(partition, replica);
        }
    }

    /// Forgets what is of tables that are gone, and of servers that were removed.
    pub fn keep(&mut self, state: &State) {
        self.leaders.retain(|partition, _| state.placements.contains_key(partition));
        self.servers.retain(|id, _| state.servers.contains_key(id));
        for seen in self.servers.values_mut() {
            seen.replicas.retain(|partition, _| state.placements.contains_key(partition));
            seen.destroyed.retain(|table| state.tables.contains_key(table));
            seen.compactions.retain(|_, compaction| state.tables.contains_key(&compaction.table));
        }
    }

    /// Those that have just fallen silent.
    pub fn expire(&mut self, now: Instant) -> Vec<ServerId> {
        let silent = self
            .servers
            .iter_mut()
            .filter(|(_, seen)| seen.up && now.saturating_duration_since(seen.heard) > SILENCE_MAX);
        silent
            .map(|(id, seen)| {
                seen.up = false;
                *id
            })
            .collect()
    }

    /// A server, if it was heard of.
    pub fn seen(&self, server: ServerId) -> Option<&Seen> {
        self.servers.get(&server)
    }

    /// Whether a server is there.
    pub fn is_up(&self, server: ServerId) -> bool {
        self.servers.get(&server).is_some_and(|seen| seen.up)
    }

    /// Whether a replica could lead and should: it is able to, and its server says that
    /// its disks are well.
    pub fn may_lead(
        &self,
        server: ServerId,
        partition: PartitionId,
        raft_id: u64,
        lag_max: u64,
    ) -> bool {
        self.is_well(server) && self.is_able(server, partition, raft_id, lag_max)
    }

    /// Whether a server is known that does not say of its disks that they ail.
    pub fn is_well(&self, server: ServerId) -> bool {
        self.servers.get(&server).is_some_and(|seen| {
            seen.figures.as_ref().is_none_or(|figures| figures.ailing.is_none())
        })
    }

    /// Servers that are there.
    pub fn up(&self) -> impl Iterator<Item = ServerId> {
        self.servers.iter().filter(|(_, seen)| seen.up).map(|(id, _)| *id)
    }

    /// The latest leader of a partition.
    pub fn leader(&self, partition: PartitionId) -> Option<Leader> {
        self.leaders.get(&partition).copied()
    }

    /// Grows with every change of a leader.
    pub fn leaders_version(&self) -> u64 {
        self.leaders_version
    }

    /// How a replica of a partition is, as its server reported it.
    pub fn replica(&self, server: ServerId, partition: PartitionId) -> Option<&Replica> {
        self.servers.get(&server)?.replicas.get(&partition)
    }

    /// How the leader of a partition is, when its server is there.
    pub fn leading(&self, partition: PartitionId) -> Option<&Replica> {
        let leader = self.leader(partition).filter(|leader| self.is_up(leader.server))?;
        self.replica(leader.server, partition).filter(|replica| replica.leads)
    }

    /// Entries that a member lacks of the leader's log, when both are known of.
    pub fn lag(&self, partition: PartitionId, raft_id: u64) -> Option<u64> {
        let leading = self.leading(partition)?;
        if leading.raft_id == raft_id {
            return Some(0);
        }
        let matched = leading.matched.iter().find(|(member, _)| *member == raft_id)?.1;
        Some(leading.last_log.saturating_sub(matched))
    }

    /// Tables that are being created and whose partitions have all had a leader.
    pub fn formed(&self, state: &State) -> Vec<TableId> {
        let creating = state
            .tables
            .values()
            .filter(|record| record.status == Status::Creating)
            .map(|record| record.table.id);
        creating
            .filter(|id| {
                state
                    .placements_of(*id)
                    .all(|placement| self.leaders.contains_key(&placement.partition))
            })
            .collect()
    }

    /// Tables that are being dropped, and servers that have nothing of them left but
    /// still count as holding some.
    pub fn destroyed(&self, state: &State) -> Vec<(TableId, ServerId)> {
        let dropping = state.tables.values().filter(|record| record.status == Status::Dropping);
        let done = |server: ServerId, table| {
            self.servers.get(&server).is_some_and(|seen| seen.destroyed.contains(&table))
        };
        dropping
            .flat_map(|record| record.remaining.iter().map(|server| (record.table.id, *server)))
            .filter(|(table, server)| done(*server, *table))
            .collect()
    }

    /// Whether every server that is there and holds something of a table has made the
    /// assignments of `version` true.
    pub fn has_followed(&self, state: &State, table: TableId, version: u64) -> bool {
        let holders: BTreeSet<ServerId> = state
            .placements_of(table)
            .flat_map(|placement| placement.members.iter().map(|member| member.server))
            .collect();
        holders
            .into_iter()
            .filter_map(|server| self.servers.get(&server))
            .filter(|seen| seen.up)
            .all(|seen| seen.followed >= version)
    }

    /// Whether a replica could lead: it runs, its server is there, and it lacks at most
    /// `lag_max` entries.
    pub fn is_able(
        &self,
        server: ServerId,
        partition: PartitionId,
        raft_id: u64,
        lag_max: u64,
    ) -> bool {
        let runs = self.replica(server, partition).is_some_and(|replica| {
            replica.raft_id == raft_id && replica.health == ReplicaHealth::Running
        });
        self.is_up(server) && runs && self.lag(partition, raft_id).is_some_and(|lag| lag <= lag_max)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::{Member, Placement, Table};

    use super::*;
    use crate::state::{Change, Record};

    const P: PartitionId = PartitionId { table: TableId(1), index: 0 };

    /// Table 1 with one partition: members 11, 12, 13 on servers 301, 302, 303.
    fn state(status: Status) -> State {
        let mut state = State::default();
        let table = Arc::new(Table {
            id: TableId(1),
            name: "a".into(),
            number: 16,
            partitions: 1,
            replicas: 3,
            envs: BTreeMap::new(),
            default_ttl_since_ms: 0,
        });
        let members =
            (1..=3).map(|n| Member { raft_id: 10 + n, server: ServerId(300 + n) }).collect();
        let remaining = if status == Status::Dropping {
            vec![ServerId(301), ServerId(302)]
        } else {
            Vec::new()
        };
        state.apply(
            &[
                Change::Put(Record { table, status, created_at_ms: 0, remaining }),
                Change::Place(Arc::new(Placement { partition: P, members, epoch: 1 })),
            ],
            1,
        );
        state
    }

    fn replica(raft_id: u64, term: u64, leads: bool) -> Replica {
        Replica {
            partition: P,
            raft_id,
            health: ReplicaHealth::Running,
            fault: None,
            term,
            leads,
            last_log: 100,
            applied: 100,
            matched: if leads { vec![(11, 100), (12, 90), (13, 0)] } else { Vec::new() },
            rows: 0,
            expiring: 0,
            disk_bytes: 0,
            memtable_bytes: 0,
        }
    }

    fn says(replicas: Vec<Replica>) -> Report {
        Report { replicas, ..Report::default() }
    }

    fn three(now: Instant) -> Roster {
        let mut roster = Roster::default();
        for n in 1..=3 {
            assert_eq!(roster.arrive(ServerId(300 + n), String::new(), now), n);
        }
        roster
    }

    #[test]
    fn the_higher_term_is_the_later_truth() {
        let (now, state) = (Instant::now(), state(Status::Creating));
        let mut roster = three(now);
        assert_eq!(roster.formed(&state), []);
        roster.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        roster.report(ServerId(302), 2, says(vec![replica(12, 6, false)]), &state, now);
        assert_eq!(roster.leader(P), Some(Leader { server: ServerId(301), term: 5 }));
        assert_eq!(roster.formed(&state), [TableId(1)]);
        assert_eq!(
            (roster.lag(P, 11), roster.lag(P, 12), roster.lag(P, 13), roster.lag(P, 14)),
            (Some(0), Some(10), Some(100), None)
        );
        assert!(
            roster.is_able(ServerId(302), P, 12, 10) && !roster.is_able(ServerId(302), P, 12, 9)
        );
        let version = roster.leaders_version();
        roster.report(ServerId(302), 2, says(vec![replica(12, 7, true)]), &state, now);
        roster.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        assert_eq!(
            roster.leader(P),
            Some(Leader { server: ServerId(302), term: 7 }),
            "the deposed one says the old thing still"
        );
        assert_eq!(roster.leaders_version(), version + 1);
    }

    #[test]
    fn who_has_a_sick_disk_is_able_to_lead_and_should_not() {
        let (now, state) = (Instant::now(), state(Status::Ready));
        let mut roster = three(now);
        roster.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        roster.report(ServerId(302), 2, says(vec![replica(12, 5, false)]), &state, now);
        assert!(roster.may_lead(ServerId(302), P, 12, 10));
        let figures = |ailing: Option<&str>| {
            Some(ServerStats { ailing: ailing.map(str::to_owned), ..ServerStats::default() })
        };
        let sick = Report { figures: figures(Some("it is full")), ..Report::default() };
        roster.report(ServerId(302), 2, sick, &state, now);
        assert!(
            roster.is_able(ServerId(302), P, 12, 10) && !roster.may_lead(ServerId(302), P, 12, 10)
        );
        assert!(!roster.is_well(ServerId(302)) && roster.is_well(ServerId(301)));
        roster.report(ServerId(302), 2, Report::default(), &state, now);
        assert!(!roster.may_lead(ServerId(302), P, 12, 10), "it has not said otherwise");
        roster.report(
            ServerId(302),
            2,
            Report { figures: figures(None), ..Report::default() },
            &state,
            now,
        );
        assert!(roster.may_lead(ServerId(302), P, 12, 10));
    }

    #[test]
    fn silence_and_broken_channels() {
        let (now, state) = (Instant::now(), state(Status::Ready));
        let mut roster = three(now);
        let later = now + SILENCE_MAX;
        roster.report(ServerId(301), 1, Report::default(), &state, later);
        assert_eq!(roster.expire(later), []);
        assert_eq!(roster.expire(later + Duration::from_millis(1)), [ServerId(302), ServerId(303)]);
        assert_eq!(roster.up().collect::<Vec<_>>(), [ServerId(301)]);
        roster.report(ServerId(302), 2, Report::default(), &state, later);
        assert!(roster.is_up(ServerId(302)), "heard again");
        assert!(
            roster.leave(ServerId(302), 2)
                && !roster.is_up(ServerId(302))
                && !roster.leave(ServerId(302), 2)
        );
    }

    #[test]
    fn an_old_session_is_not_heard() {
        let (now, state) = (Instant::now(), state(Status::Ready));
        let mut roster = three(now);
        assert_eq!(roster.arrive(ServerId(301), String::new(), now), 4);
        roster.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        assert_eq!(roster.leader(P), None);
        assert!(!roster.leave(ServerId(301), 1) && roster.is_up(ServerId(301)));
    }

    #[test]
    fn strange_reports_leave_nothing() {
        let (now, state) = (Instant::now(), state(Status::Ready));
        let mut roster = three(now);
        let elsewhere = Replica {
            partition: PartitionId { table: TableId(9), index: 0 },
            ..replica(11, 5, true)
        };
        let compaction = CompactionProgress {
            run: 1,
            table: TableId(9),
            done: 0,
            replicas: 0,
            disk_bytes_before: 0,
            disk_bytes: 0,
            ended: false,
            error: None,
        };
        let strange = Report {
            replicas: vec![elsewhere, replica(12, 5, true), replica(99, 5, true)],
            destroyed: vec![TableId(9)],
            compactions: vec![compaction.clone()],
            ..Report::default()
        };
        roster.report(ServerId(301), 1, strange, &state, now);
        let seen = roster.seen(ServerId(301)).unwrap();
        assert!(
            seen.replicas.is_empty()
                && seen.destroyed.is_empty()
                && seen.compactions.is_empty()
                && roster.leader(P).is_none()
        );
        let many = (0..100)
            .map(|run| CompactionProgress { run, table: TableId(1), ..compaction.clone() })
            .collect();
        roster.report(
            ServerId(301),
            1,
            Report { compactions: many, ..Report::default() },
            &state,
            now,
        );
        assert_eq!(roster.seen(ServerId(301)).unwrap().compactions.len(), COMPACTIONS_MAX);
        roster.keep(&State::default());
        assert!(roster.seen(ServerId(301)).is_none());
    }

    #[test]
    fn drops_and_settings_are_followed() {
        let (now, state) = (Instant::now(), state(Status::Dropping));
        let mut roster = three(now);
        roster.report(
            ServerId(302),
            2,
            Report { destroyed: vec![TableId(1)], ..Report::default() },
            &state,
            now,
        );
        roster.report(
            ServerId(303),
            3,
            Report { destroyed: vec![TableId(1)], ..Report::default() },
            &state,
            now,
        );
        assert_eq!(
            roster.destroyed(&state),
            [(TableId(1), ServerId(302))],
            "the third did not hold anything any more"
        );
        assert!(!roster.has_followed(&state, TableId(1), 7));
        for n in 1..=2 {
            roster.report(
                ServerId(300 + n),
                n,
                Report { followed: 7, ..Report::default() },
                &state,
                now,
            );
        }
        assert!(!roster.has_followed(&state, TableId(1), 7));
        roster.leave(ServerId(303), 3);
        assert!(
            roster.has_followed(&state, TableId(1), 7),
            "one that is not there follows when it comes back"
        );
    }
}
