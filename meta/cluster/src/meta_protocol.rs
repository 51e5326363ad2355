//! The protocol between meta and servers (proxies among them).
//!
//! # One channel per process
//! Every process that is not only a meta holds one channel
//! ([`Service::Meta`](crate::net::Service)) to the leading meta. It opens the channel
//! with a [`RegisterRequest`]. Meta answers with [`MetaMessage::RegisterAccepted`], or
//! ends the channel with [`MetaMessage::NotLeading`] or [`MetaMessage::Refused`]. Then
//! the process sends [`ServerMessage`]s, at least one a second as a heartbeat, and meta
//! sends [`MetaMessage`]s.
//!
//! # Deltas
//! Four maps are replicated: the address book, the table catalogue, the assignments of
//! this server and the routes. Each arrives as [`Delta`]s: first a snapshot, then
//! changes. A snapshot replaces everything before it. A delta with `has_more` is applied
//! only after its successors have arrived, so messages are bounded and no reader acts on
//! half a map.
//!
//! # Requests
//! Everything that has an answer goes by `call` instead: a [`MetaRequest`], answered with
//! a [`MetaResponse`].
//!
//! # Layout
//! A version byte (1), then postcard. Within version 1, variants and fields are never
//! reordered; what changes is a new version. Version 1 is frozen: `tests` holds its
//! bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Fault, Leader, PartitionId, Placement, ServerId, Table, TableId};

/// The version of everything here.
pub const VERSION: u8 = 1;
/// The most bytes of an address.
pub const ADDRESS_BYTES_MAX: usize = 270;
/// The most bytes of a zone's name.
pub const ZONE_BYTES_MAX: usize = 64;
/// Items of one [`Delta`] are held below about so many bytes.
pub const DELTA_BYTES: usize = 256 << 10;

/// Reason why the bytes are no message between meta and a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaDecodeError {
    /// No message is empty.
    #[error("a message between meta and a server can't be read: it is empty")]
    Empty,
    /// Another build's, whose messages differ.
    #[error(
        "a message between meta and a server can't be read: it has version {0}, and this process \
         knows {known}",
        known = VERSION
    )]
    Version(u8),
    /// Damaged, or of another shape.
    #[error("a message between meta and a server can't be read: {0}")]
    Malformed(postcard::Error),
    /// Longer than the message.
    #[error("a message between meta and a server can't be read: {0} bytes are left over")]
    LeftOver(usize),
}

/// A message as bytes.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    let body = postcard::to_extend(message, vec![VERSION]);
    Bytes::from(body.expect("messages are plain data, serialised to memory"))
}

/// A message from bytes.
///
/// # Errors
/// As [`MetaDecodeError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MetaDecodeError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            Ok((_, rest)) => Err(MetaDecodeError::LeftOver(rest.len())),
            Err(error) => Err(MetaDecodeError::Malformed(error)),
        },
        Some((version, _)) => Err(MetaDecodeError::Version(*version)),
        None => Err(MetaDecodeError::Empty),
    }
}

/// Roles of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Roles {
    /// It is a member of the meta group.
    pub meta: bool,
    /// It holds replicas.
    pub storage: bool,
    /// It serves Redis clients.
    pub proxy: bool,
}

/// A process as everybody knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// By its data directory.
    pub id: ServerId,
    /// Its address for other processes: `host:port`.
    pub address: String,
    /// Address of its HTTP pages: `host:port`.
    pub http: String,
    /// Its addresses for Redis clients; none without a proxy.
    pub clients: Vec<String>,
    /// Replicas of a partition are spread over zones first.
    pub zone: String,
    /// Its roles.
    pub roles: Roles,
    /// Durability of writes that its replicas acknowledge; `None`: it holds none.
    pub durability: Option<Durability>,
}

/// Failures that an acknowledged write survives, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Durability {
    /// A crash of the process; the operating system writes it to disk when it likes.
    Os,
    /// As `Os`, and it is written to disk every so often.
    Interval,
    /// A loss of power: it is on disk before it is acknowledged.
    Always,
}

impl Durability {
    /// As the configuration says it.
    pub fn word(self) -> &'static str {
        match self {
            Durability::Os => "os",
            Durability::Interval => "interval",
            Durability::Always => "always",
        }
    }
}

