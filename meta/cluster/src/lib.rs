//! Cluster topology, and the RPC client and traits by which servers reach each other.
//!
//! Ids, tables, partitions and slots; the two traits through which a proxy reaches rows
//! ([`CallPartition`]) and the table catalogue ([`Catalogue`]). In one process a call is
//! a function call; between processes it is a framed message.
//!
//! # Invariants
//! - A table id is never reused (`meta/src/state.rs`, `ids_are_never_reused`). A
//!   partition is a contiguous range of slots of one table
//!   (`partitions_divide_the_slots`).
//! - Whether a table is missing is never judged by memory alone where the catalogue is
//!   kept elsewhere (`catalogue.rs`, `a_missing_table_is_asked_for_each_time`).
//! - A call says exactly one of: the answer, not proposed ([`CallError::NoLeader`] and
//!   the like, safe to try again), or [`CallError::Unknown`] (proposed, outcome unknown:
//!   never tried again).

pub mod blocking;
pub mod catalogue;
mod fault;
pub mod meta_client;
pub mod meta_protocol;
pub mod net;
pub mod routes;
pub mod row_client;
mod single_flight;
mod topology;
#[cfg(test)]
mod vectors;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use fault::{Fault, FaultKind};
use serde::{Deserialize, Serialize};
pub use topology::{Leader, META_IDS_END, Member, Placement, ServerId};

/// Number of slots, Redis Cluster's.
pub const SLOTS: u16 = 16384;

/// The most bytes of a table's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Number of databases that every client knows, `db0`, `db1` and so on: these
/// come with their first write. Tables with other names have numbers from here on.
pub const DATABASES: u32 = 16;

/// The number that a table's name stands for, if it is of the form `db7`.
pub fn database(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("db")?;
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if is_plain { digits.parse().ok() } else { None }
}

/// A table's id, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId(pub u32);

/// One partition of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartitionId {
    /// The table.
    pub table: TableId,
    /// 0-based, in slot order.
    pub index: u32,
}

/// A table as the catalogue knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Never reused.
    pub id: TableId,
    /// `db0`, ... or any other word.
    pub name: String,
    /// The number for `SELECT`: of `db7` 7; of any other name a number from
    /// [`DATABASES`] on that no table had before.
    pub number: u32,
    /// Number of partitions; slots are divided evenly.
    pub partitions: u32,
    /// Number of replicas of each.
    pub replicas: u32,
    /// Settings that change online.
    pub envs: BTreeMap<String, String>,
    /// When `default_ttl` was last set or removed, ms since the epoch by the meta
    /// leader's stamp (0 = never): decided once, and later each time.
    pub default_ttl_since_ms: u64,
}

impl Table {
    /// The partition that holds a slot.
    pub fn partition_of(&self, slot: u16) -> PartitionId {
        PartitionId {
            table: self.id,
            index: (u32::from(slot) * self.partitions) / u32::from(SLOTS),
        }
    }

    /// The first slot of a partition; `index == partitions` gives `SLOTS`.
    pub fn first_slot(&self, index: u32) -> u16 {
        (u64::from(index) * u64::from(SLOTS)).div_ceil(u64::from(self.partitions)) as u16
    }
}

/// Why a call has no answer. The first three and the last two were not proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CallError {
    /// Nobody leads the partition now, or not here.
    #[error("no leader: {0}")]
    NoLeader(String),
    /// The partition's queue is full.
    #[error("too many requests wait for this partition")]
    Overloaded,
    /// The node can't write now (disk full); reads go on.
    #[error("{0}")]
    ReadOnly(String),
    /// No such table or partition (dropped, or not yet here).
    #[error("no such table")]
    NoTable,
    /// Proposed, then lost sight of: it may or may not have happened.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// I/O failure or corruption; the replica has been stopped.
    #[error("storage fault: {0}")]
    Fault(Fault),
    /// It does not fit a message between servers: it was not sent, and never will be.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The requests that wait on the node, for all its partitions, use all the memory
    /// that they may. Not proposed.
    #[error("requests on the server take all the memory that they may")]
    OutOfMemory,
}

