//! Status for the admin API: the state joined with the reports.

use std::sync::Arc;
use std::time::Instant;

use cluster::meta_protocol::{ReplicaHealth, ServerStats};
use cluster::{Member, Placement, ServerId, Table};

use crate::admin::{
    ClusterStatus, CompactionStatus, MemberStatus, MetaStatus, PartitionStatus, ServerStatus,
    TableUsage,
};
use crate::controller::LAG_MAX;
use crate::image::MetadataImage;
use crate::liveness::ServerTracker;
use crate::meta::{Meta, MetaMode, now_ms};
use crate::state::TablePhase;

/// The most sentences of one kind among the faults.
const FAULTS_SHOWN: usize = 10;

impl Meta {
    /// The cluster at a glance.
    pub fn cluster_status(&self, image: &MetadataImage) -> ClusterStatus {
        let tracker = self.tracker.lock();
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
            image.servers.values().filter(|server| !tracker.is_up(server.id)).collect();
        let mut faults: Vec<String> = down
            .iter()
            .take(FAULTS_SHOWN)
            .map(|server| format!("server {} ({}) is down", server.id, server.address))
            .collect();
        for (id, server) in image.servers.iter() {
            let own = tracker
                .health(*id)
                .and_then(|health| health.figures.as_ref())
                .map_or(&[][..], |figures| &figures.faults);
            faults.extend(
                own.iter()
                    .take(FAULTS_SHOWN)
                    .map(|fault| format!("server {id} ({}): {fault}", server.address)),
            );
        }
        let (mut led, mut whole) = (0, 0);
        for route in image.routes.values() {
            let partition = route.placement.partition;
            led += u32::from(tracker.leading(partition).is_some());
            whole +=
                u32::from(route.placement.members.iter().all(|member| {
                    tracker.can_lead(member.server, partition, member.raft_id, LAG_MAX)
                }));
        }
        let partitions = image.routes.len() as u32;
        if led < partitions {
            faults.push(format!("{} of {partitions} partitions have no leader", partitions - led));
        }
        ClusterStatus {
            cluster_id: format!("{:016x}", image.state.cluster.unwrap_or(0)),
            metas,
            term: image.term.unwrap_or(0),
            servers_up: (image.servers.len() - down.len()) as u32,
            servers: image.servers.len() as u32,
            tables: image.state.tables.len() as u32,
            partitions,
            partitions_led: led,
            partitions_whole: whole,
            faults,
        }
    }

    /// All servers, by id.
    pub fn server_statuses(&self, image: &MetadataImage) -> Vec<ServerStatus> {
        let tracker = self.tracker.lock();
        image
            .state
            .servers
            .values()
            .map(|known| server_status(image, &tracker, known.server.id, known.since_ms))
            .collect()
    }

    /// All partitions of a table, by index.
    pub fn partition_statuses(&self, image: &MetadataImage, table: &Table) -> Vec<PartitionStatus> {
        let tracker = self.tracker.lock();
        image
            .state
            .placements_of(table.id)
            .map(|placement| partition_status(image, &tracker, table, placement))
            .collect()
    }

    /// Usage of a table, as far as it was reported.
    pub fn table_stats(&self, image: &MetadataImage, table: &Table) -> TableUsage {
        let tracker = self.tracker.lock();
        let mut figures = TableUsage::default();
        for placement in image.state.placements_of(table.id) {
            let partition = placement.partition;
            match tracker.leading(partition) {
                Some(leading) => {
                    figures.rows += leading.rows;
                    figures.expiring += leading.expiring;
                }
                None => drop(figures.faults.insert(partition.index, "it has no leader".to_owned())),
            }
            for member in &placement.members {
                let Some(replica) = tracker.replica(member.server, partition) else { continue };
                figures.disk_bytes += replica.disk_bytes;
                figures.memtable_bytes += replica.memtable_bytes;
                if let Some(fault) = replica.fault.as_ref().filter(|_| tracker.is_up(member.server))
                {
                    figures
                        .faults
                        .insert(partition.index, format!("on server {}: {fault}", member.server));
                }
            }
        }
        figures
    }