/// The part of a [`Server`] that is too large, or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerSizeError {
    /// Its address, or that of its HTTP.
    #[error("an address has 1 to {} bytes", ADDRESS_BYTES_MAX)]
    Address,
    /// The addresses for clients: their number, or one of them.
    #[error("there are at most 64 addresses for clients")]
    Clients,
    /// Its zone.
    #[error("a zone's name has at most {} bytes", ZONE_BYTES_MAX)]
    Zone,
}

impl Server {
    /// Checks the size of each part.
    pub fn check(&self) -> Result<(), ServerSizeError> {
        let address = |address: &str| !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX;
        if !address(&self.address) || self.http.len() > ADDRESS_BYTES_MAX {
            return Err(ServerSizeError::Address);
        }
        if self.clients.len() > 64 || !self.clients.iter().all(|clients| address(clients)) {
            return Err(ServerSizeError::Clients);
        }
        if self.zone.len() > ZONE_BYTES_MAX {
            return Err(ServerSizeError::Zone);
        }
        Ok(())
    }
}

/// The first word of a process to meta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRequest {
    /// The server.
    pub server: Server,
    /// The cluster it belongs to; `None` before it was ever told.
    pub cluster: Option<u64>,
    /// Its version of Bridle, for people.
    pub software: String,
}

/// Messages from a process to meta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// State of its replicas. An empty one is the heartbeat.
    Report(Report),
}

/// State of a server and its replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `replicas`, `destroyed` and `compactions` list all there are; otherwise those that
    /// changed. The first report on a channel is whole.
    pub whole: bool,
    /// The version of the assignments that this server has made true: opened what it
    /// could, handed on envs.
    pub followed: u64,
    /// Its replicas.
    pub replicas: Vec<Replica>,
    /// Tables that were to be destroyed, and of which nothing is left here.
    pub destroyed: Vec<TableId>,
    /// Compactions that meta ordered.
    pub compactions: Vec<CompactionProgress>,
    /// The server's own figures, now and then.
    pub figures: Option<ServerStats>,
}

/// A server's own figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    /// Bytes of the data directory's disk in all.
    pub disk_total_bytes: u64,
    /// Bytes of it that are free.
    pub disk_free_bytes: u64,
    /// Bytes of rows on disk.
    pub rows_disk_bytes: u64,
    /// Bytes of the Raft log.
    pub log_bytes: u64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// Connected Redis clients.
    pub clients: u64,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Faults, in sentences.
    pub faults: Vec<String>,
    /// Why this server should lead nothing for the moment: a disk of its that is slow,
    /// full or failed, or was within the last minute.
    pub ailing: Option<String>,
}

/// Health of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplicaHealth {
    /// It is being opened.
    Opening,
    /// It takes part in its group.
    Running,
    /// It takes over its group's state from a peer.
    Installing,
    /// It has stopped; `Replica::fault` says why.
    Faulty,
}

/// One replica, as its server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Of which partition.
    pub partition: PartitionId,
    /// Which member of its group.
    pub raft_id: u64,
    /// Its health.
    pub health: ReplicaHealth,
    /// Why it has stopped, when it has.
    pub fault: Option<String>,
    /// Raft's term.
    pub term: u64,
    /// True if it leads in this term, with everything of earlier terms applied.
    pub leads: bool,
    /// Index of the last entry in its log.
    pub last_log: u64,
    /// Index of the last entry that it has applied.
    pub applied: u64,
    /// Of a leader: how far each other member's log is known to match, by Raft id.
    pub matched: Vec<(u64, u64)>,
    /// Rows.
    pub rows: u64,
    /// Rows with an expiry.
    pub expiring: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory, not yet flushed.
    pub memtable_bytes: u64,
}

/// Progress of a compaction on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactionProgress {
    /// Of [`Instruction::Compact`].
    pub run: u64,
    /// Of which table.
    pub table: TableId,
    /// Replicas that are done.
    pub done: u32,
    /// Replicas in all, of this server.
    pub replicas: u32,
    /// Bytes of these on disk when it began.
    pub disk_bytes_before: u64,
    /// Bytes now.
    pub disk_bytes: u64,
    /// It has ended, well or badly.
    pub ended: bool,
    /// The error, if there was one.
    pub error: Option<String>,
}

