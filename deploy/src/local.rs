//! The node as proxy and admin API see it: what they ask of the process around them.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use cluster::{Boxed, CallError, Catalogue, PartitionId, Table};
use engine::log::Log;
use engine::store::{Health, Shared};
use meta::Meta;
use meta::admin::{Compaction, Figures, NodeStatus};
use proxy::Proxy;
use proxy::config::{FileChange, RewriteError};
use proxy::node::{Durability, Figure, Memory, Section, TableFigures};
use storage::Node;
use subtle::ConstantTimeEq;

use crate::compaction::Compactions;
use crate::config::{self, Config};
use crate::directory::Identity;

/// This process.
pub(crate) struct Local {
    pub(crate) config: Config,
    /// The file that `config` came from, in part.
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) identity: Identity,
    pub(crate) node: Arc<Node>,
    pub(crate) meta: Arc<Meta>,
    pub(crate) log: Arc<Log>,
    pub(crate) shared: Shared,
    pub(crate) started: Instant,
    /// Where Redis clients are served.
    pub(crate) addresses: Vec<String>,
    pub(crate) compactions: Compactions,
    /// Set once: the proxy is made after us, and holds us.
    pub(crate) proxy: OnceLock<Weak<Proxy>>,
    pub(crate) serving: AtomicBool,
}

impl Local {
    /// The catalogue.
    pub(crate) fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// The proxy, while there is one.
    pub(crate) fn proxy(&self) -> Option<Arc<Proxy>> {
        self.proxy.get().and_then(Weak::upgrade)
    }

    /// Whether Redis clients are served.
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// Every table that serves, with what it holds here.
    pub(crate) fn tables_here(&self) -> Vec<(Arc<Table>, storage::TableFigures)> {
        let tables = self.meta.tables().into_iter();
        tables.map(|table| (table.clone(), self.node.table_figures(table.id))).collect()
    }

    /// Whether there is room for writes; if not, why not.
    pub(crate) fn writable(&self) -> Result<(), String> {
        self.log.writable().map_err(|full| full.to_string())?;
        // All stores are on one disk: one speaks for all.
        self.node.replicas().iter().try_for_each(|replica| match replica.store().health() {
            Health::DiskFull(why) => Err(why),
            Health::Good | Health::Failing(_) => Ok(()),
        })
    }

    /// What is wrong, in sentences.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(why) = self.writable() {
            faults.push(format!("no writes: {why}"));
        }
        for (table, figures) in self.tables_here() {
            faults.extend(figures.faults.iter().map(|(index, why)| format!("{} partition {index}: {why}", table.name)));
        }
        faults
    }
}

fn int(count: u64) -> Figure {
    Figure::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

fn section(name: &'static str, figures: Vec<(&'static str, Figure)>) -> Section {
    Section { name, figures: figures.into_iter().map(|(name, figure)| (Cow::Borrowed(name), figure)).collect() }
}

impl proxy::Node for Local {
    fn sections(&self) -> Vec<Section> {
        let (log, meta) = (self.log.stats(), self.meta.figures());
        let replicas = self.node.replicas();
        let groups: Vec<_> = replicas.iter().map(|replica| replica.figures()).collect();
        let stores: Vec<_> = replicas.iter().filter_map(|replica| replica.store().figures().ok()).collect();
        let sum = |of: fn(&engine::store::Figures) -> u64| int(stores.iter().map(of).sum());
        let writes = if self.writable().is_ok() { "ok" } else { "err" };
        vec![
            section(
                "persistence",
                vec![("aof_last_write_status", Figure::Text(writes.into())), ("aof_current_size", int(log.disk_bytes()))],
            ),
            section(
                "raft",
                vec![
                    ("raft_groups", int(groups.len() as u64 + 1)),
                    ("raft_groups_led", int(groups.iter().chain([&meta]).filter(|group| group.is_leader).count() as u64)),
                    ("raft_entries_applied", int(groups.iter().chain([&meta]).map(|group| group.applied).sum())),
                    ("raft_log_bytes", int(log.disk_bytes())),
                    ("raft_log_segments", int(log.segments())),
                    ("raft_log_fsyncs", int(log.fsyncs())),
                    ("raft_log_fsync_usec", int(log.fsync_nanos() / 1000)),
                    ("raft_log_batches", int(log.batches())),
                    ("raft_log_records", int(log.records())),
                    ("raft_log_written_bytes", int(log.bytes())),
                ],
            ),
            section(
                "rocksdb",
                vec![
                    ("rocksdb_block_cache_bytes", int(self.shared.cache_used() as u64)),
                    ("rocksdb_memtable_bytes", int(self.shared.memtables_used() as u64)),
                    ("rocksdb_file_bytes", sum(|store| store.file_bytes)),
                    ("rocksdb_files", sum(|store| store.files)),
                    ("rocksdb_level0_files", sum(|store| store.level0_files)),
                    ("rocksdb_pending_compaction_bytes", sum(|store| store.pending_compaction_bytes)),
                    ("rocksdb_running_flushes", sum(|store| store.running_flushes)),
                    ("rocksdb_running_compactions", sum(|store| store.running_compactions)),
                    ("rocksdb_background_errors", sum(|store| store.background_errors)),
                    ("rocksdb_write_stopped", sum(|store| store.write_stopped)),
                    ("rocksdb_swept_bytes", sum(|store| store.swept_bytes)),
                ],
            ),
        ]
    }

