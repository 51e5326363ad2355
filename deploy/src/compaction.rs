//! Manual compactions of tables. All of a table's local replicas start at the same time
//! and share the compaction threads; one after another would leave the disk idle.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cluster::{CallError, PartitionId, Table, TableId, meta_protocol};
use meta::admin::CompactionStatus;
use parking_lot::Mutex;
use storage::{Compaction as OfStore, CompactionError, Node};

/// The last compaction of each table since the start of the process.
#[derive(Default)]
pub(crate) struct Compactions(Mutex<HashMap<TableId, CompactionRun>>);

struct CompactionRun {
    /// Number given by meta; 0 in a standalone server.
    number: u64,
    started: Instant,
    started_at_ms: u64,
    disk_bytes_before: u64,
    /// Number of local replicas.
    replicas: u32,
    stores: Vec<Arc<OfStore>>,
    /// The error of a replica whose compaction did not start.
    refused: Option<String>,
    /// Duration in ms, once the end was seen.
    ended: Option<u64>,
}

impl Compactions {
    /// Starts a compaction, unless the table's last one is still running.
    pub(crate) fn start(&self, node: &Node, table: &Table) -> CompactionStatus {
        self.order(0, node, table);
        self.progress(node, table)
    }

    /// Starts the compaction that meta has ordered under this number, unless it was
    /// started before; one that is already running counts for it.
    pub(crate) fn order(&self, number: u64, node: &Node, table: &Table) {
        let mut runs = self.0.lock();
        match runs.get_mut(&table.id) {
            Some(run) if run.is_running() || (number != 0 && run.number == number) => {
                run.number = run.number.max(number)
            }
            _ => drop(runs.insert(table.id, CompactionRun::start(number, node, table))),
        }
    }

    /// Progress of the table's last compaction.
    pub(crate) fn progress(&self, node: &Node, table: &Table) -> CompactionStatus {
        let disk_bytes = node.table_stats(table.id).disk_bytes;
        match self.0.lock().get_mut(&table.id) {
            Some(run) => run.progress(disk_bytes),
            None => CompactionStatus {
                status: "none".to_owned(),
                partitions: table.partitions,
                disk_bytes,
                ..CompactionStatus::default()
            },
        }
    }

    /// Progress of the compactions ordered by meta; forgets those of other tables.
    pub(crate) fn report(
        &self,
        node: &Node,
        is_here: impl Fn(TableId) -> bool,
    ) -> Vec<meta_protocol::CompactionProgress> {
        let mut runs = self.0.lock();
        runs.retain(|table, _| is_here(*table));
        let ordered = runs.iter_mut().filter(|(_, run)| run.number != 0);
        ordered
            .map(|(table, run)| run.report(*table, node.table_stats(*table).disk_bytes))
            .collect()
    }
}

impl CompactionRun {
    fn start(number: u64, node: &Node, table: &Table) -> CompactionRun {
        let mut run = CompactionRun {
            number,
            started: Instant::now(),
            started_at_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            disk_bytes_before: node.table_stats(table.id).disk_bytes,
            replicas: 0,
            stores: Vec::new(),
            refused: None,
            ended: None,
        };
        for index in 0..table.partitions {
            let replica = match node.replica(PartitionId { table: table.id, index }) {
                // On another server.
                Err(CallError::NoTable) => continue,
                found => found.map_err(|error| error.to_string()),
            };
            run.replicas += 1;
            match replica {
                Ok(replica) => run.stores.push(OfStore::start(replica)),
                Err(error) => run.refused = Some(format!("partition {index}: {error}")),
            }
        }
        run
    }

    fn is_running(&self) -> bool {
        self.stores.iter().any(|store| store.outcome().is_none())
    }

    fn progress(&mut self, disk_bytes: u64) -> CompactionStatus {
        let outcomes: Vec<_> = self.stores.iter().filter_map(|store| store.outcome()).collect();
        let failed = outcomes
            .iter()
            .find_map(|outcome| outcome.as_ref().err().map(CompactionError::to_string))
            .or(self.refused.clone());
        let elapsed_ms = self.ended.unwrap_or_else(|| self.started.elapsed().as_millis() as u64);
        let status = match (self.is_running(), &failed) {
            (true, _) => "running",
            (false, Some(_)) => "failed",
            (false, None) => "done",
        };
        if status != "running" {
            self.ended = Some(elapsed_ms);
        }
        CompactionStatus {
            status: status.to_owned(),
            partitions_done: outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u32,
            partitions: self.replicas,
            started_at_ms: self.started_at_ms,
            elapsed_ms,
            disk_bytes_before: self.disk_bytes_before,
            disk_bytes,
            error: failed,
        }
    }

    fn report(&mut self, table: TableId, disk_bytes: u64) -> meta_protocol::CompactionProgress {
        let progress = self.progress(disk_bytes);
        meta_protocol::CompactionProgress {
            run: self.number,
            table,
            done: progress.partitions_done,
            replicas: progress.partitions,
            disk_bytes_before: progress.disk_bytes_before,
            disk_bytes,
            ended: progress.status != "running",
            error: progress.error,
        }
    }
}