/// Messages from meta to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaMessage {
    /// The first word: the server is known now.
    RegisterAccepted(RegisterAccepted),
    /// The address book.
    Servers(Delta<ServerId, Server>),
    /// The catalogue: tables that serve.
    Tables(Delta<TableId, Table>),
    /// Tables of which this server holds replicas, or still has to destroy some.
    Assignments(Delta<TableId, Assignment>),
    /// Placements and leaders of partitions.
    Routes(Delta<PartitionId, Route>),
    /// To be done once, now, as far as it can be.
    Instruction(Instruction),
    /// Meta's heartbeat.
    Heartbeat,
    /// The channel ends: another meta leads, or none.
    NotLeading(NotLeading),
    /// The channel ends; a retry is useless until something changes.
    Refused(String),
}

/// Meta's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterAccepted {
    /// The cluster that both are of.
    pub cluster: u64,
    /// The meta group's term under which this channel is served.
    pub term: u64,
}

/// A change of a replicated map, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta<K: Ord, V> {
    /// The version after the last delta of this change.
    pub version: u64,
    /// Replaces everything known before.
    pub is_snapshot: bool,
    /// Another delta of the same version follows; apply all of them together.
    pub has_more: bool,
    /// New and changed entries.
    pub upserts: BTreeMap<K, V>,
    /// Removed entries.
    pub removed: Vec<K>,
}

/// A server's part of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which.
    pub table: Table,
    /// The partitions that have a replica on this server, with all their members. A new
    /// group is formed by all its members together.
    pub placements: Vec<Placement>,
    /// Nothing of the table is to be left; then it is listed in [`Report::destroyed`].
    pub destroy: bool,
}

/// Route of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its replicas.
    pub placement: Placement,
    /// The latest leader that meta has heard of.
    pub leader: Option<Leader>,
}

/// An instruction, carried out once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Instruction {
    /// The leader of a partition, if it is here and still of this term, is to hand over.
    Transfer {
        /// Which.
        partition: PartitionId,
        /// The term of the leadership that is to end.
        term: u64,
        /// The member that is to lead.
        to: u64,
    },
    /// All replicas of a table on this server are to be compacted; see
    /// [`Report::compactions`]. Again with the same `run` is harmless.
    Compact {
        /// Which compaction, over all servers.
        run: u64,
        /// Of which table.
        table: TableId,
    },
}

/// A request to meta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaRequest {
    /// The table of this name, created as configured when it is missing. Answered with
    /// [`MetaResponse::Table`] once it can be written.
    EnsureTable {
        /// `db0` and the like.
        name: String,
    },
    /// A request of the admin API that came to a meta that does not lead, already let in
    /// there. Answered with [`MetaResponse::Admin`].
    Admin {
        /// GET, POST, PUT or DELETE.
        method: String,
        /// Path and query.
        path: String,
        /// JSON, or nothing.
        body: Bytes,
    },
    /// Looks up a serving table by name; none is created. Answered with
    /// [`MetaResponse::Found`].
    FindTable {
        /// Any word.
        name: String,
    },
    /// All tables that serve. Answered with [`MetaResponse::Tables`].
    ListTables,
    /// Asks if a server whose meta has no votes may take a meta index. Answered with
    /// [`MetaResponse::MetaIndex`], also by metas that do not lead or are not open yet.
    MetaIndex {
        /// The first is 1.
        index: u32,
        /// The server that wants it.
        server: ServerId,
    },
    /// Asks for the shape of tables that [`MetaRequest::EnsureTable`] creates. Answered
    /// with [`MetaResponse::NewTable`].
    NewTable,
}

/// Status of a meta index, as far as a meta knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaIndexStatus {
    /// There is no cluster yet, as far as it knows.
    NoCluster,
    /// There is one, and only the leading meta knows the owner of the index.
    Unknown,
    /// It is free, or that server's.
    Free,
    /// It is this server's, which has voted in it.
    Taken(ServerId),
}