    fn tables(&self) -> Vec<TableFigures> {
        let figures = |(table, figures): (Arc<Table>, storage::TableFigures)| TableFigures {
            name: table.name.clone(),
            rows: figures.rows,
            expires: figures.expiring,
            disk_bytes: figures.disk_bytes,
        };
        self.tables_here().into_iter().map(figures).collect()
    }

    fn durability(&self) -> Durability {
        match self.config.storage.durability {
            config::Durability::Always => Durability::Always,
            config::Durability::Interval => Durability::Interval,
            config::Durability::Os => Durability::Os,
        }
    }

    /// Groups of one have no other copies.
    fn replicas(&self, _partition: PartitionId) -> u32 {
        0
    }

    fn set_active_expire(&self, on: bool) {
        self.node.set_active_expiry(on);
    }

    fn sync(&self) -> Boxed<'_, Result<(), CallError>> {
        Box::pin(async { self.log.flush().await.map_err(|error| CallError::Fault(error.to_string())) })
    }

    fn memory(&self) -> Memory {
        let allocator = engine::memory::figures();
        let parts = vec![("block_cache", self.shared.cache_used() as u64), ("memtables", self.shared.memtables_used() as u64)];
        Memory {
            allocated: allocator.allocated,
            active: allocator.active,
            resident: allocator.resident,
            allocator: engine::memory::ALLOCATOR,
            parts,
        }
    }

    fn rewrite_config(&self, changes: &[FileChange]) -> Result<(), RewriteError> {
        let path = self.config_file.as_ref().ok_or(RewriteError::NoFile)?;
        config::rewrite_file(path, changes).map_err(RewriteError::Io)
    }
}

impl meta::admin::Local for Local {
    fn authorised(&self, password: Option<&[u8]>) -> bool {
        let settings = self.proxy().map(|proxy| proxy.settings.load_full());
        match settings.as_ref().map(|settings| settings.password.as_ref()) {
            Some(Some(wanted)) => password.is_some_and(|sent| bool::from(sent.ct_eq(wanted))),
            Some(None) => true,
            // Stopping: nobody is let in any more.
            None => false,
        }
    }

    fn status(&self) -> NodeStatus {
        let tables = self.tables_here();
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.identity.cluster.clone(),
            cluster_id: self.identity.cluster_id.clone(),
            node_id: self.identity.node_id,
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.is_serving(),
            durability: self.config.storage.durability.word().to_owned(),
            addresses: self.addresses.clone(),
            clients: self.proxy().map_or(0, |proxy| proxy.clients.len() as u64),
            tables: tables.len() as u32,
            partitions: tables.iter().map(|(table, _)| table.partitions).sum(),
            disk_bytes: tables.iter().map(|(_, figures)| figures.disk_bytes).sum(),
            log_bytes: self.log.stats().disk_bytes(),
            memory_bytes: engine::memory::figures().resident,
            faults: self.faults(),
        }
    }

    fn figures(&self, table: &Table) -> Figures {
        let figures = self.node.table_figures(table.id);
        Figures {
            rows: figures.rows,
            expiring: figures.expiring,
            disk_bytes: figures.disk_bytes,
            memtable_bytes: figures.memtable_bytes,
            faults: figures.faults,
        }
    }

    fn compact(&self, table: &Arc<Table>) -> Compaction {
        self.compactions.start(&self.node, table)
    }

    fn compaction(&self, table: &Table) -> Compaction {
        self.compactions.progress(&self.node, table)
    }
}
