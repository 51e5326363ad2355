//! Meta's durable state as a pure state machine: a command and a timestamp give changes
//! or a refusal.
//!
//! It holds servers, tables, placements and the phases of tables. Leaders, liveness and
//! the progress of replicas are not in it: servers report them ([`crate::liveness`]).
//!
//! # Life of a table
//! `Creating` with all placements from the first moment; `Ready` once every partition has
//! had a leader; `Dropping` with the list of servers that still hold something of it;
//! forgotten when that list is empty. Each step is one command, so whoever leads meta can
//! take the next one.
//!
//! # Invariants
//! - A table's id is never given again: `next_id` only grows, whatever happens to tables
//!   (`ids_are_never_reused`).
//! - A replica's Raft id is never given again, over all tables: `next_raft_id` only grows
//!   (`ids_are_never_reused`).
//! - A number that a table with a name had is never given again: `next_number` only grows
//!   (`a_table_with_a_name_has_a_number_that_none_had_before`).
//! - Two tables that serve never have the same name. A table that is being dropped has
//!   lost its name already.
//! - `default_ttl_since_ms` changes exactly when the value of `default_ttl` does, and
//!   only here, and grows: partitions, which hear of it at different times, tell by it
//!   what was set later.
//! - The cluster's id is set once (`the_cluster_id_is_set_once`).
//! - A meta index has one server, until an operator releases it
//!   (`a_meta_index_has_one_server_until_it_is_released`).
//! - A server that was removed never comes back under its id
//!   (`removed_servers_stay_out`).
//! - A refused command leaves no changes.

mod decide;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use cluster::NAME_BYTES_MAX;
use cluster::meta_protocol::{Server, ServerSizeError};
use cluster::{DATABASES, PartitionId, Placement, ServerId, Table, TableId};
use serde::{Deserialize, Serialize};

use crate::envs;
use crate::placement::NotEnoughServers;

/// The most partitions of a table.
pub const PARTITIONS_MAX: u32 = 1024;
/// The most partitions of all tables, those that are being dropped included.
pub const PARTITIONS_TOTAL_MAX: usize = 65_536;
/// The most replicas of a partition.
pub const REPLICAS_MAX: u32 = 7;
/// The most tables, those that are being dropped included.
pub const TABLES_MAX: usize = 1000;
/// The most servers.
pub const SERVERS_MAX: usize = 1000;
/// The most servers that were removed and are kept in mind.
pub const REMOVED_MAX: usize = 100_000;
/// The largest number that a name of the form `db7` may stand for: `CONFIG GET databases`
/// is beyond the largest, and clients count up to it.
pub const DATABASE_MAX: u32 = 9999;
/// Raft ids of replicas begin here.
pub const FIRST_RAFT_ID: u64 = 2;

/// A table's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TablePhase {
    /// It serves, as soon as its partitions are open.
    Ready,
    /// Its partitions are being destroyed; then it is forgotten.
    Dropping,
    /// Its partitions are being formed.
    Creating,
}

/// A table and what only meta needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// As everybody knows it.
    pub table: Arc<Table>,
    /// Its phase.
    pub status: TablePhase,
    /// When it was created, ms since the epoch by the meta leader's stamp.
    pub created_at_ms: u64,
    /// While it is being dropped: the servers that have not yet said that nothing is left
    /// there.
    pub remaining: Vec<ServerId>,
}

/// A server and when it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredServer {
    /// As everybody knows it.
    pub server: Server,
    /// When it was seen first, ms since the epoch by the meta leader's stamp.
    pub since_ms: u64,
}

/// A command on the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaCommand {
    /// Gives the cluster its id, unless it has one.
    BootstrapCluster {
        /// A random number.
        cluster: u64,
    },
    /// A server is there, or has other addresses, another zone or other roles than
    /// before.
    Register(Server),
    /// A server is permanently gone.
    Remove {
        /// Which.
        server: ServerId,
        /// True if its heartbeats arrive now.
        live: bool,
    },
    /// A server takes a meta index, if it is free.
    ClaimMetaIndex {
        /// The first is 1.
        index: u32,
        /// The server.
        server: ServerId,
    },
    /// An operator states that the server of a meta index has lost its votes: another
    /// server may take the index.
    ReleaseMetaIndex {
        /// Which.
        index: u32,
        /// Servers that are heard of right now.
        live: Vec<ServerId>,
    },
    /// First step of a new table: its placements.
    Create {
        /// See [`check_name`].
        name: String,
        /// 1 to [`PARTITIONS_MAX`].
        partitions: u32,
        /// 1 to [`REPLICAS_MAX`].
        replicas: u32,
        /// Settings from the start.
        envs: BTreeMap<String, String>,
        /// Servers that may hold replicas: those that are alive.
        live: Vec<ServerId>,
        /// Those of them whose disks are slow, full or failed.
        unhealthy: Vec<ServerId>,
    },
    /// Last step of a new table: every partition has had a leader.
    MarkReady {
        /// Which.
        id: TableId,
    },
    /// First step of a drop: takes the table's name and lets its partitions be destroyed.
    Drop {
        /// Which.
        name: String,
    },
    /// A step of a drop: nothing of the table is left on a server. The last one forgets
    /// the table.
    MarkDestroyed {
        /// Which.
        id: TableId,
        /// The server.
        server: ServerId,
    },
    /// Sets an env.
    SetEnv {
        /// The table's name.
        name: String,
        /// One of [`envs::ENVS`].
        key: String,
        /// Checked by the env.
        value: String,
    },
    /// Back to the env's default.
    DeleteEnv {
        /// The table's name.
        name: String,
        /// One of [`envs::ENVS`].
        key: String,
    },
}