/// A boxed future, because the traits are used as objects.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Access to partitions: `Q` is a request for one partition, `A` its response.
pub trait CallPartition<Q, A>: Send + Sync + 'static {
    /// Answers a read-only request on the calling thread when the leader is in this
    /// process and its lease is fresh; `None`: use `call`.
    fn read_now(&self, partition: PartitionId, request: &Q) -> Option<Result<A, CallError>>;

    /// Carries a request to the partition's leader.
    fn call(&self, partition: PartitionId, request: Q) -> Boxed<'_, Result<A, CallError>>;
}

/// Access to the table catalogue.
pub trait Catalogue: Send + Sync + 'static {
    /// A table by name, from memory. What is missing there may just have been made
    /// through another process: [`Catalogue::find`] tells.
    fn table(&self, name: &str) -> Option<Arc<Table>>;
    /// All tables, by name, from memory.
    fn tables(&self) -> Vec<Arc<Table>>;
    /// A table by its number, from memory.
    fn numbered(&self, number: u32) -> Option<Arc<Table>> {
        self.tables().into_iter().find(|table| table.number == number)
    }
    /// A table by name, known here yet or not; never creates it. `None`: at some moment
    /// since the call there was none.
    ///
    /// # Errors
    /// [`CallError::NoLeader`]: whoever keeps the catalogue can't be asked now. The
    /// future may be dropped at any time.
    fn find(&self, name: &str) -> Boxed<'_, Result<Option<Arc<Table>>, CallError>>;
    /// All tables that there were at some moment since the call, known here yet or not.
    ///
    /// # Errors
    /// As [`Catalogue::find`].
    fn find_all(&self) -> Boxed<'_, Result<Vec<Arc<Table>>, CallError>>;
    /// The table, created with the configured number of partitions when it is missing,
    /// once it can be written. The future may be dropped at any time; the table may be
    /// created all the same.
    fn ensure(&self, name: &str) -> Boxed<'_, Result<Arc<Table>, CallError>>;
    /// Number of partitions of a table that [`Catalogue::ensure`] creates.
    ///
    /// # Errors
    /// As [`Catalogue::find`].
    fn partitions_of_new(&self) -> Boxed<'_, Result<u32, CallError>>;
    /// Grows with every change of the catalogue, so that a session may keep an
    /// `Arc<Table>` while it stands still.
    fn version(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_number() {
        for (name, number) in
            [("db0", Some(0)), ("db17", Some(17)), ("db4294967295", Some(u32::MAX))]
        {
            assert_eq!(database(name), number, "{name}");
        }
        for name in
            ["db", "db07", "db00", "db+1", "db-1", "db1x", "DB1", "1", "db4294967296", "books"]
        {
            assert_eq!(database(name), None, "{name}");
        }
    }

    /// Every slot is in one partition; partitions are contiguous, in order, and none is
    /// empty.
    #[test]
    fn partitions_divide_the_slots() {
        for partitions in [1, 2, 3, 7, 16, 100, 1000, u32::from(SLOTS)] {
            let table = Table {
                id: TableId(1),
                name: "t".to_owned(),
                number: 16,
                partitions,
                replicas: 1,
                envs: BTreeMap::new(),
                default_ttl_since_ms: 0,
            };
            for index in 0..partitions {
                let (first, end) = (table.first_slot(index), table.first_slot(index + 1));
                assert!(first < end, "partition {index} of {partitions}");
                for slot in [first, end - 1] {
                    assert_eq!(
                        table.partition_of(slot),
                        PartitionId { table: table.id, index },
                        "slot {slot} of {partitions} partitions"
                    );
                }
            }
            assert_eq!((table.first_slot(0), table.first_slot(partitions)), (0, SLOTS));
        }
    }
}
