//! Manual compactions of tables: one store after another is more than the disk needs, so all of a table's partitions are asked at once and
//! share the compaction threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cluster::{PartitionId, Table, TableId};
use engine::store::Compaction as OfStore;
use meta::admin::Compaction;
use parking_lot::Mutex;
use storage::Node;

/// The last compaction of every table that was asked for one since the start.
#[derive(Default)]
pub(crate) struct Compactions(Mutex<HashMap<TableId, Run>>);

struct Run {
    started: Instant,
    started_at_ms: u64,
    disk_bytes_before: u64,
    partitions: u32,
    stores: Vec<Arc<OfStore>>,
    /// Partitions that could not be asked.
    refused: Option<String>,
    /// Time taken, once it was seen to have ended.
    ended: Option<u64>,
}

impl Compactions {
    /// Starts one, unless the table's last is still running.
    pub(crate) fn start(&self, node: &Node, table: &Table) -> Compaction {
        {
            let mut runs = self.0.lock();
            if runs.get(&table.id).is_none_or(|run| !run.is_running()) {
                runs.insert(table.id, Run::start(node, table));
            }
        }
        self.progress(node, table)
    }

    /// How the table's last one stands.
    pub(crate) fn progress(&self, node: &Node, table: &Table) -> Compaction {
        let disk_bytes = node.table_figures(table.id).disk_bytes;
        match self.0.lock().get_mut(&table.id) {
            Some(run) => run.progress(disk_bytes),
            None => Compaction { status: "none".to_owned(), partitions: table.partitions, disk_bytes, ..Compaction::default() },
        }
    }
}

impl Run {
    fn start(node: &Node, table: &Table) -> Run {
        let mut run = Run {
            started: Instant::now(),
            started_at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            disk_bytes_before: node.table_figures(table.id).disk_bytes,
            partitions: table.partitions,
            stores: Vec::new(),
            refused: None,
            ended: None,
        };
        for index in 0..table.partitions {
            let store = node.replica(PartitionId { table: table.id, index }).map_err(|error| error.to_string());
            match store.and_then(|replica| replica.store().compact().map_err(|error| error.to_string())) {
                Ok(compaction) => run.stores.push(compaction),
                Err(error) => run.refused = Some(format!("partition {index}: {error}")),
            }
        }
        run
    }

    fn is_running(&self) -> bool {
        self.stores.iter().any(|store| store.outcome().is_none())
    }

    fn progress(&mut self, disk_bytes: u64) -> Compaction {
        let outcomes: Vec<_> = self.stores.iter().filter_map(|store| store.outcome()).collect();
        let failed = outcomes.iter().find_map(|outcome| outcome.as_ref().err().map(ToString::to_string)).or(self.refused.clone());
        let elapsed_ms = self.ended.unwrap_or_else(|| self.started.elapsed().as_millis() as u64);
        let status = match (self.is_running(), &failed) {
            (true, _) => "running",
            (false, Some(_)) => "failed",
            (false, None) => "done",
        };
        if status != "running" {
            self.ended = Some(elapsed_ms);
        }
        Compaction {
            status: status.to_owned(),
            partitions_done: outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u32,
            partitions: self.partitions,
            started_at_ms: self.started_at_ms,
            elapsed_ms,
            disk_bytes_before: self.disk_bytes_before,
            disk_bytes,
            error: failed,
        }
    }
}
