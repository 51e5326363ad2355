//! State and reports joined into what the admin API shows.

use std::sync::Arc;
use std::time::Instant;

use cluster::meta_protocol::{ReplicaHealth, ServerStats};
use cluster::{Member, Placement, ServerId, Table};

use crate::admin::{
    ClusterStatus, CompactionStatus, MemberStatus, MetaStatus, PartitionStatus, ServerStatus,
    TableUsage,
};
use crate::catalogue::{Meta, MetaMode, now_ms};
use crate::leading::LAG_MAX;
use crate::picture::Picture;
use crate::roster::Roster;
use crate::state::Status;

/// The most sentences of one kind among the faults.
const FAULTS_SHOWN: usize = 10;

impl Meta {
    /// The cluster at a glance.
    pub fn cluster_status(&self, picture: &Picture) -> ClusterStatus {
        let roster = self.roster.lock();
        let metas = match &self.options.mode {
            MetaMode::Standalone(server) => {
                vec![MetaStatus { address: server.address.clone(), leads: true }]
            }
            MetaMode::Member { members, position, .. } => {
                let metas = members.iter().zip(1..);
                metas
                    .map(|(address, nth)| MetaStatus {
                        address: address.clone(),
                        leads: nth == *position,
                    })
                    .collect()
            }
        };
        let down: Vec<_> =
            picture.servers.values().filter(|server| !roster.is_up(server.id)).collect();
        let mut faults: Vec<String> = down
            .iter()
            .take(FAULTS_SHOWN)
            .map(|server| format!("server {} ({}) is down", server.id, server.address))
            .collect();
        for (id, server) in picture.servers.iter() {
            let own = roster
                .seen(*id)
                .and_then(|seen| seen.figures.as_ref())
                .map_or(&[][..], |figures| &figures.faults);
            faults.extend(
                own.iter()
                    .take(FAULTS_SHOWN)
                    .map(|fault| format!("server {id} ({}): {fault}", server.address)),
            );
        }
        let (mut led, mut whole) = (0, 0);
        for route in picture.routes.values() {
            let partition = route.placement.partition;
            led += u32::from(roster.leading(partition).is_some());
            whole +=
                u32::from(route.placement.members.iter().all(|member| {
                    roster.is_able(member.server, partition, member.raft_id, LAG_MAX)
                }));
        }
        let partitions = picture.routes.len() as u32;
        if led < partitions {
            faults.push(format!("{} of {partitions} partitions have no leader", partitions - led));
        }
        ClusterStatus {
            cluster_id: format!("{:016x}", picture.state.cluster.unwrap_or(0)),
            metas,
            term: picture.term.unwrap_or(0),
            servers_up: (picture.servers.len() - down.len()) as u32,
            servers: picture.servers.len() as u32,
            tables: picture.state.tables.len() as u32,
            partitions,
            partitions_led: led,
            partitions_whole: whole,
            faults,
        }
    }

    /// All servers, by id.
    pub fn server_statuses(&self, picture: &Picture) -> Vec<ServerStatus> {
        let roster = self.roster.lock();
        picture
            .state
            .servers
            .values()
            .map(|known| server_status(picture, &roster, known.server.id, known.since_ms))
            .collect()
    }

    /// All partitions of a table, by index.
    pub fn partition_statuses(&self, picture: &Picture, table: &Table) -> Vec<PartitionStatus> {
        let roster = self.roster.lock();
        picture
            .state
            .placements_of(table.id)
            .map(|placement| partition_status(picture, &roster, table, placement))
            .collect()
    }

    /// What a table holds, as far as it was reported.
    pub fn figures_of(&self, picture: &Picture, table: &Table) -> TableUsage {
        let roster = self.roster.lock();
        let mut figures = TableUsage::default();
        for placement in picture.state.placements_of(table.id) {
            let partition = placement.partition;
            match roster.leading(partition) {
                Some(leading) => {
                    figures.rows += leading.rows;
                    figures.expiring += leading.expiring;
                }
                None => drop(figures.faults.insert(partition.index, "it has no leader".to_owned())),
            }
            for member in &placement.members {
                let Some(replica) = roster.replica(member.server, partition) else { continue };
                figures.disk_bytes += replica.disk_bytes;
                figures.memtable_bytes += replica.memtable_bytes;
                if let Some(fault) = replica.fault.as_ref().filter(|_| roster.is_up(member.server))
                {
                    figures
                        .faults
                        .insert(partition.index, format!("on server {}: {fault}", member.server));
                }
            }
        }
        figures
    }

