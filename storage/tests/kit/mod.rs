//! A node that is alone, and holds table `db0` with one partition. Unit tests of the
//! crate have it as `crate::kit`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Member, PartitionId, Placement, ServerId, Table, TableId};
use engine::log::{Log, LogOptions};
use engine::store::{SharedResources, StoreSettings};
use engine::time::SlewedClock;
use storage::{Assignment, Node, NodeOptions};

/// The one partition.
pub(crate) const DB0: PartitionId = PartitionId { table: TableId(1), index: 0 };

/// The table as it is made.
pub(crate) fn table() -> Table {
    Table {
        id: DB0.table,
        name: "db0".into(),
        number: 0,
        partitions: 1,
        replicas: 1,
        envs: Default::default(),
        default_ttl_since_ms: 0,
    }
}

/// The node's assignment of a table.
pub(crate) fn assigned(table: Table) -> Assignment {
    let members = vec![Member { raft_id: 1, server: ServerId(1) }];
    Assignment {
        table: Arc::new(table),
        placements: vec![Placement { partition: DB0, members, epoch: 1 }],
    }
}

/// The options of a node.
pub(crate) fn options(dir: &Path) -> NodeOptions {
    NodeOptions {
        dir: dir.join("partitions"),
        raft_runtime: tokio::runtime::Handle::current(),
        write_bytes_max: 16 << 20,
        answer_bytes_max: 64 << 20,
        row_cache_bytes: 1 << 20,
        request_memory_max: 64 << 20,
        cluster_tag: 1,
        clock: SlewedClock::system(),
        unknown_after: Duration::from_secs(3),
        step_clock: storage::monotonic,
        peers: None,
    }
}

/// A node, and the log that it writes; what it holds it has to be told
/// ([`Node::follow`]).
pub(crate) fn node(options: NodeOptions, log: LogOptions) -> (Arc<Node>, Arc<Log>) {
    let log = Log::open(log).expect("open the log");
    (
        Node::open(
            options,
            log.clone(),
            SharedResources::new(StoreSettings::default()).expect("memory for stores"),
        ),
        log,
    )
}

/// The options of the log of a node in a directory.
pub(crate) fn log_options(dir: &Path) -> LogOptions {
    LogOptions::new(dir.join("log"))
}
