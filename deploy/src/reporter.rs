//! Heartbeats of a process of a cluster to meta: its identity, and the state of the
//! process and its replicas.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use cluster::meta_client::ReportSource;
use cluster::meta_protocol::{
    CompactionProgress, RegisterRequest, Replica, Report, Server, ServerStats,
};
use cluster::{PartitionId, TableId};
use engine::log::DiskProblem;
use parking_lot::Mutex;
use storage::Node;

use crate::compaction::Compactions;
use crate::data_dir::DataDir;
use crate::process_info::ProcessInfo;

/// Interval at which the process's own statistics are reported.
const STATS_INTERVAL: Duration = Duration::from_secs(5);

/// The source of a process's reports to meta.
pub(crate) struct Reporter {
    server: Server,
    data_dir: Arc<DataDir>,
    pub(crate) compactions: Arc<Compactions>,
    node: OnceLock<Arc<Node>>,
    /// The process, once it is open.
    process: OnceLock<Weak<ProcessInfo>>,
    last: Mutex<LastReport>,
}

/// The state at the last report, and results of reconciliation to report.
#[derive(Default)]
struct LastReport {
    replicas: HashMap<PartitionId, Replica>,
    compactions: HashMap<u64, CompactionProgress>,
    stats_at: Option<Instant>,
    /// The disk ailment that was last reported.
    ails: Option<&'static str>,
    /// The version of the assignments in effect.
    followed: u64,
    /// Assigned tables.
    tables: BTreeSet<TableId>,
    /// Dropped tables whose data is deleted.
    destroyed: BTreeSet<TableId>,
}

impl Reporter {
    pub(crate) fn new(server: Server, data_dir: Arc<DataDir>) -> Arc<Reporter> {
        let (compactions, last) = (Arc::default(), Mutex::default());
        Arc::new(Reporter {
            server,
            data_dir,
            compactions,
            node: OnceLock::new(),
            process: OnceLock::new(),
            last,
        })
    }

    /// Storage is open. Once.
    pub(crate) fn set_node(&self, node: &Arc<Node>) {
        self.node.get_or_init(|| node.clone());
    }

    /// The process is open. Once.
    pub(crate) fn set_process(&self, process: &Arc<ProcessInfo>) {
        self.process.get_or_init(|| Arc::downgrade(process));
    }

    /// The assignments of `tables` are in effect; the data of `destroyed` is deleted.
    pub(crate) fn followed(
        &self,
        version: u64,
        tables: BTreeSet<TableId>,
        destroyed: BTreeSet<TableId>,
    ) {
        let mut last = self.last.lock();
        (last.followed, last.tables, last.destroyed) = (version, tables, destroyed);
    }
}

impl ReportSource for Reporter {
    fn register_request(&self) -> RegisterRequest {
        RegisterRequest {
            server: self.server.clone(),
            cluster: self.data_dir.identity().cluster_number(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn report(&self, whole: bool) -> Report {
        let replicas = self.node.get().map(|node| node.report()).unwrap_or_default();
        let mut last = self.last.lock();
        if whole {
            // A new meta leader knows none of the earlier reports.
            last.replicas.clear();
            last.compactions.clear();
            last.stats_at = None;
        }
        let compactions = self
            .node
            .get()
            .map(|node| self.compactions.report(node, |table| last.tables.contains(&table)))
            .unwrap_or_default();
        let changed: Vec<Replica> = replicas
            .iter()
            .filter(|replica| last.replicas.get(&replica.partition) != Some(replica))
            .cloned()
            .collect();
        let rows_disk_bytes = replicas.iter().map(|replica| replica.disk_bytes).sum();
        last.replicas = replicas.into_iter().map(|replica| (replica.partition, replica)).collect();
        let of_compactions: Vec<CompactionProgress> = compactions
            .iter()
            .filter(|compaction| last.compactions.get(&compaction.run) != Some(compaction))
            .cloned()
            .collect();
        last.compactions =
            compactions.into_iter().map(|compaction| (compaction.run, compaction)).collect();
        let now = Instant::now();
        let process = self.process.get().and_then(Weak::upgrade);
        let disk_problem =
            process.as_ref().and_then(|process| process.stores.as_ref()?.log.recent_disk_problem());
        let ails = disk_problem.as_ref().map(DiskProblem::name);
        let is_due = ails != last.ails
            || last.stats_at.is_none_or(|at| now.saturating_duration_since(at) >= STATS_INTERVAL);
        let stats = process
            .filter(|_| is_due)
            .map(|process| server_stats(&process, rows_disk_bytes, disk_problem));
        if stats.is_some() {
            (last.stats_at, last.ails) = (Some(now), ails);
        }
        Report {
            whole,
            followed: last.followed,
            replicas: changed,
            destroyed: last.destroyed.iter().copied().collect(),
            compactions: of_compactions,
            figures: stats,
        }
    }
}

/// The process's own statistics.
pub(crate) fn server_stats(
    process: &ProcessInfo,
    rows_disk_bytes: u64,
    disk_problem: Option<DiskProblem>,
) -> ServerStats {
    let ailing = disk_problem.map(|disk_problem| disk_problem.to_string());
    let disk = rustix::fs::statvfs(process.data_dir.path()).ok();
    let bytes = |blocks: u64| disk.as_ref().map_or(0, |disk| blocks.saturating_mul(disk.f_frsize));
    ServerStats {
        disk_total_bytes: bytes(disk.as_ref().map_or(0, |disk| disk.f_blocks)),
        disk_free_bytes: bytes(disk.as_ref().map_or(0, |disk| disk.f_bavail)),
        rows_disk_bytes,
        log_bytes: process.stores.as_ref().map_or(0, |stores| stores.log.stats().disk_bytes()),
        memory_bytes: engine::memory::stats().resident,
        clients: process.proxy().map_or(0, |proxy| proxy.clients.len() as u64),
        uptime_seconds: process.started.elapsed().as_secs(),
        faults: process
            .faults()
            .into_iter()
            .chain(ailing.iter().map(|why| format!("leads no partitions at the moment: {why}")))
            .collect(),
        ailing,
    }
}