    /// How the last compaction of a table stands, summed over servers.
    pub fn compaction(&self, picture: &Picture, table: &Table) -> CompactionStatus {
        let (roster, begun) = (self.roster.lock(), self.desk.lock().run(table.id));
        let holders = picture.holders(table.id);
        let reported = || {
            holders
                .iter()
                .filter_map(|server| roster.seen(*server))
                .flat_map(|seen| seen.compactions.values())
        };
        let known = reported()
            .filter(|compaction| compaction.table == table.id)
            .map(|compaction| compaction.run)
            .max();
        let replicas = picture
            .state
            .placements_of(table.id)
            .map(|placement| placement.members.len() as u32)
            .sum();
        let disk_bytes = |server: &ServerId| -> u64 {
            let here = roster.seen(*server).map(|seen| seen.replicas.values());
            here.into_iter()
                .flatten()
                .filter(|replica| replica.partition.table == table.id)
                .map(|replica| replica.disk_bytes)
                .sum()
        };
        let Some(run) = begun.max(known) else {
            let disk_bytes = holders.iter().map(disk_bytes).sum();
            return CompactionStatus {
                status: "none".to_owned(),
                partitions: replicas,
                disk_bytes,
                ..CompactionStatus::default()
            };
        };
        let mut sum = CompactionStatus {
            status: "done".to_owned(),
            partitions: replicas,
            started_at_ms: run,
            ..CompactionStatus::default()
        };
        for server in &holders {
            let part = roster.seen(*server).and_then(|seen| seen.compactions.get(&run));
            if !roster.is_up(*server) {
                sum.error = Some(format!("server {server} is down"));
                sum.partitions_done += part.map_or(0, |part| part.done);
                continue;
            }
            let Some(part) = part else {
                sum.status = "running".to_owned();
                sum.disk_bytes += disk_bytes(server);
                sum.disk_bytes_before += disk_bytes(server);
                continue;
            };
            sum.partitions_done += part.done;
            sum.disk_bytes_before += part.disk_bytes_before;
            sum.disk_bytes += part.disk_bytes;
            if !part.ended {
                sum.status = "running".to_owned();
            }
            if let Some(error) = &part.error {
                sum.error = Some(format!("server {server}: {error}"));
            }
        }
        if sum.status == "done" && sum.error.is_some() {
            sum.status = "failed".to_owned();
        }
        let took = self.desk.lock().took(
            table.id,
            run,
            sum.status == "running",
            now_ms().saturating_sub(run),
        );
        CompactionStatus { elapsed_ms: took, ..sum }
    }

    /// A table's status in a word.
    pub(crate) fn word(&self, status: Status, table: &Table) -> &'static str {
        match status {
            Status::Dropping => "dropping",
            Status::Creating => "creating",
            Status::Ready if self.is_open(table.id) => "ready",
            Status::Ready => "opening",
        }
    }
}

fn server_status(picture: &Picture, roster: &Roster, id: ServerId, since_ms: u64) -> ServerStatus {
    let server = &picture.servers[&id];
    let seen = roster.seen(id);
    let up = roster.is_up(id);
    let roles = [
        ("meta", server.roles.meta),
        ("storage", server.roles.storage),
        ("proxy", server.roles.proxy),
    ];
    let holds = |placement: &&Arc<Placement>| {
        placement.on(id).is_some() && picture.routes.contains_key(&placement.partition)
    };
    let leads = |placement: &&Arc<Placement>| {
        roster.leader(placement.partition).is_some_and(|leader| leader.server == id)
    };
    let held = || picture.state.placements.values().filter(holds);
    let figures = seen.and_then(|seen| seen.figures.clone());
    let figure = |of: fn(&ServerStats) -> u64| figures.as_ref().map(of);
    ServerStatus {
        id: id.to_string(),
        address: server.address.clone(),
        http: server.http.clone(),
        clients: server.clients.clone(),
        zone: server.zone.clone(),
        roles: roles.into_iter().filter(|(_, has)| *has).map(|(role, _)| role.to_owned()).collect(),
        state: if up { "up" } else { "down" }.to_owned(),
        silent_ms: seen
            .map(|seen| Instant::now().saturating_duration_since(seen.heard).as_millis() as u64),
        since_ms,
        version: seen.map(|seen| seen.software.clone()).unwrap_or_default(),
        uptime_seconds: figure(|figures| figures.uptime_seconds),
        replicas: held().count() as u32,
        leads: if up { held().filter(leads).count() as u32 } else { 0 },
        connections: figure(|figures| figures.clients),
        disk_bytes: figure(|figures| figures.rows_disk_bytes),
        log_bytes: figure(|figures| figures.log_bytes),
        disk_free_bytes: figure(|figures| figures.disk_free_bytes),
        disk_total_bytes: figure(|figures| figures.disk_total_bytes),
        memory_bytes: figure(|figures| figures.memory_bytes),
        durability: server.durability.map(|durability| durability.word().to_owned()),
        faults: figures.map(|figures| figures.faults).unwrap_or_default(),
    }
}

fn partition_status(
    picture: &Picture,
    roster: &Roster,
    table: &Table,
    placement: &Placement,
) -> PartitionStatus {
    let partition = placement.partition;
    let leader = roster.leader(partition);
    let leading = leader.filter(|_| roster.leading(partition).is_some());
    PartitionStatus {
        index: partition.index,
        slots: [
            table.first_slot(partition.index),
            table.first_slot(partition.index + 1).saturating_sub(1),
        ],
        leader: leading.map(|leader| leader.server.to_string()),
        term: leader.map_or(0, |leader| leader.term),
        epoch: placement.epoch,
        members: placement
            .members
            .iter()
            .map(|member| {
                let leads = leading.is_some_and(|leader| leader.server == member.server);
                member_status(picture, roster, placement, member, leads)
            })
            .collect(),
    }
}

fn member_status(
    picture: &Picture,
    roster: &Roster,
    placement: &Placement,
    member: &Member,
    leads: bool,
) -> MemberStatus {
    let replica = roster.replica(member.server, placement.partition);
    let state = match replica.map(|replica| replica.health) {
        _ if !roster.is_up(member.server) => "down",
        None => "unknown",
        Some(ReplicaHealth::Opening) => "opening",
        Some(ReplicaHealth::Running) => "running",
        Some(ReplicaHealth::Installing) => "installing",
        Some(ReplicaHealth::Faulty) => "faulty",
    };
    MemberStatus {
        server: member.server.to_string(),
        address: picture
            .servers
            .get(&member.server)
            .map(|server| server.address.clone())
            .unwrap_or_default(),
        raft_id: member.raft_id,
        leads,
        state: state.to_owned(),
        lag: roster.lag(placement.partition, member.raft_id),
        applied: replica.map_or(0, |replica| replica.applied),
        rows: replica.map_or(0, |replica| replica.rows),
        disk_bytes: replica.map_or(0, |replica| replica.disk_bytes),
        fault: replica.and_then(|replica| replica.fault.clone()),
    }
}
