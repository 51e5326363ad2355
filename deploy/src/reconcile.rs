//! Reconciliation of this process's replicas with meta's assignments.
//!
//! Meta publishes the desired state, and this module creates and destroys replicas until
//! the process matches it. It is level-triggered and idempotent: a creation or a drop
//! that was interrupted resumes after a restart. A standalone server calls its own meta;
//! a process of a cluster reports to the metas.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::meta_client::{Assignments, MetaClient};
use cluster::meta_protocol::Instruction;
use cluster::{Placement, Table, TableId};
use meta::{CommittedTables, Meta};
use storage::{Assignment, Node};
use tokio::sync::mpsc;

use crate::reporter::Reporter;

/// Interval of retries after a failed destruction.
const RETRY: Duration = Duration::from_secs(10);

/// Deletes a table's local data; false when a retry is needed.
async fn destroy(node: &Node, table: &Table) -> bool {
    match node.destroy(table).await {
        Ok(()) => true,
        Err(error) => {
            let (table, id) = (&table.name, table.id.0);
            tracing::warn!(table, id, %error, "cannot delete a dropped table; will retry");
            false
        }
    }
}

/// Standalone: reconciles once with a version of the catalogue; false when a retry is
/// needed.
pub(crate) async fn reconcile_tables(meta: &Meta, node: &Node, tables: &CommittedTables) -> bool {
    let placements = |table: &Arc<Table>| {
        let placements = tables.placements.iter().filter(|(id, _)| id.table == table.id);
        placements.map(|(_, placement)| Placement::clone(placement)).collect()
    };
    let assigned: Vec<Assignment> = tables
        .ready
        .iter()
        .map(|table| Assignment { table: table.clone(), placements: placements(table) })
        .collect();
    node.follow(&assigned).await;
    meta.opened(tables);
    let mut done = true;
    for table in &tables.dropping {
        if !destroy(node, table).await {
            done = false;
            continue;
        }
        match meta.dropped(table.id).await {
            Ok(()) => tracing::info!(table = table.name, id = table.id.0, "table dropped"),
            Err(error) => {
                let (table, id) = (&table.name, table.id.0);
                tracing::warn!(table, id, %error, "cannot remove a dropped table; will retry");
                done = false;
            }
        }
    }
    done
}

/// Standalone: reconciles until the catalogue is closed.
pub(crate) async fn run_standalone(meta: Arc<Meta>, node: Arc<Node>) {
    let mut watch = meta.watch();
    loop {
        let tables = watch.borrow_and_update().clone();
        let done = reconcile_tables(&meta, &node, &tables).await;
        tokio::select! {
            changed = watch.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !done => {}
        }
    }
}

/// In a cluster: reconciles once with meta's assignments, and reports the result; false
/// when a retry is needed.
async fn reconcile_assignments(
    node: &Node,
    reporter: &Reporter,
    assignments: &Assignments,
) -> bool {
    let (gone, there): (Vec<_>, Vec<_>) =
        assignments.tables.values().partition(|assignment| assignment.destroy);
    let assigned: Vec<Assignment> = there
        .iter()
        .map(|assignment| Assignment {
            table: Arc::new(assignment.table.clone()),
            placements: assignment.placements.clone(),
        })
        .collect();
    node.follow(&assigned).await;
    let mut destroyed: BTreeSet<TableId> = BTreeSet::new();
    for assignment in &gone {
        if destroy(node, &assignment.table).await {
            tracing::info!(
                table = assignment.table.name,
                id = assignment.table.id.0,
                "deleted the local data of a dropped table"
            );
            destroyed.insert(assignment.table.id);
        }
    }
    let done = destroyed.len() == gone.len();
    reporter.followed(
        assignments.version,
        there.iter().map(|assignment| assignment.table.id).collect(),
        destroyed,
    );
    done
}

/// In a cluster: reconciles until the process stops. Sends on `first` once the first
/// assignments are in effect.
pub(crate) async fn run_member(
    node: Arc<Node>,
    reporter: Arc<Reporter>,
    meta_client: Arc<MetaClient>,
    first: tokio::sync::oneshot::Sender<()>,
) {
    let (mut watch, mut first) = (meta_client.assignments(), Some(first));
    loop {
        let assigned = watch.borrow_and_update().clone();
        let mut done = true;
        if let Some(assigned) = assigned {
            done = reconcile_assignments(&node, &reporter, &assigned).await;
            meta_client.report_now();
            if let Some(first) = first.take() {
                // The start may have been cancelled.
                let _ = first.send(());
            }
        }
        tokio::select! {
            changed = watch.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !done => {}
        }
    }
}

/// In a cluster: reports immediately when a leadership or a replica's health changes.
pub(crate) async fn report_changes(node: Arc<Node>, meta_client: Arc<MetaClient>) {
    let mut changes = node.changes();
    while changes.changed().await.is_ok() {
        meta_client.report_now();
    }
}

/// In a cluster: executes meta's instructions.
pub(crate) async fn run_instructions(
    node: Arc<Node>,
    reporter: Arc<Reporter>,
    meta_client: Arc<MetaClient>,
    mut instructions: mpsc::Receiver<Instruction>,
) {
    while let Some(order) = instructions.recv().await {
        match order {
            Instruction::Transfer { partition, term, to } => {
                let node = node.clone();
                tokio::spawn(async move {
                    match node.transfer(partition, term, to).await {
                        Ok(()) => tracing::info!(
                            ?partition,
                            to,
                            "transferred leadership, as instructed by meta"
                        ),
                        Err(error) => {
                            tracing::info!(?partition, to, %error, "leadership transfer failed")
                        }
                    }
                });
            }
            Instruction::Compact { run, table } => {
                let assigned = meta_client.assignments().borrow().clone();
                if let Some(assignment) =
                    assigned.as_ref().and_then(|assigned| assigned.tables.get(&table))
                {
                    reporter.compactions.order(run, &node, &assignment.table);
                    meta_client.report_now();
                }
            }
        }
    }
}