    /// Progress of a table's last compaction, summed over servers.
    pub fn compaction(&self, image: &MetadataImage, table: &Table) -> CompactionStatus {
        let (tracker, begun) =
            (self.tracker.lock(), self.controller.lock().compaction_run(table.id));
        let holders = image.holders(table.id);
        let reported = || {
            holders
                .iter()
                .filter_map(|server| tracker.health(*server))
                .flat_map(|health| health.compactions.values())
        };
        let known = reported()
            .filter(|compaction| compaction.table == table.id)
            .map(|compaction| compaction.run)
            .max();
        let replicas = image
            .state
            .placements_of(table.id)
            .map(|placement| placement.members.len() as u32)
            .sum();
        let disk_bytes = |server: &ServerId| -> u64 {
            let here = tracker.health(*server).map(|health| health.replicas.values());
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
            let part = tracker.health(*server).and_then(|health| health.compactions.get(&run));
            if !tracker.is_up(*server) {
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
        let took = self.controller.lock().compaction_ms(
            table.id,
            run,
            sum.status == "running",
            now_ms().saturating_sub(run),
        );
        CompactionStatus { elapsed_ms: took, ..sum }
    }

    /// A table's status in a word.
    pub(crate) fn status_name(&self, status: TablePhase, table: &Table) -> &'static str {
        match status {
            TablePhase::Dropping => "dropping",
            TablePhase::Creating => "creating",
            TablePhase::Ready if self.is_open(table.id) => "ready",
            TablePhase::Ready => "opening",
        }
    }
}

fn server_status(
    image: &MetadataImage,
    tracker: &ServerTracker,
    id: ServerId,
    since_ms: u64,
) -> ServerStatus {
    let server = &image.servers[&id];
    let health = tracker.health(id);
    let up = tracker.is_up(id);
    let roles = [
        ("meta", server.roles.meta),
        ("storage", server.roles.storage),
        ("proxy", server.roles.proxy),
    ];
    let holds = |placement: &&Arc<Placement>| {
        placement.on(id).is_some() && image.routes.contains_key(&placement.partition)
    };
    let leads = |placement: &&Arc<Placement>| {
        tracker.leader(placement.partition).is_some_and(|leader| leader.server == id)
    };
    let held = || image.state.placements.values().filter(holds);
    let figures = health.and_then(|health| health.figures.clone());
    let figure = |of: fn(&ServerStats) -> u64| figures.as_ref().map(of);
    ServerStatus {
        id: id.to_string(),
        address: server.address.clone(),
        http: server.http.clone(),
        clients: server.clients.clone(),
        zone: server.zone.clone(),
        roles: roles.into_iter().filter(|(_, has)| *has).map(|(role, _)| role.to_owned()).collect(),
        state: if up { "up" } else { "down" }.to_owned(),
        silent_ms: health.map(|health| {
            Instant::now().saturating_duration_since(health.last_heartbeat).as_millis() as u64
        }),
        since_ms,
        version: health.map(|health| health.software.clone()).unwrap_or_default(),
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
    image: &MetadataImage,
    tracker: &ServerTracker,
    table: &Table,
    placement: &Placement,
) -> PartitionStatus {
    let partition = placement.partition;
    let leader = tracker.leader(partition);
    let leading = leader.filter(|_| tracker.leading(partition).is_some());
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
                member_status(image, tracker, placement, member, leads)
            })
            .collect(),
    }
}

fn member_status(
    image: &MetadataImage,
    tracker: &ServerTracker,
    placement: &Placement,
    member: &Member,
    leads: bool,
) -> MemberStatus {
    let replica = tracker.replica(member.server, placement.partition);
    let state = match replica.map(|replica| replica.health) {
        _ if !tracker.is_up(member.server) => "down",
        None => "unknown",
        Some(ReplicaHealth::Opening) => "opening",
        Some(ReplicaHealth::Running) => "running",
        Some(ReplicaHealth::Installing) => "installing",
        Some(ReplicaHealth::Faulty) => "faulty",
    };
    MemberStatus {
        server: member.server.to_string(),
        address: image
            .servers
            .get(&member.server)
            .map(|server| server.address.clone())
            .unwrap_or_default(),
        raft_id: member.raft_id,
        leads,
        state: state.to_owned(),
        lag: tracker.lag(placement.partition, member.raft_id),
        applied: replica.map_or(0, |replica| replica.applied),
        rows: replica.map_or(0, |replica| replica.rows),
        disk_bytes: replica.map_or(0, |replica| replica.disk_bytes),
        fault: replica.and_then(|replica| replica.fault.clone()),
    }
}
