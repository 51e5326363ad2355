//! The process around the proxy: fields for INFO and METRICS, and operations that are not
//! ops on rows.
//!
//! Implemented by the binary, which knows storage and meta; the proxy does not.

use std::borrow::Cow;

pub use cluster::meta_protocol::Durability;
use cluster::net::NetSetupError;
use cluster::{Boxed, CallError, PartitionId};

use crate::config::{FileChange, RewriteError};
use crate::tls::{TlsError, TlsFiles};

/// Reason why certificates were not loaded; the previous ones stay in use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The process serves nobody by TLS.
    #[error("TLS is not served (tls.port)")]
    NotServed,
    /// Files for clients, and the process serves no client by TLS.
    #[error("clients are not served by TLS (tls.port)")]
    NoClientTls,
    /// Files for the cluster, whose processes speak without TLS.
    #[error("the cluster does not use TLS (cluster.cert_file)")]
    NoClusterTls,
    /// The files for clients can't be read, or do not fit each other.
    #[error("for clients: {0}")]
    Clients(#[from] TlsError),
    /// The files for the cluster can't be read, or do not fit each other.
    #[error("for the cluster: {0}")]
    Cluster(#[from] NetSetupError),
}

/// The value of an INFO field.
#[derive(Debug, Clone, PartialEq)]
pub enum InfoValue {
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(Cow<'static, str>),
}

/// INFO fields under one heading, in INFO's order.
#[derive(Debug, Clone, PartialEq)]
pub struct InfoSection {
    /// INFO's heading, lower case: `persistence`, `replication`, `raft`, `rocksdb`, ...
    pub name: &'static str,
    /// Name and value.
    pub fields: Vec<(Cow<'static, str>, InfoValue)>,
}

/// Row counts of one table, as in DBSIZE and INFO keyspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableStats {
    /// `db0` or any other table's name.
    pub name: String,
    /// Its number for `SELECT`.
    pub number: u32,
    /// Rows, as counted by the partitions.
    pub rows: u64,
    /// Rows with an expiry.
    pub expires: u64,
    /// Bytes on disk, estimated.
    pub disk_bytes: u64,
}

/// Memory of the whole process, bytes; unknown values are 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Allocated and not freed.
    pub allocated: u64,
    /// Pages used by the allocator.
    pub active: u64,
    /// Pages of the allocator in physical memory.
    pub resident: u64,
    /// The allocator's name and version.
    pub allocator: &'static str,
    /// Known parts: `block_cache`, `memtables`, `log_tail`, ...; each is included in
    /// `allocated`.
    pub parts: Vec<(&'static str, u64)>,
    /// Budget of the process for rows and clients (`node.memory`).
    pub budget: u64,
    /// Limit of each part: `block_cache`, `row_cache`, `memtables`, `clients` (for which
    /// 0 means no limit).
    pub shares: Vec<(&'static str, u64)>,
}

/// The process around the proxy.
pub trait Host: Send + Sync + 'static {
    /// Fields of storage, Raft and meta, for INFO and MEMORY STATS.
    fn sections(&self) -> Vec<InfoSection>;

    /// Statistics of the tables with partitions in this process.
    fn tables(&self) -> Vec<TableStats>;

    /// The durability of acknowledged writes: the weakest among the servers with
    /// replicas.
    fn durability(&self) -> Durability;

    /// Number of copies of the partition, besides the leader's, that hold every
    /// acknowledged write (WAIT).
    fn replicas(&self, partition: PartitionId) -> u32;

    /// The number of replicas, besides the leader's, with the partition's log up to an
    /// entry on disk (WAITAOF). Asks the replicas until enough have it, or `end`
    /// completes.
    fn synced_copies<'a>(
        &'a self,
        partition: PartitionId,
        index: u64,
        wanted: u32,
        end: Boxed<'a, ()>,
    ) -> Boxed<'a, u32>;

    /// Turns the expiry cycle on or off (DEBUG SET-ACTIVE-EXPIRE); expired rows are
    /// invisible either way.
    fn set_active_expire(&self, on: bool);

    /// Writes everything acknowledged by this process to its disk, whatever the
    /// durability (SHUTDOWN).
    fn sync(&self) -> Boxed<'_, Result<(), CallError>>;

    /// Memory of the process. By default, INFO reports the operating system's numbers.
    fn memory(&self) -> ProcessMemory {
        ProcessMemory::default()
    }

    /// Loads the certificates in these files, for clients, for the cluster, or both; all
    /// of them or none.
    ///
    /// # Errors
    /// As [`CertificateError`].
    fn use_certificates(
        &self,
        _for_clients: Option<&TlsFiles>,
        _of_cluster: Option<&TlsFiles>,
    ) -> Result<(), CertificateError> {
        Err(CertificateError::NotServed)
    }

    /// CONFIG REWRITE: writes these settings into the configuration file and leaves the
    /// rest of it unchanged.
    fn rewrite_config(&self, _changes: &[FileChange]) -> Result<(), RewriteError> {
        Err(RewriteError::NoFile)
    }
}
