//! Standalone: the only server is in this process and is reached by function calls
//! instead of a channel.
//!
//! All else is as in a cluster: its replicas are placed, its reports make tables ready
//! and let dropped ones be forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use cluster::meta_protocol::{Replica, ReplicaHealth, Report, ServerStats};
use cluster::{Boxed, CallError, Catalogue, PartitionId, Placement, ServerId, Table, TableId};
use tokio::sync::watch;

use crate::error::MetaError;
use crate::meta::{Meta, MetaMode};
use crate::state::{MetaCommand, Refusal, TablePhase};

/// The catalogue as committed, for the only server to follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommittedTables {
    /// Of the assignments.
    pub version: u64,
    /// Tables that are to be open.
    pub ready: Vec<Arc<Table>>,
    /// Tables whose partitions are to be destroyed; then [`Meta::dropped`].
    pub dropping: Vec<Arc<Table>>,
    /// Placements of all their partitions.
    pub placements: BTreeMap<PartitionId, Arc<Placement>>,
}

/// Tables that serve and are open, as proxies see them.
#[derive(Debug, Default)]
pub(crate) struct OpenTables {
    by_name: BTreeMap<String, Arc<Table>>,
}

impl Meta {
    fn local_server(&self) -> Option<ServerId> {
        match &self.options.mode {
            MetaMode::Standalone(server) => Some(server.id),
            MetaMode::Member { .. } => None,
        }
    }

    /// Publishes what the only server is to follow.
    pub(crate) fn publish_to_local_server(&self) {
        if self.local_server().is_none() {
            return;
        }
        let image = self.image.borrow().clone();
        let dropping = |record: &&crate::state::TableRecord| record.status == TablePhase::Dropping;
        let (gone, there): (Vec<_>, Vec<_>) = image.state.tables.values().partition(dropping);
        let tables = |records: Vec<&crate::state::TableRecord>| {
            records.into_iter().map(|record| record.table.clone()).collect()
        };
        let tables = CommittedTables {
            version: image.version,
            ready: tables(there),
            dropping: tables(gone),
            placements: image.state.placements.clone(),
        };
        // A table that is going is out of sight before anybody starts to destroy it.
        let view = self.view.load();
        if view
            .by_name
            .values()
            .any(|open| tables.dropping.iter().any(|dropping| dropping.id == open.id))
        {
            self.show(
                view.by_name
                    .values()
                    .filter(|open| tables.ready.iter().any(|ready| ready.id == open.id))
                    .cloned(),
            );
        }
        self.tables.send_replace(Arc::new(tables));
    }

    fn show(&self, tables: impl Iterator<Item = Arc<Table>>) {
        let by_name = tables.map(|table| (table.name.clone(), table)).collect();
        self.view.store(Arc::new(OpenTables { by_name }));
        self.version.send_modify(|version| *version += 1);
    }

    /// The committed catalogue and its changes, for the only server to follow.
    pub fn watch(&self) -> watch::Receiver<Arc<CommittedTables>> {
        self.tables.subscribe()
    }

    /// The only server has opened these (or knows why it can't): those that serve are
    /// seen by proxies from now on, as far as they have not been dropped since.
    pub fn opened(&self, tables: &CommittedTables) {
        let Some(server) = self.local_server() else { return };
        let image = self.image.borrow().clone();
        let serves = |table: &&Arc<Table>| {
            image
                .state
                .tables
                .get(&table.id)
                .is_some_and(|record| record.status == TablePhase::Ready)
        };
        self.show(tables.ready.iter().filter(serves).cloned());
        let is_ready =
            |partition: &PartitionId| tables.ready.iter().any(|table| table.id == partition.table);
        let placements =
            tables.placements.values().filter(|placement| is_ready(&placement.partition));
        let replicas = placements
            .filter_map(|placement| Some(open(placement.partition, placement.on(server)?.raft_id)))
            .collect();
        let report =
            Report { whole: false, followed: tables.version, replicas, ..Report::default() };
        self.report_locally(server, report);
        self.wake();
    }

    /// The only server's own figures, which nobody asks for but to show them.
    pub(crate) fn record_local_stats(&self, figures: ServerStats) {
        let Some(server) = self.local_server() else { return };
        let report = Report { figures: Some(figures), ..Report::default() };
        self.report_locally(server, report);
    }

    fn report_locally(&self, server: ServerId, report: Report) {
        let image = self.image.borrow().clone();
        let mut tracker = self.tracker.lock();
        if let Some(session) = tracker.session(server) {
            tracker.report(server, session, report, &image.state, Instant::now());
        }
    }

    /// The only server has destroyed every partition of a table that was being dropped:
    /// it is forgotten. Again is harmless.
    ///
    /// # Errors
    /// As every command; the table stays on the list.
    pub async fn dropped(&self, id: TableId) -> Result<(), MetaError> {
        let Some(server) = self.local_server() else { return Ok(()) };
        match self.command(MetaCommand::MarkDestroyed { id, server }).await {
            Ok(_) | Err(MetaError::Refused(Refusal::NotDropping(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// True if proxies see the table.
    pub fn is_open(&self, id: TableId) -> bool {
        match self.local_server() {
            Some(_) => self.view.load().by_name.values().any(|table| table.id == id),
            None => self.image.borrow().tables.contains_key(&id),
        }
    }
}

/// A replica that leads a group of one.
fn open(partition: PartitionId, raft_id: u64) -> Replica {
    Replica {
        partition,
        raft_id,
        health: ReplicaHealth::Running,
        fault: None,
        term: 1,
        leads: true,
        last_log: 0,
        applied: 0,
        matched: Vec::new(),
        rows: 0,
        expiring: 0,
        disk_bytes: 0,
        memtable_bytes: 0,
    }
}

impl Catalogue for Meta {
    fn table(&self, name: &str) -> Option<Arc<Table>> {
        self.view.load().by_name.get(name).cloned()
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        self.view.load().by_name.values().cloned().collect()
    }

    // A serving table is published before its creation is announced: memory suffices.
    fn find(&self, name: &str) -> Boxed<'_, Result<Option<Arc<Table>>, CallError>> {
        Box::pin(std::future::ready(Ok(self.table(name))))
    }

    fn find_all(&self) -> Boxed<'_, Result<Vec<Arc<Table>>, CallError>> {
        Box::pin(std::future::ready(Ok(Catalogue::tables(self))))
    }

    fn ensure(&self, name: &str) -> Boxed<'_, Result<Arc<Table>, CallError>> {
        let name = name.to_owned();
        Box::pin(async move {
            match self.table(&name) {
                Some(table) => Ok(table),
                None => self.ensure_table(&name).await.map_err(CallError::from),
            }
        })
    }

    fn partitions_of_new(&self) -> Boxed<'_, Result<u32, CallError>> {
        Box::pin(std::future::ready(Ok(self.options.partitions)))
    }

    fn version(&self) -> u64 {
        *self.version.borrow()
    }
}
