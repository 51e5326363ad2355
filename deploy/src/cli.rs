//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A Redis that keeps its promises: any Redis client, data on disk, every acknowledged
/// write kept.
#[derive(Debug, Parser)]
#[command(
    name = "bridle",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "Try:  bridle standalone        and then, elsewhere:  redis-cli -p 6379")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs all of Bridle in one process, with one copy of the data
    ///
    /// Flags override the configuration file, which overrides the built-in defaults;
    /// --print-config shows the result with every key explained. SIGTERM or Ctrl-C stops
    /// the server cleanly.
    Standalone(Standalone),
    /// Runs one node of a cluster: proxy, storage and, if it is in the list of metas,
    /// meta
    ///
    /// A cluster of three nodes tolerates the loss of one. All nodes get the same list of
    /// metas (--metas); a node whose address (--advertise, by default --listen) is in the
    /// list is a meta. Flags override the configuration file, which overrides the
    /// built-in defaults. SIGTERM or Ctrl-C transfers this node's leaderships to others
    /// and stops it cleanly.
    #[command(after_help = NODE_EXAMPLE)]
    Node(Node),
    /// Runs a cluster process that stores data and serves no clients
    Storage(Backend),
    /// Runs a cluster process that serves Redis clients and stores no data
    Proxy(Node),
    /// Runs a cluster process that keeps the cluster's metadata: tables, servers and
    /// placement
    Meta(Backend),
    /// Administers a running server or cluster: tables, nodes, partitions, envs,
    /// compaction, status
    ///
    /// Each subcommand is also an HTTP request, for scripts in any language:
    /// meta/src/admin.rs lists them. Any process of a cluster accepts them.
    Admin(Admin),
}

const NODE_EXAMPLE: &str = "A cluster of three on one machine (or: make cluster):
  metas=127.0.0.1:7201,127.0.0.1:7202,127.0.0.1:7203
  bridle node --metas $metas --listen 127.0.0.1:7201 --data data/1 --port 6379 --http-port 9121
  bridle node --metas $metas --listen 127.0.0.1:7202 --data data/2 --port 6380 --http-port 9122
  bridle node --metas $metas --listen 127.0.0.1:7203 --data data/3 --port 6381 --http-port 9123";

