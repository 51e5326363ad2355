//! The JSON bodies of the admin API. Ids of servers are 16 hex digits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A table to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// Number of partitions; the configured one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Number of replicas of each; the configured one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Envs from the start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
}

/// An env's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvValue {
    /// As text, whatever it means.
    pub value: String,
}

/// A partition's new leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLeader {
    /// The server, by id.
    pub to: String,
}

/// A table: its settings, phase and usage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Never reused.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The number for `SELECT`, beside the name; never reused by a table with another
    /// name.
    pub number: u32,
    /// Number of partitions.
    pub partitions: u32,
    /// Number of replicas of each partition.
    #[serde(default)]
    pub replicas: u32,
    /// `ready`, `creating`, `opening` or `dropping`.
    pub status: String,
    /// When it was created, ms since the epoch.
    pub created_at_ms: u64,
    /// Its envs.
    pub envs: BTreeMap<String, String>,
    /// Its usage.
    #[serde(flatten)]
    pub figures: TableUsage,
}

/// Rows and bytes of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUsage {
    /// Rows, expired ones that the expiry cycle has not reached yet included; each
    /// counted once.
    pub rows: u64,
    /// Rows with an expiry.
    pub expiring: u64,
    /// Bytes on disk, of all replicas.
    pub disk_bytes: u64,
    /// Bytes in memory, not yet flushed, of all replicas.
    pub memtable_bytes: u64,
    /// Faults of partitions, by index; empty if there is none.
    #[serde(deserialize_with = "by_index")]
    pub faults: BTreeMap<u32, String>,
}

/// JSON's keys are texts, and inside a flattened struct serde leaves it to us to make
/// numbers of them.
fn by_index<'de, D: serde::Deserializer<'de>>(
    faults: D,
) -> Result<BTreeMap<u32, String>, D::Error> {
    let faults = BTreeMap::<String, String>::deserialize(faults)?;
    faults
        .into_iter()
        .map(|(index, why)| Ok((index.parse().map_err(serde::de::Error::custom)?, why)))
        .collect()
}

/// A manual compaction of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactionStatus {
    /// `none` (never asked for since the start), `running`, `done` or `failed`.
    pub status: String,
    /// Partitions that are done; in a cluster, replicas of them.
    pub partitions_done: u32,
    /// Partitions in all; in a cluster, replicas of them.
    pub partitions: u32,
    /// When it was started, ms since the epoch; 0 when never.
    pub started_at_ms: u64,
    /// Duration, so far if it still runs.
    pub elapsed_ms: u64,
    /// Bytes on disk when it started.
    pub disk_bytes_before: u64,
    /// Bytes on disk now.
    pub disk_bytes: u64,
    /// The error, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A process: identity, health and usage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Bridle's version.
    pub version: String,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id, 16 hex digits.
    pub cluster_id: String,
    /// This node's id in it.
    pub node_id: u64,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// True while clients are served.
    pub ready: bool,
    /// `always`, `interval` or `os`.
    pub durability: String,
    /// Addresses for Redis clients.
    pub addresses: Vec<String>,
    /// Connected clients.
    pub clients: u64,
    /// Tables that serve.
    pub tables: u32,
    /// Partitions of these.
    pub partitions: u32,
    /// Bytes of rows on disk.
    pub disk_bytes: u64,
    /// Bytes of the Raft log.
    pub log_bytes: u64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// Faults, in sentences; empty if there is none.
    pub faults: Vec<String>,
}

/// The cluster as its leading meta sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its id, 16 hex digits.
    pub cluster_id: String,
    /// The metas, in the configured order.
    pub metas: Vec<MetaStatus>,
    /// The meta group's term.
    pub term: u64,
    /// Servers that are there.
    pub servers_up: u32,
    /// Servers that are known.
    pub servers: u32,
    /// Tables, those that are being created or dropped included.
    pub tables: u32,
    /// Partitions that are to serve.
    pub partitions: u32,
    /// Of these, those that have a leader.
    pub partitions_led: u32,
    /// Of these, those whose replicas all run and are about up to date.
    pub partitions_whole: u32,
    /// Faults, in sentences; empty if there is none.
    pub faults: Vec<String>,
}

/// A member of the meta group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaStatus {
    /// Its address, as configured.
    pub address: String,
    /// True if it leads.
    pub leads: bool,
}

/// A server as the leading meta sees it. Its own figures are absent while it has not told
/// them: in its first second, or since this meta leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// 16 hex digits.
    pub id: String,
    /// Its address for other processes.
    pub address: String,
    /// Address of its HTTP pages.
    pub http: String,
    /// Its addresses for Redis clients.
    pub clients: Vec<String>,
    /// Its zone.
    pub zone: String,
    /// `meta`, `storage`, `proxy`.
    pub roles: Vec<String>,
    /// `up` or `down`.
    pub state: String,
    /// Milliseconds since it was last heard; absent when it was not since this meta
    /// leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// When it was first seen, ms since the epoch.
    pub since_ms: u64,
    /// Its version of Bridle.
    pub version: String,
    /// Seconds since its process started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<u64>,
    /// Replicas that it holds or is to hold.
    pub replicas: u32,
    /// Partitions that it leads.
    pub leads: u32,
    /// Connected Redis clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Bytes of rows on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Bytes of the Raft log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Bytes of its disk that are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
    /// Bytes of its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_total_bytes: Option<u64>,
    /// Resident memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Durability of the writes that it acknowledges: `always`, `interval` or `os`;
    /// absent if it holds no replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// Faults, in sentences; empty if there is none.
    pub faults: Vec<String>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// 0-based, in slot order.
    pub index: u32,
    /// The first slot and the last.
    pub slots: [u16; 2],
    /// The server that leads it; absent while nobody is known to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The term of the latest leader known.
    pub term: u64,
    /// Grows when members change.
    pub epoch: u64,
    /// Its replicas; the first is the one that is to lead.
    pub members: Vec<MemberStatus>,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its server, by id.
    pub server: String,
    /// That server's address.
    pub address: String,
    /// Never reused.
    pub raft_id: u64,
    /// True if it leads.
    pub leads: bool,
    /// `running`, `opening`, `installing`, `faulty`, `down` or `unknown`.
    pub state: String,
    /// Entries of the leader's log that it lacks; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Index of the last entry that it has applied.
    pub applied: u64,
    /// Its rows.
    pub rows: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Why it has stopped, when it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}
