//! Liveness and reports of servers: which are up, the leaders of partitions, the progress
//! of replicas.
//!
//! Kept only in the leading meta's memory and rebuilt from the servers' first reports
//! when another meta leads. Pure: the caller passes the time.
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

use crate::state::{MetaState, TablePhase};

/// A server without a heartbeat for this long is down.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// The most compactions that are kept in mind of a server.
const COMPACTIONS_MAX: usize = 64;

/// One server, as it reported itself to this leader.
#[derive(Debug, Clone)]
pub struct ServerHealth {
    /// Which of its channels counts.
    session: u64,
    /// When it was last heard.
    pub last_heartbeat: Instant,
    /// True while its heartbeats arrive.
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
    /// Its own statistics, once it has reported them.
    pub figures: Option<ServerStats>,
}

/// Everything that was reported.
#[derive(Debug, Default)]
pub struct ServerTracker {
    servers: BTreeMap<ServerId, ServerHealth>,
    leaders: BTreeMap<PartitionId, Leader>,
    sessions: u64,
    /// Grows when a leader changes.
    leaders_version: u64,
}

impl ServerTracker {
    /// Forgets everything: another leadership begins. Channels of before are not heard
    /// any more.
    pub fn reset(&mut self) {
        *self = ServerTracker {
            sessions: self.sessions,
            leaders_version: self.leaders_version + 1,
            ..ServerTracker::default()
        };
    }

    /// A server has opened a channel; the number by which its reports are to come.
    pub fn on_connected(&mut self, server: ServerId, software: String, now: Instant) -> u64 {
        self.sessions += 1;
        let health = ServerHealth {
            session: self.sessions,
            last_heartbeat: now,
            up: true,
            software,
            followed: 0,
            replicas: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            compactions: BTreeMap::new(),
            figures: None,
        };
        self.servers.insert(server, health);
        self.sessions
    }

    fn record_heartbeat(
        &mut self,
        server: ServerId,
        session: u64,
        now: Instant,
    ) -> Option<&mut ServerHealth> {
        let health = self.servers.get_mut(&server).filter(|health| health.session == session)?;
        (health.last_heartbeat, health.up) = (now, true);
        Some(health)
    }

    /// A sign of life from somebody who has no channel: the process itself.
    pub fn touch(&mut self, server: ServerId, now: Instant) {
        if let Some(health) = self.servers.get_mut(&server) {
            (health.last_heartbeat, health.up) = (now, true);
        }
    }

    /// A server's channel is broken; true when it was the one that counts.
    pub fn on_disconnected(&mut self, server: ServerId, session: u64) -> bool {
        match self.servers.get_mut(&server) {
            Some(health) if health.session == session => std::mem::replace(&mut health.up, false),
            _ => false,
        }
    }

    /// The channel of a server that counts.
    pub fn session(&self, server: ServerId) -> Option<u64> {
        self.servers.get(&server).map(|health| health.session)
    }

    /// True if this is the server's newest channel.
    pub fn is_current(&self, server: ServerId, session: u64) -> bool {
        self.servers.get(&server).is_some_and(|health| health.session == session)
    }

