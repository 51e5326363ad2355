//! The proxy that Redis clients talk to: RESP connections, sessions, routing.
//!
//! # Life of a command
//! 1. A connection's task (`connection`) reads from the socket, and [`resp`] finds the
//!    complete commands in the input: a *chunk*.
//! 2. Each command is looked up and planned (`execute`): an error reply, a local command
//!    of the session, ops on rows, or rounds of them (`rounds`).
//! 3. Ops are batched by partition (`router`): one request per partition and chunk, in
//!    order; partitions run concurrently.
//! 4. Read-only requests are answered on this thread, directly from storage, if the
//!    leader is in this process; others are calls.
//! 5. Answers are written as replies in the client's protocol version, one behind the
//!    other, into one buffer, which leaves with one system call.
//!
//! # Invariants
//! - On one connection, replies leave in the order of the commands, and a command sees
//!   all commands sent before it (`tests/pipeline.rs`,
//!   `many_partitions_answer_in_the_order_of_the_commands`; `tests/fuzz.rs`,
//!   `whole_connections_answer_the_same_in_any_pieces`).
//! - A write is sent on at most once, unless it is known not to have been proposed
//!   (`tests/pipeline.rs`, `failed_write_is_never_retried_and_reports_its_outcome`).
//! - A client's memory is bounded, whatever it sends and however little it reads
//!   (`tests/memory.rs`; `resp/framer.rs`,
//!   `command_over_the_query_buffer_is_refused_before_it_arrives`,
//!   `arguments_count_for_more_than_their_bytes`); so is the memory of all clients.
//! - Only [`resp`] knows RESP; rows are reached through [`cluster::CallPartition`] only.
//!
//! # Not here
//! The meaning of commands (crate `commands`), the effect of ops (crate `row`), the
//! location of partitions (crate `cluster` and below).

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
mod debug;
mod errors;
mod execute;
#[cfg(test)]
mod fakes;
pub mod histogram;
pub mod host;
pub mod info;
pub mod latency;
mod listener;
mod local;
mod lookups;
pub mod memory;
pub mod metrics;
mod missing_table;
pub mod monitor;
mod observe;
mod oversized;
mod pipeline;
mod redact;
pub mod resp;
mod rounds;
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

/// The Redis version that Bridle is compatible with, as HELLO and INFO report it.
pub const REDIS_VERSION: &str = "7.4.0";

/// Facts for INFO that are fixed at start.
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
    /// Current settings.
    pub settings: ArcSwap<Settings>,
    /// Statistics.
    pub stats: stats::Stats,
    /// Settings that differ from the configuration file.
    pub changes: config::ChangedSettings,
    /// Slow commands.
    pub slowlog: slowlog::Slowlog,
    /// Slow events.
    pub latency: latency::Latency,
    /// Values last passed to the metrics recorder.
    pub last_published: metrics::LastPublished,
    /// Peak of memory use.
    pub memory_peak: memory::MemoryPeak,
    /// Clients that receive all commands.
    pub monitors: monitor::Monitors,
    /// Connected clients, and CLIENT PAUSE.
    pub clients: Clients,
    /// Access to rows.
    pub rows: Arc<dyn CallPartition<Request, Response>>,
    /// Access to tables.
    pub catalogue: Arc<dyn Catalogue>,
    /// The process around the proxy.
    pub host: Arc<dyn Host>,
    /// Cancelled to stop the server: connections finish what is in flight and close.
    pub shutdown: CancellationToken,
    /// Start time of this process.
    pub started: Instant,
    /// 40 hexadecimal digits, new at every start.
    pub run_id: String,
    /// Fixed facts for INFO.
    pub server_info: ServerInfo,
}

impl Proxy {
    /// A proxy on these interfaces.
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

    /// While all clients together use more than `maxmemory-clients`, disconnects the
    /// client that uses most.
    pub(crate) fn evict_clients(&self) {
        let bytes_max = self.settings.load().clients_max().bytes;
        for (client, bytes) in self.clients.evict(bytes_max) {
            self.stats.evicted_clients.add(1);
            let (address, name) = (&client.endpoint.address, client.name());
            let name = String::from_utf8_lossy(&name);
            tracing::warn!(
                client = %address, %name, bytes, bytes_max,
                "client evicted: all clients use more than maxmemory-clients, and it uses most"
            );
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