/// Meta's response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaResponse {
    /// The table as it is.
    Table(Table),
    /// An answer of the admin API.
    Admin {
        /// HTTP's.
        status: u16,
        /// JSON.
        body: Bytes,
    },
    /// Not by this meta; nothing was done.
    NotLeading(NotLeading),
    /// It makes no sense, and asking again makes none either; nothing was done.
    Refused(String),
    /// Not now; asking again is harmless.
    NotNow(String),
    /// It may have been done or not.
    Unknown(String),
    /// The table, if there was one at some moment since the question came.
    Found(Option<Table>),
    /// All tables that there were at some moment since the question came: 1000 at most,
    /// of some hundred bytes each.
    Tables(Vec<Table>),
    /// Status of a meta index.
    MetaIndex(MetaIndexStatus),
    /// Shape of tables that are created by their first write.
    NewTable {
        /// Number of partitions.
        partitions: u32,
    },
    /// The meta that leads has a fault; it may have been done or not.
    Fault(Fault),
}

/// "I do not lead."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotLeading {
    /// The leader's address, as far as this meta knows.
    pub leader: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Member;
    use crate::vectors::Vectors;

    fn example_server() -> Server {
        Server {
            id: ServerId(0x1234),
            address: "a:1".into(),
            http: "a:2".into(),
            clients: vec!["a:3".into()],
            zone: "z".into(),
            roles: Roles { meta: false, storage: true, proxy: true },
            durability: Some(Durability::Always),
        }
    }

    fn example_route() -> Route {
        let partition = PartitionId { table: TableId(7), index: 3 };
        let members = vec![Member { raft_id: 9, server: ServerId(0x1234) }];
        Route {
            placement: Placement { partition, members, epoch: 1 },
            leader: Some(Leader { server: ServerId(0x1234), term: 5 }),
        }
    }

    fn example_table() -> Table {
        Table {
            id: TableId(7),
            name: "db0".into(),
            number: 0,
            partitions: 4,
            replicas: 3,
            envs: BTreeMap::from([("default_ttl".to_owned(), "60".to_owned())]),
            default_ttl_since_ms: 300,
        }
    }

    fn example_report() -> Report {
        let replica = Replica {
            partition: PartitionId { table: TableId(7), index: 3 },
            raft_id: 9,
            health: ReplicaHealth::Faulty,
            fault: Some("disk".into()),
            term: 5,
            leads: true,
            last_log: 300,
            applied: 299,
            matched: vec![(10, 298), (11, 0)],
            rows: 1000,
            expiring: 10,
            disk_bytes: 70_000,
            memtable_bytes: 128,
        };
        let compaction = CompactionProgress {
            run: 400,
            table: TableId(7),
            done: 1,
            replicas: 2,
            disk_bytes_before: 600,
            disk_bytes: 500,
            ended: true,
            error: Some("full".into()),
        };
        let figures = ServerStats {
            disk_total_bytes: 1 << 40,
            disk_free_bytes: 1 << 30,
            rows_disk_bytes: 3000,
            log_bytes: 2000,
            memory_bytes: 1 << 20,
            clients: 12,
            uptime_seconds: 3600,
            faults: vec!["a fault".into()],
            ailing: Some("slow".into()),
        };
        Report {
            whole: true,
            followed: 1 << 33,
            replicas: vec![replica],
            destroyed: vec![TableId(8)],
            compactions: vec![compaction],
            figures: Some(figures),
        }
    }

    /// Examples as bytes; each is read back as it was.
    fn bytes_of<'l, T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        examples: Vec<(&'l str, T)>,
    ) -> Vec<(&'l str, Vec<u8>)> {
        let each = |(label, message): (&'l str, T)| {
            let bytes = encode(&message);
            assert_eq!(decode::<T>(&bytes).unwrap(), message);
            (label, bytes.to_vec())
        };
        examples.into_iter().map(each).collect()
    }

    fn from_meta() -> Vec<(&'static str, MetaMessage)> {
        let (table, route) = (example_table(), example_route());
        let assignment = Assignment {
            table: table.clone(),
            placements: vec![route.placement.clone()],
            destroy: false,
        };
        let destroyed = Assignment { table: table.clone(), placements: Vec::new(), destroy: true };
        let led = route.placement.partition;
        let unled = PartitionId { table: TableId(7), index: 4 };
        let unled_route = Route {
            placement: Placement { partition: unled, members: Vec::new(), epoch: 300 },
            leader: None,
        };
        let transfer = Instruction::Transfer { partition: led, term: 5, to: 9 };
        let page_of_routes = |upserts| Delta {
            version: 4,
            is_snapshot: true,
            has_more: false,
            upserts,
            removed: vec![],
        };
        vec![
            ("welcome", MetaMessage::RegisterAccepted(RegisterAccepted { cluster: 1, term: 2 })),
            (
                "servers",
                MetaMessage::Servers(Delta {
                    version: 1 << 40,
                    is_snapshot: true,
                    has_more: true,
                    upserts: BTreeMap::from([(ServerId(0x1234), example_server())]),
                    removed: vec![],
                }),
            ),
            (
                "servers-gone",
                MetaMessage::Servers(Delta {
                    version: 4,
                    is_snapshot: false,
                    has_more: false,
                    upserts: BTreeMap::new(),
                    removed: vec![ServerId(0x1234), ServerId(1)],
                }),
            ),
            (
                "tables",
                MetaMessage::Tables(Delta {
                    version: 4,
                    is_snapshot: false,
                    has_more: true,
                    upserts: BTreeMap::from([(TableId(7), table)]),
                    removed: vec![TableId(6)],
                }),
            ),
            (
                "assignments",
                MetaMessage::Assignments(Delta {
                    version: 4,
                    is_snapshot: true,
                    has_more: false,
                    upserts: BTreeMap::from([(TableId(7), assignment), (TableId(8), destroyed)]),
                    removed: vec![TableId(6)],
                }),
            ),
            ("routes", MetaMessage::Routes(page_of_routes(BTreeMap::from([(led, route)])))),
            (
                "routes-without-leader",
                MetaMessage::Routes(Delta {
                    version: 5,
                    is_snapshot: false,
                    has_more: false,
                    upserts: BTreeMap::from([(unled, unled_route)]),
                    removed: vec![led],
                }),
            ),
            ("order-transfer", MetaMessage::Instruction(transfer)),
            (
                "order-compact",
                MetaMessage::Instruction(Instruction::Compact { run: 400, table: TableId(7) }),
            ),
            ("beat", MetaMessage::Heartbeat),
            ("not-leading", MetaMessage::NotLeading(NotLeading { leader: Some("a".into()) })),
            ("refused", MetaMessage::Refused("b".into())),
        ]
    }

    fn asked() -> Vec<(&'static str, MetaRequest)> {
        vec![
            ("ensure-table", MetaRequest::EnsureTable { name: "db0".into() }),
            (
                "admin",
                MetaRequest::Admin {
                    method: "PUT".into(),
                    path: "/v1/tables/a/envs/default_ttl".into(),
                    body: Bytes::from_static(b"{}"),
                },
            ),
            ("find-table", MetaRequest::FindTable { name: "db0".into() }),
            ("list-tables", MetaRequest::ListTables),
            ("seat", MetaRequest::MetaIndex { index: 3, server: ServerId(0x1234) }),
            ("new-table", MetaRequest::NewTable),
        ]
    }

    fn answered() -> Vec<(&'static str, MetaResponse)> {
        let body = Bytes::from_static(b"{}");
        vec![
            ("table", MetaResponse::Table(example_table())),
            ("admin", MetaResponse::Admin { status: 404, body }),
            ("not-leading", MetaResponse::NotLeading(NotLeading { leader: None })),
            ("refused", MetaResponse::Refused("a".into())),
            ("not-now", MetaResponse::NotNow("b".into())),
            ("unknown", MetaResponse::Unknown("c".into())),
            ("found-none", MetaResponse::Found(None)),
            ("found", MetaResponse::Found(Some(example_table()))),
            ("tables", MetaResponse::Tables(vec![example_table()])),
            ("seat-unfounded", MetaResponse::MetaIndex(MetaIndexStatus::NoCluster)),
            ("seat-unknown", MetaResponse::MetaIndex(MetaIndexStatus::Unknown)),
            ("seat-free", MetaResponse::MetaIndex(MetaIndexStatus::Free)),
            ("seat-taken", MetaResponse::MetaIndex(MetaIndexStatus::Taken(ServerId(0x1234)))),
            ("new-table", MetaResponse::NewTable { partitions: 300 }),
            ("fault", MetaResponse::Fault(Fault::io("d"))),
        ]
    }

    /// Frozen: add lines for new versions and variants, never edit these.
    #[test]
    fn messages_are_frozen() {
        let mut vectors = Vectors::default();
        let hello =
            RegisterRequest { server: example_server(), cluster: Some(5), software: "1".into() };
        let meta = Server {
            http: String::new(),
            clients: Vec::new(),
            roles: Roles { meta: true, storage: false, proxy: false },
            durability: None,
            ..example_server()
        };
        let unregistered = RegisterRequest { server: meta, cluster: None, software: String::new() };
        vectors.add::<RegisterRequest>(
            "hello",
            1,
            bytes_of(vec![("known", hello), ("new", unregistered)]),
        );
        let reports = vec![
            ("report-empty", ServerMessage::Report(Report::default())),
            ("report", ServerMessage::Report(example_report())),
        ];
        vectors.add::<ServerMessage>("to_meta", 1, bytes_of(reports));
        vectors.add::<MetaMessage>("from_meta", 1, bytes_of(from_meta()));
        vectors.add::<MetaRequest>("question", 1, bytes_of(asked()));
        vectors.add::<MetaResponse>("answer", 1, bytes_of(answered()));
        let meta_members = vec![
            ("unfounded", MetaIndexStatus::NoCluster),
            ("unknown", MetaIndexStatus::Unknown),
            ("free", MetaIndexStatus::Free),
            ("taken", MetaIndexStatus::Taken(ServerId(1))),
        ];
        vectors.add::<MetaIndexStatus>("seat", 1, bytes_of(meta_members));
        let orders = vec![
            (
                "transfer",
                Instruction::Transfer {
                    partition: PartitionId { table: TableId(1), index: 2 },
                    term: 3,
                    to: 4,
                },
            ),
            ("compact", Instruction::Compact { run: 1, table: TableId(2) }),
        ];
        vectors.add::<Instruction>("order", 1, bytes_of(orders));
        let healths = vec![
            ("opening", ReplicaHealth::Opening),
            ("running", ReplicaHealth::Running),
            ("installing", ReplicaHealth::Installing),
            ("faulty", ReplicaHealth::Faulty),
        ];
        vectors.add::<ReplicaHealth>("health", 1, bytes_of(healths));
        let durabilities = vec![
            ("os", Durability::Os),
            ("interval", Durability::Interval),
            ("always", Durability::Always),
        ];
        vectors.add::<Durability>("durability", 1, bytes_of(durabilities));
        let led = vec![PartitionId { table: TableId(7), index: 300 }];
        vectors.add::<Vec<PartitionId>>(
            "leads",
            1,
            bytes_of(vec![("none", vec![]), ("some", led)]),
        );
        vectors.hold("messages.txt", include_str!("../tests/vectors/messages.txt"));
    }

    #[test]
    fn strange_messages_are_refused() {
        for bytes in [
            &b""[..],
            b"\x02\x06",
            b"\x01",
            b"\x01\x63",
            b"\x01\x06\x00",
            b"\x01\x01\xff\xff\xff\xff\xff",
        ] {
            assert!(decode::<MetaMessage>(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(
            decode::<MetaMessage>(b"\x02\x06")
                .unwrap_err()
                .to_string()
                .matches("version 2")
                .count(),
            1
        );
    }

    #[test]
    fn oversized_servers_are_refused() {
        assert_eq!(example_server().check(), Ok(()));
        assert!(Server { address: String::new(), ..example_server() }.check().is_err());
        assert!(Server { address: "x".repeat(271), ..example_server() }.check().is_err());
        assert!(Server { zone: "x".repeat(65), ..example_server() }.check().is_err());
        assert!(Server { clients: vec!["a:1".into(); 65], ..example_server() }.check().is_err());
    }
}