/// A deterministic "no".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// See [`check_name`].
    #[error(
        "a table's name is 1 to {NAME_BYTES_MAX} letters, digits, '_', '-', '.' or ':', and not a \
         number"
    )]
    BadName,
    /// 0, or too many.
    #[error("a table has 1 to {PARTITIONS_MAX} partitions")]
    BadPartitions,
    /// 0, or too many.
    #[error("a partition has 1 to {REPLICAS_MAX} replicas")]
    BadReplicas,
    /// Fewer servers are alive than a partition is to have replicas.
    #[error(transparent)]
    NotEnoughServers(#[from] NotEnoughServers),
    /// Another table has the name.
    #[error("table '{0}' exists")]
    Exists(String),
    /// A name of the form `db7`, for a number that a table has or had, or above
    /// [`DATABASE_MAX`].
    #[error(
        "the name '{0}' stands for a number: one that no table has or had, and at most \
         {DATABASE_MAX}; give it another name, and it gets a number of its own"
    )]
    Reserved(String),
    /// Nobody has the name.
    #[error("no such table '{0}'")]
    NoTable(String),
    /// No table that is being created has this id.
    #[error("table {} is not being created", .0.0)]
    NotCreating(TableId),
    /// No table that is being dropped has this id, or nothing of it is on this server.
    #[error("table {} is not being dropped there", .0.0)]
    NotDropping(TableId),
    /// [`TABLES_MAX`] is reached.
    #[error("there are {TABLES_MAX} tables, and no more are possible")]
    TooMany,
    /// [`PARTITIONS_TOTAL_MAX`] would be passed.
    #[error("all tables together have at most {PARTITIONS_TOTAL_MAX} partitions")]
    TooManyPartitions,
    /// The table has fewer.
    #[error("the table has no partition {0}")]
    NoPartition(u32),
    /// It holds no replica of the partition.
    #[error("server {0} holds no replica of this partition")]
    NotAMember(ServerId),
    /// Ids have run out: four billion tables were created.
    #[error("no table id is left")]
    NoIds,
    /// An unknown env, or a value that it does not take.
    #[error(transparent)]
    Env(#[from] envs::EnvError),
    /// [`SERVERS_MAX`] or [`REMOVED_MAX`] is reached.
    #[error(
        "there are {SERVERS_MAX} servers or {REMOVED_MAX} were removed, and no more are possible"
    )]
    TooManyServers,
    /// An address or a zone that nobody can have.
    #[error("the server can't be registered: {0}")]
    BadServer(#[from] ServerSizeError),
    /// It was removed by an operator, and what it holds is of the past.
    #[error(
        "server {0} was removed from this cluster; to let this machine join again, start it with \
         an empty data directory"
    )]
    Removed(ServerId),
    /// Nobody has the id.
    #[error("no such server {0}")]
    NoServer(ServerId),
    /// The votes of this index were cast by another server's directory.
    #[error(
        "meta {index} belongs to server {server}: a meta must not lose its votes. Start it with \
         that server's directory; if the directory is permanently lost, run \
         bridle admin release {index}"
    )]
    MetaIndexTaken {
        /// Which.
        index: u32,
        /// Its server.
        server: ServerId,
    },
    /// Nobody has it.
    #[error("no server has meta index {0}")]
    NoMetaIndex(u32),
    /// Only a server that is gone can be removed.
    #[error("server {0} is alive: stop it first")]
    Alive(ServerId),
    /// Without it, partitions would have fewer replicas than they are to have.
    #[error(
        "server {server} holds {replicas} replicas of tables that serve ({tables}); these tables \
         must be dropped first"
    )]
    HoldsReplicas {
        /// Which.
        server: ServerId,
        /// Their number.
        replicas: usize,
        /// Names of some of the tables.
        tables: String,
    },
}

