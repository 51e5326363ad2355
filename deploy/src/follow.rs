//! Keeps the node's partitions in step with the catalogue.
//!
//! The catalogue says what there should be; this makes it so, and again after a restart: creating and dropping are resumed wherever they
//! were cut off.

use std::sync::Arc;
use std::time::Duration;

use meta::{Meta, Tables};
use storage::Node;

/// How soon a destruction that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Makes the partitions those of one state of the catalogue; false when something is left to be tried again.
pub(crate) async fn once(meta: &Meta, node: &Node, tables: &Tables) -> bool {
    node.follow(&tables.ready).await;
    meta.opened(tables);
    let mut done = true;
    for table in &tables.dropping {
        let destroyed = match node.destroy(table).await {
            Ok(()) => meta.dropped(table.id).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match destroyed {
            Ok(()) => tracing::info!(table = table.name, id = table.id.0, "table dropped"),
            Err(error) => {
                tracing::warn!(table = table.name, id = table.id.0, error, "a dropped table could not be destroyed; it is tried again");
                done = false;
            }
        }
    }
    done
}

/// Follows until the catalogue is gone.
pub(crate) async fn forever(meta: Arc<Meta>, node: Arc<Node>) {
    let mut watch = meta.watch();
    loop {
        let tables = watch.borrow_and_update().clone();
        let done = once(&meta, &node, &tables).await;
        tokio::select! {
            changed = watch.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !done => {}
        }
    }
}
