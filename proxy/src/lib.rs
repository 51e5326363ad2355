//! RESP connections, sessions, routing: what a Redis client talks to.
//!
//! # Life of a command
//! 1. A connection's task (`connection`) reads what the socket has, and [`resp`] finds
//!    the complete commands in it: a *chunk*.
//! 2. Each command is looked up and planned (`dispatch`): an error reply, something the
//!    session does itself, or ops on rows.
//! 3. Ops are gathered by partition (`router`): one request a partition and chunk, in
//!    order; partitions run concurrently.
//! 4. Requests that only read are answered on this thread, straight from storage; others
//!    are called and waited for.
//! 5. Answers are worded, encoded for the client's protocol version into one buffer, and
//!    written with one system call.
//!
//! # Invariants
//! - On one connection, replies leave in the order of the commands, and a command sees
//!   all that was sent before it (`tests/pipeline.rs`,
//!   `many_partitions_answer_in_the_order_of_the_commands`; `tests/fuzz.rs`,
//!   `whole_connections_answer_the_same_in_any_pieces`).
//! - A write is sent on at most once, unless it is known not to have been proposed
//!   (`tests/pipeline.rs`, `failed_write_is_never_retried_and_reports_its_outcome`).
//! - A client's memory is bounded, whatever it sends and however little it reads
//!   (`tests/memory.rs`; `resp/framer.rs`,
//!   `command_over_the_query_buffer_is_refused_before_it_arrives`,
//!   `arguments_count_for_more_than_their_bytes`); and so is that of all.
//! - RESP is spoken in [`resp`] only; rows are reached through [`cluster::CallPartition`] only.
//!
//! # Not here
//! What commands mean (crate `commands`), what ops do (crate `row`), where partitions
//! live (crate `cluster` and below).

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use cluster::{CallPartition, Catalogue};
use row::op::{Request, Response};
use tokio_util::sync::CancellationToken;

mod buffers;
pub mod client;
pub mod config;
mod connection;
mod dispatch;
mod errors;
#[cfg(test)]
mod fakes;
mod generic;
pub mod histogram;
pub mod host;
pub mod info;
pub mod latency;
mod listener;
mod lookups;
pub mod memory;
pub mod metrics;
pub mod monitor;
mod oversized;
mod redact;
pub mod resp;
mod router;
pub mod server;
mod session;
pub mod settings;
pub mod slowlog;
pub mod stats;
pub mod tls;
mod transactions;
mod waits;

pub use client::{Client, Clients};
pub use host::Host;
pub use listener::{handshake, serve, serve_unix};
pub use settings::{ClientsMemory, Settings};

/// The Redis version whose behaviour is kept, as HELLO and INFO tell it.
pub const REDIS_VERSION: &str = "7.4.0";

/// What stays as it was at start, for INFO.
#[derive(Debug, Clone, Default)]
pub struct ServerInfo {
    /// Bridle's version.
    pub version: String,
    /// `standalone` or `cluster`, INFO's `bridle_mode`. To clients both look like one
    /// Redis.
    pub mode: &'static str,
    /// The plain RESP port; 0 = none.
    pub port: u16,
    /// The TLS RESP port; 0 = none.
    pub tls_port: u16,
    /// The configuration file; empty = none.
    pub config_file: String,
    /// The data directory; empty = none.
    pub data_dir: String,
    /// Other settings by CONFIG name that cannot change while running (`bind`, `dir`,
    /// ...).
    pub fixed: Vec<(&'static str, String)>,
}

/// Everything that the connections of one proxy share.
pub struct Proxy {
    /// Settings as of now.
    pub settings: ArcSwap<Settings>,
    /// What is counted.
    pub stats: stats::Stats,
    /// Which settings differ from the configuration file.
    pub changes: config::ChangedSettings,
    /// Commands that were slow.
    pub slowlog: slowlog::Slowlog,
    /// Events that were slow.
    pub latency: latency::Latency,
    /// What was handed to the metrics recorder last.
    pub last_published: metrics::LastPublished,
    /// The most memory that was seen in use.
    pub memory_peak: memory::MemoryPeak,
    /// Who watches all commands.
    pub monitors: monitor::Monitors,
    /// Connected clients, and CLIENT PAUSE.
    pub clients: Clients,
    /// The door to rows.
    pub rows: Arc<dyn CallPartition<Request, Response>>,
    /// The door to tables.
    pub catalogue: Arc<dyn Catalogue>,
    /// The process around.
    pub host: Arc<dyn Host>,
    /// Cancelled when the server is to stop: connections finish what is in flight and
    /// close.
    pub shutdown: CancellationToken,
    /// When this process started.
    pub started: Instant,
    /// 40 hexadecimal digits, fresh at every start.
    pub run_id: String,
    /// What INFO tells and nobody changes.
    pub server_info: ServerInfo,
}

impl Proxy {
    /// A proxy in front of these doors.
    pub fn new(
        settings: Settings,
        server_info: ServerInfo,
        rows: Arc<dyn CallPartition<Request, Response>>,
        catalogue: Arc<dyn Catalogue>,
        host: Arc<dyn Host>,
        shutdown: CancellationToken,
    ) -> Arc<Proxy> {
        Arc::new(Proxy {
            settings: ArcSwap::from_pointee(settings),
            stats: stats::Stats::new(),
            changes: config::ChangedSettings::default(),
            slowlog: slowlog::Slowlog::default(),
            latency: latency::Latency::default(),
            last_published: metrics::LastPublished::default(),
            memory_peak: memory::MemoryPeak::default(),
            monitors: monitor::Monitors::default(),
            clients: Clients::default(),
            rows,
            catalogue,
            host,
            shutdown,
            started: Instant::now(),
            run_id: run_id(),
            server_info,
        })
    }

    /// If all clients hold more than `maxmemory-clients`, the one that holds most is
    /// disconnected, and so on.
    pub(crate) fn make_room(&self) {
        let bytes_max = self.settings.load().clients_max().bytes;
        for (client, bytes) in self.clients.evict(bytes_max) {
            self.stats.evicted_clients.add(1);
            let (address, name) = (&client.endpoint.address, client.name());
            let name = String::from_utf8_lossy(&name);
            tracing::warn!(client = %address, %name, bytes, bytes_max, "a client is evicted: it holds most, and all hold more than maxmemory-clients");
        }
    }
}

/// Wall clock, ms since the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn run_id() -> String {
    (0..5).map(|_| format!("{:08x}", rand::random::<u32>())).collect()
}