/// A change of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaChange {
    /// The cluster has this id.
    SetCluster(u64),
    /// A server is so now.
    PutServer(RegisteredServer),
    /// A server is permanently gone, since this time (ms).
    RemoveServer(ServerId, u64),
    /// A table is so now.
    PutTable(TableRecord),
    /// A partition's replicas are there now.
    PutPlacement(Arc<Placement>),
    /// A table and its placements are forgotten.
    ForgetTable(TableId),
    /// The next id to give.
    NextId(u32),
    /// The next Raft id to give.
    NextRaftId(u64),
    /// The next number to give.
    NextNumber(u32),
    /// The server of a meta index; `None`: it is free.
    MetaIndex(u32, Option<ServerId>),
}

/// The outcome of a command that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// In order; none when everything is so already.
    pub changes: Vec<MetaChange>,
    /// The table afterwards (of a drop: as it was), when the command was about one.
    pub table: Option<Arc<Table>>,
}

/// The state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaState {
    /// The cluster's id, once it has one.
    pub cluster: Option<u64>,
    /// The next table id to give; ids begin at 1.
    pub next_id: u32,
    /// The next Raft id to give.
    pub next_raft_id: u64,
    /// The next number to give to a table with a name of its own.
    pub next_number: u32,
    /// The latest stamp by which something was decided; stamps never run backwards.
    pub stamp_ms: u64,
    /// By id.
    pub servers: BTreeMap<ServerId, RegisteredServer>,
    /// Servers that were removed, and when, ms since the epoch.
    pub removed: BTreeMap<ServerId, u64>,
    /// Servers of the meta indices: the votes of an index belong to one data directory.
    pub meta_members: BTreeMap<u32, ServerId>,
    /// By id.
    pub tables: BTreeMap<TableId, TableRecord>,
    /// Of every partition of every table.
    pub placements: BTreeMap<PartitionId, Arc<Placement>>,
}

impl Default for MetaState {
    fn default() -> Self {
        MetaState {
            cluster: None,
            next_id: 1,
            next_raft_id: FIRST_RAFT_ID,
            next_number: DATABASES,
            stamp_ms: 0,
            servers: BTreeMap::new(),
            removed: BTreeMap::new(),
            meta_members: BTreeMap::new(),
            tables: BTreeMap::new(),
            placements: BTreeMap::new(),
        }
    }
}

/// Checks a table's name: `SELECT` must be able to tell it from a database's number.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    let number = name.chars().all(|c| c.is_ascii_digit());
    if name.is_empty() || name.len() > NAME_BYTES_MAX || number || !name.chars().all(fine) {
        return Err(Refusal::BadName);
    }
    Ok(())
}

impl MetaState {
    /// The table that serves, or is to serve, under a name.
    pub fn named(&self, name: &str) -> Option<&TableRecord> {
        self.tables
            .values()
            .find(|record| record.status != TablePhase::Dropping && record.table.name == name)
    }

    /// The placements of a table, by partition.
    pub fn placements_of(&self, table: TableId) -> impl Iterator<Item = &Arc<Placement>> {
        let (first, last) =
            (PartitionId { table, index: 0 }, PartitionId { table, index: u32::MAX });
        self.placements.range(first..=last).map(|(_, placement)| placement)
    }

    /// Makes changes that were decided.
    pub fn apply(&mut self, changes: &[MetaChange], stamp_ms: u64) {
        self.stamp_ms = self.stamp_ms.max(stamp_ms);
        for change in changes {
            match change {
                MetaChange::SetCluster(cluster) => self.cluster = Some(*cluster),
                MetaChange::PutServer(registered) => {
                    drop(self.servers.insert(registered.server.id, registered.clone()))
                }
                MetaChange::RemoveServer(server, since_ms) => {
                    self.servers.remove(server);
                    self.removed.insert(*server, *since_ms);
                }
                MetaChange::PutTable(record) => {
                    drop(self.tables.insert(record.table.id, record.clone()))
                }
                MetaChange::PutPlacement(placement) => {
                    drop(self.placements.insert(placement.partition, placement.clone()))
                }
                MetaChange::ForgetTable(id) => {
                    self.tables.remove(id);
                    self.placements.retain(|partition, _| partition.table != *id);
                }
                MetaChange::NextId(next_id) => self.next_id = *next_id,
                MetaChange::NextRaftId(next_raft_id) => self.next_raft_id = *next_raft_id,
                MetaChange::NextNumber(next_number) => self.next_number = *next_number,
                MetaChange::MetaIndex(index, Some(server)) => {
                    self.meta_members.insert(*index, *server);
                }
                MetaChange::MetaIndex(index, None) => drop(self.meta_members.remove(index)),
            }
        }
    }
}