    /// A server reports.
    pub fn report(
        &mut self,
        server: ServerId,
        session: u64,
        report: Report,
        state: &MetaState,
        now: Instant,
    ) {
        if self.record_heartbeat(server, session, now).is_none() {
            return;
        }
        let Some(health) = self.servers.get_mut(&server) else { return };
        if report.whole {
            health.replicas.clear();
            health.destroyed.clear();
            health.compactions.clear();
        }
        health.followed = health.followed.max(report.followed);
        if report.figures.is_some() {
            health.figures = report.figures;
        }
        health
            .destroyed
            .extend(report.destroyed.into_iter().filter(|table| state.tables.contains_key(table)));
        for compaction in report
            .compactions
            .into_iter()
            .filter(|compaction| state.tables.contains_key(&compaction.table))
        {
            health.compactions.insert(compaction.run, compaction);
            if health.compactions.len() > COMPACTIONS_MAX {
                health.compactions.pop_first();
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
            health.replicas.insert(partition, replica);
        }
    }

    /// Forgets what is of tables that are gone, and of servers that were removed.
    pub fn retain_known(&mut self, state: &MetaState) {
        self.leaders.retain(|partition, _| state.placements.contains_key(partition));
        self.servers.retain(|id, _| state.servers.contains_key(id));
        for health in self.servers.values_mut() {
            health.replicas.retain(|partition, _| state.placements.contains_key(partition));
            health.destroyed.retain(|table| state.tables.contains_key(table));
            health.compactions.retain(|_, compaction| state.tables.contains_key(&compaction.table));
        }
    }

    /// Marks servers whose heartbeats have stopped as down, and returns them.
    pub fn take_timed_out(&mut self, now: Instant) -> Vec<ServerId> {
        let silent = self.servers.iter_mut().filter(|(_, health)| {
            health.up && now.saturating_duration_since(health.last_heartbeat) > HEARTBEAT_TIMEOUT
        });
        silent
            .map(|(id, health)| {
                health.up = false;
                *id
            })
            .collect()
    }

    /// A server, if it was heard of.
    pub fn health(&self, server: ServerId) -> Option<&ServerHealth> {
        self.servers.get(&server)
    }

    /// True if a server is up.
    pub fn is_up(&self, server: ServerId) -> bool {
        self.servers.get(&server).is_some_and(|health| health.up)
    }

    /// True if a replica can lead and its server's disks are healthy.
    pub fn should_lead(
        &self,
        server: ServerId,
        partition: PartitionId,
        raft_id: u64,
        lag_max: u64,
    ) -> bool {
        self.is_healthy(server) && self.can_lead(server, partition, raft_id, lag_max)
    }

    /// True if a server is known and has reported no disk problem.
    pub fn is_healthy(&self, server: ServerId) -> bool {
        self.servers.get(&server).is_some_and(|health| {
            health.figures.as_ref().is_none_or(|figures| figures.ailing.is_none())
        })
    }

    /// Servers that are there.
    pub fn up(&self) -> impl Iterator<Item = ServerId> {
        self.servers.iter().filter(|(_, health)| health.up).map(|(id, _)| *id)
    }

    /// The latest leader of a partition.
    pub fn leader(&self, partition: PartitionId) -> Option<Leader> {
        self.leaders.get(&partition).copied()
    }

    /// Grows with every change of a leader.
    pub fn leaders_version(&self) -> u64 {
        self.leaders_version
    }

    /// A replica of a partition, as its server reported it.
    pub fn replica(&self, server: ServerId, partition: PartitionId) -> Option<&Replica> {
        self.servers.get(&server)?.replicas.get(&partition)
    }

    /// The leading replica of a partition, if its server is up.
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
    pub fn tables_formed(&self, state: &MetaState) -> Vec<TableId> {
        let creating = state
            .tables
            .values()
            .filter(|record| record.status == TablePhase::Creating)
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
    pub fn destroyed(&self, state: &MetaState) -> Vec<(TableId, ServerId)> {
        let dropping = state.tables.values().filter(|record| record.status == TablePhase::Dropping);
        let done = |server: ServerId, table| {
            self.servers.get(&server).is_some_and(|health| health.destroyed.contains(&table))
        };
        dropping
            .flat_map(|record| record.remaining.iter().map(|server| (record.table.id, *server)))
            .filter(|(table, server)| done(*server, *table))
            .collect()
    }

    /// True if every server that is up and holds a part of a table has applied the
    /// assignments of `version`.
    pub fn has_followed(&self, state: &MetaState, table: TableId, version: u64) -> bool {
        let holders: BTreeSet<ServerId> = state
            .placements_of(table)
            .flat_map(|placement| placement.members.iter().map(|member| member.server))
            .collect();
        holders
            .into_iter()
            .filter_map(|server| self.servers.get(&server))
            .filter(|health| health.up)
            .all(|health| health.followed >= version)
    }

    /// True if a replica can lead: it runs, its server is up, and it lacks at most
    /// `lag_max` entries.
    pub fn can_lead(
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
    use crate::state::{MetaChange, TableRecord};

    const P: PartitionId = PartitionId { table: TableId(1), index: 0 };

    /// Table 1 with one partition: members 11, 12, 13 on servers 301, 302, 303.
    fn state(status: TablePhase) -> MetaState {
        let mut state = MetaState::default();
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
        let remaining = if status == TablePhase::Dropping {
            vec![ServerId(301), ServerId(302)]
        } else {
            Vec::new()
        };
        state.apply(
            &[
                MetaChange::PutTable(TableRecord { table, status, created_at_ms: 0, remaining }),
                MetaChange::PutPlacement(Arc::new(Placement { partition: P, members, epoch: 1 })),
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

    fn three(now: Instant) -> ServerTracker {
        let mut tracker = ServerTracker::default();
        for n in 1..=3 {
            assert_eq!(tracker.on_connected(ServerId(300 + n), String::new(), now), n);
        }
        tracker
    }

    #[test]
    fn the_higher_term_is_the_later_truth() {
        let (now, state) = (Instant::now(), state(TablePhase::Creating));
        let mut tracker = three(now);
        assert_eq!(tracker.tables_formed(&state), []);
        tracker.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        tracker.report(ServerId(302), 2, says(vec![replica(12, 6, false)]), &state, now);
        assert_eq!(tracker.leader(P), Some(Leader { server: ServerId(301), term: 5 }));
        assert_eq!(tracker.tables_formed(&state), [TableId(1)]);
        assert_eq!(
            (tracker.lag(P, 11), tracker.lag(P, 12), tracker.lag(P, 13), tracker.lag(P, 14)),
            (Some(0), Some(10), Some(100), None)
        );
        assert!(
            tracker.can_lead(ServerId(302), P, 12, 10)
                && !tracker.can_lead(ServerId(302), P, 12, 9)
        );
        let version = tracker.leaders_version();
        tracker.report(ServerId(302), 2, says(vec![replica(12, 7, true)]), &state, now);
        tracker.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        assert_eq!(
            tracker.leader(P),
            Some(Leader { server: ServerId(302), term: 7 }),
            "the deposed one says the old thing still"
        );
        assert_eq!(tracker.leaders_version(), version + 1);
    }

    #[test]
    fn a_server_with_a_bad_disk_can_lead_and_should_not() {
        let (now, state) = (Instant::now(), state(TablePhase::Ready));
        let mut tracker = three(now);
        tracker.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        tracker.report(ServerId(302), 2, says(vec![replica(12, 5, false)]), &state, now);
        assert!(tracker.should_lead(ServerId(302), P, 12, 10));
        let figures = |ailing: Option<&str>| {
            Some(ServerStats { ailing: ailing.map(str::to_owned), ..ServerStats::default() })
        };
        let sick = Report { figures: figures(Some("it is full")), ..Report::default() };
        tracker.report(ServerId(302), 2, sick, &state, now);
        assert!(
            tracker.can_lead(ServerId(302), P, 12, 10)
                && !tracker.should_lead(ServerId(302), P, 12, 10)
        );
        assert!(!tracker.is_healthy(ServerId(302)) && tracker.is_healthy(ServerId(301)));
        tracker.report(ServerId(302), 2, Report::default(), &state, now);
        assert!(!tracker.should_lead(ServerId(302), P, 12, 10), "it has not said otherwise");
        tracker.report(
            ServerId(302),
            2,
            Report { figures: figures(None), ..Report::default() },
            &state,
            now,
        );
        assert!(tracker.should_lead(ServerId(302), P, 12, 10));
    }

    #[test]
    fn silent_servers_and_broken_channels_are_down() {
        let (now, state) = (Instant::now(), state(TablePhase::Ready));
        let mut tracker = three(now);
        let later = now + HEARTBEAT_TIMEOUT;
        tracker.report(ServerId(301), 1, Report::default(), &state, later);
        assert_eq!(tracker.take_timed_out(later), []);
        assert_eq!(
            tracker.take_timed_out(later + Duration::from_millis(1)),
            [ServerId(302), ServerId(303)]
        );
        assert_eq!(tracker.up().collect::<Vec<_>>(), [ServerId(301)]);
        tracker.report(ServerId(302), 2, Report::default(), &state, later);
        assert!(tracker.is_up(ServerId(302)), "heard again");
        assert!(
            tracker.on_disconnected(ServerId(302), 2)
                && !tracker.is_up(ServerId(302))
                && !tracker.on_disconnected(ServerId(302), 2)
        );
    }

    #[test]
    fn an_old_session_is_not_heard() {
        let (now, state) = (Instant::now(), state(TablePhase::Ready));
        let mut tracker = three(now);
        assert_eq!(tracker.on_connected(ServerId(301), String::new(), now), 4);
        tracker.report(ServerId(301), 1, says(vec![replica(11, 5, true)]), &state, now);
        assert_eq!(tracker.leader(P), None);
        assert!(!tracker.on_disconnected(ServerId(301), 1) && tracker.is_up(ServerId(301)));
    }

    #[test]
    fn strange_reports_leave_nothing() {
        let (now, state) = (Instant::now(), state(TablePhase::Ready));
        let mut tracker = three(now);
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
        tracker.report(ServerId(301), 1, strange, &state, now);
        let health = tracker.health(ServerId(301)).unwrap();
        assert!(
            health.replicas.is_empty()
                && health.destroyed.is_empty()
                && health.compactions.is_empty()
                && tracker.leader(P).is_none()
        );
        let many = (0..100)
            .map(|run| CompactionProgress { run, table: TableId(1), ..compaction.clone() })
            .collect();
        tracker.report(
            ServerId(301),
            1,
            Report { compactions: many, ..Report::default() },
            &state,
            now,
        );
        assert_eq!(tracker.health(ServerId(301)).unwrap().compactions.len(), COMPACTIONS_MAX);
        tracker.retain_known(&MetaState::default());
        assert!(tracker.health(ServerId(301)).is_none());
    }

    #[test]
    fn drops_and_settings_are_followed() {
        let (now, state) = (Instant::now(), state(TablePhase::Dropping));
        let mut tracker = three(now);
        tracker.report(
            ServerId(302),
            2,
            Report { destroyed: vec![TableId(1)], ..Report::default() },
            &state,
            now,
        );
        tracker.report(
            ServerId(303),
            3,
            Report { destroyed: vec![TableId(1)], ..Report::default() },
            &state,
            now,
        );
        assert_eq!(
            tracker.destroyed(&state),
            [(TableId(1), ServerId(302))],
            "the third did not hold anything any more"
        );
        assert!(!tracker.has_followed(&state, TableId(1), 7));
        for n in 1..=2 {
            tracker.report(
                ServerId(300 + n),
                n,
                Report { followed: 7, ..Report::default() },
                &state,
                now,
            );
        }
        assert!(!tracker.has_followed(&state, TableId(1), 7));
        tracker.on_disconnected(ServerId(303), 3);
        assert!(
            tracker.has_followed(&state, TableId(1), 7),
            "one that is not there follows when it comes back"
        );
    }
}