/// `bridle standalone`.
#[derive(Debug, Args)]
pub(crate) struct Standalone {
    #[command(flatten)]
    pub(crate) clients: ClientFlags,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

/// `bridle node` and `bridle proxy`.
#[derive(Debug, Args)]
pub(crate) struct Node {
    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
    #[command(flatten)]
    pub(crate) clients: ClientFlags,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

/// `bridle storage` and `bridle meta`.
#[derive(Debug, Args)]
pub(crate) struct Backend {
    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

/// Flags of processes that serve Redis clients.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct ClientFlags {
    /// Address for Redis clients; may be given several times [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) bind: Vec<IpAddr>,
    /// Port for Redis clients; 0: any free port [default: 6379]
    #[arg(long, short, value_name = "PORT")]
    pub(crate) port: Option<u16>,
}

/// Flags of processes of a cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterFlags {
    /// Addresses of the metas: host:port of each, 1, 3 or 5, separated by commas; the
    /// same list for all processes
    #[arg(long, value_name = "LIST")]
    pub(crate) metas: Option<String>,
    /// Address on which this process serves the other processes; port 0: any free port
    /// [default: 127.0.0.1:7201]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Address at which the other processes reach this one [default: as --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Failure domain of this machine; the replicas of a partition are spread over zones
    /// first
    #[arg(long, value_name = "NAME")]
    pub(crate) zone: Option<String>,
    /// File whose first line is the secret shared by all processes of the cluster
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
}

/// Flags of all processes.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonFlags {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Prints the resulting configuration, with every key explained, and exits
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Data directory [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Memory for rows and clients: a size like 4GiB, or auto, a quarter of the memory of
    /// the machine or the cgroup [default: auto]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Port of metrics, health and the admin API; 0: any free port [default: 9121]
    #[arg(long, value_name = "PORT")]
    pub(crate) http_port: Option<u16>,
    /// File whose first line is the password of clients
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Durability of an acknowledged write: always (survives power loss), interval, os
    /// [default: always]
    #[arg(long, value_name = "HOW")]
    pub(crate) durability: Option<String>,
    /// Log level: error, warn, info, debug, trace; or per crate, "info,storage=debug"
    /// [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Format of log lines: text, json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// Any key of the configuration file, as section.key=value; may be given several
    /// times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// `bridle admin`.
#[derive(Debug, Args)]
pub(crate) struct Admin {
    /// URL of a server's HTTP port; in a cluster, of any process
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9121", global = true)]
    pub(crate) url: String,
    /// File whose first line is the server's password or the cluster's secret; or set the
    /// environment variable BRIDLE_PASSWORD
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) password_file: Option<PathBuf>,
    /// Prints JSON, for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: AdminCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Shows the status of the server and its cluster
    Status,
    /// Lists the cluster's processes
    Nodes,
    /// Removes a process that is down permanently and holds no replicas; data on its disk
    /// is not accepted again
    Forget {
        /// Id or address of the process, as shown by `nodes`
        node: String,
    },
    /// Declares the data directory of a meta lost, so that a server with an empty one may
    /// replace it
    Release {
        /// Position of the meta in cluster.metas; the first is 1
        index: u32,
    },
    /// Lists the tables
    Tables,
    /// Lists a table's partitions: leader, term, followers and their lag
    Partitions {
        /// Name of the table
        table: String,
    },
    /// Creates a table
    Create {
        /// Name: letters, digits, '_', '-', '.', ':'; clients use it by SELECT name
        name: String,
        /// Number of partitions; it never changes [default: as configured]
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// Number of replicas of each partition; it never changes [default: as
        /// configured]
        #[arg(long, value_name = "N")]
        replicas: Option<u32>,
        /// Initial env, as key=value; may be given several times
        #[arg(long, value_name = "KEY=VALUE")]
        env: Vec<String>,
    },
    /// Drops a table and everything in it
    Drop {
        /// Name of the table
        name: String,
    },
    /// Transfers the leadership of a partition to another of its replicas
    Transfer {
        /// Name of the table
        table: String,
        /// Index of the partition
        partition: u32,
        /// New leader: id or address, as shown by `nodes`
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Shows and changes a table's envs: settings that take effect at runtime
    #[command(subcommand, visible_alias = "envs")]
    Env(Env),
    /// Compacts a table: reclaims the disk space of deleted, replaced and expired data
    Compact {
        /// Name of the table
        name: String,
        /// Only shows the progress of the last compaction
        #[arg(long)]
        progress: bool,
        /// Waits for the end, and shows the progress
        #[arg(long, conflicts_with = "progress")]
        wait: bool,
    },
    /// Creates a certificate authority and certificates for the processes of a cluster;
    /// needs no server
    Certs {
        /// Output directory, created when missing. An existing authority in it signs the
        /// new certificates
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// Validity in days
        #[arg(long, value_name = "N", default_value_t = 365)]
        days: u32,
        /// Hosts, by name or address, as in cluster.advertise; each gets a certificate
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Env {
    /// Shows one env, or all that are set
    Get {
        /// Name of the table
        table: String,
        /// Name of the env; all when absent
        key: Option<String>,
    },
    /// Sets an env; default_ttl: TTL in seconds of rows written without one
    Set {
        /// Name of the table
        table: String,
        /// Name of the env
        key: String,
        /// New value
        value: String,
    },
    /// Resets an env to its default
    #[command(alias = "delete")]
    Del {
        /// Name of the table
        table: String,
        /// Name of the env
        key: String,
    },
}
