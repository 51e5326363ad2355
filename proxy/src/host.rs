//! What the proxy asks of the process around it: figures for INFO and METRICS, and the
//! few things that are not ops on rows.
//!
//! Implemented by the binary, which knows storage and meta; the proxy does not.

use std::borrow::Cow;

pub use cluster::meta_protocol::Durability;
use cluster::{Boxed, CallError, PartitionId};

use crate::config::{FileChange, RewriteError};
use crate::tls::TlsFiles;

/// One figure: a number that goes up and down, or a word.
#[derive(Debug, Clone, PartialEq)]
pub enum InfoValue {
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A word.
    Text(Cow<'static, str>),
}

/// Figures under one heading, in the order in which INFO shows them.
#[derive(Debug, Clone, PartialEq)]
pub struct InfoSection {
    /// INFO's heading, lower case: `persistence`, `replication`, `raft`, `rocksdb`, ...
    pub name: &'static str,
    /// Name and figure.
    pub fields: Vec<(Cow<'static, str>, InfoValue)>,
}

/// Rows and expiries of one table, as DBSIZE and INFO keyspace tell them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableStats {
    /// `db0` or any other table's name.
    pub name: String,
    /// What `SELECT` knows it by.
    pub number: u32,
    /// Rows, as counted by the partitions.
    pub rows: u64,
    /// Rows with an expiry.
    pub expires: u64,
    /// Bytes on disk, estimated.
    pub disk_bytes: u64,
}

/// ProcessMemory of the whole process, bytes; what is not known is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Asked of the allocator and not given back.
    pub allocated: u64,
    /// Pages the allocator has in use.
    pub active: u64,
    /// Pages the allocator has in physical memory.
    pub resident: u64,
    /// The allocator's name and version.
    pub allocator: &'static str,
    /// What takes it, as far as it is told apart: `block_cache`, `memtables`, `log_tail`,
    /// ...; each is part of `allocated`.
    pub parts: Vec<(&'static str, u64)>,
    /// What the process is to take for rows and clients (`node.memory`).
    pub budget: u64,
    /// The most that each part of it may take: `block_cache`, `row_cache`, `memtables`,
    /// `clients` (there, 0 is no bound).
    pub shares: Vec<(&'static str, u64)>,
}

/// The node below the proxy.
pub trait Host: Send + Sync + 'static {
    /// Figures of storage, Raft and meta, for INFO and MEMORY STATS.
    fn sections(&self) -> Vec<InfoSection>;

    /// Figures of the tables whose partitions are in this process.
    fn tables(&self) -> Vec<TableStats>;

    /// What acknowledged writes have survived, whoever leads what they wrote: the least
    /// that a server with replicas says.
    fn durability(&self) -> Durability;

    /// Copies of the partition, beyond the leader's, that have acknowledged everything
    /// that was acknowledged to clients (WAIT).
    fn replicas(&self, partition: PartitionId) -> u32;

    /// How many replicas of a partition, beyond the leader's, have on their disk what its
    /// log has up to an entry (WAITAOF). Asks them until so many do, or nobody waits for
    /// it any more.
    fn synced_copies<'a>(
        &'a self,
        partition: PartitionId,
        index: u64,
        wanted: u32,
        end: Boxed<'a, ()>,
    ) -> Boxed<'a, u32>;

    /// Whether the expiry cycle runs (DEBUG SET-ACTIVE-EXPIRE); expired rows are
    /// invisible either way.
    fn set_active_expire(&self, on: bool);

    /// Writes everything that was acknowledged by this process to its disk, whatever the
    /// durability (SHUTDOWN).
    fn sync(&self) -> Boxed<'_, Result<(), CallError>>;

    /// Where the process's memory is. Without it, INFO tells what the operating system
    /// tells.
    fn memory(&self) -> ProcessMemory {
        ProcessMemory::default()
    }

    /// Reads the certificates that these files hold, those for clients or the cluster's
    /// or both, and uses them from now on; or changes nothing.
    ///
    /// # Errors
    /// Why they can't be used, in words.
    fn use_certificates(
        &self,
        _for_clients: Option<&TlsFiles>,
        _of_cluster: Option<&TlsFiles>,
    ) -> Result<(), String> {
        Err("TLS is not served (tls.port)".to_owned())
    }

    /// CONFIG REWRITE: writes these settings into the configuration file, leaving
    /// everything else in it as it is.
    fn rewrite_config(&self, _changes: &[FileChange]) -> Result<(), RewriteError> {
        Err(RewriteError::NoFile)
    }
}
