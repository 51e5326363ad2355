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
    /// Runs a whole Bridle in one process, with one copy of the data
    ///
    /// Settings come from flags, then from the file, then from the built-in defaults;
    /// --print-config shows the outcome, with every key explained. SIGTERM or Ctrl-C
    /// stops the server in good order.
    Standalone(Standalone),
    /// Runs one node of a cluster: proxy, storage and, if it stands in the list of metas,
    /// meta
    ///
    /// Three of these are a cluster that goes on when one of them dies. Every node is
    /// given the same list of metas (--metas); one whose address (--advertise, or else
    /// --listen) stands in it is a meta. Settings come from flags, then from the file,
    /// then from the built-in defaults. SIGTERM or Ctrl-C hands over what this node
    /// leads, and stops it in good order.
    #[command(after_help = NODE_EXAMPLE)]
    Node(Node),
    /// Runs a process of a cluster that holds data and serves no clients
    Storage(Backend),
    /// Runs a process of a cluster that serves Redis clients and holds no data
    Proxy(Node),
    /// Runs a process of a cluster that keeps its catalogue: tables, servers, and who
    /// holds what
    Meta(Backend),
    /// Talks to a running server or cluster: tables, nodes, partitions, settings,
    /// compaction, status
    ///
    /// Everything here is also an HTTP request, for scripts in any language:
    /// meta/src/admin.rs lists them. Any process of a cluster can be asked.
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

/// Of processes that serve Redis clients.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct ClientFlags {
    /// Address to serve Redis clients on; may be given several times [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) bind: Vec<IpAddr>,
    /// Port for Redis clients; 0: any free one [default: 6379]
    #[arg(long, short, value_name = "PORT")]
    pub(crate) port: Option<u16>,
}

/// Of processes of a cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterFlags {
    /// Where the metas are: host:port of each, 1, 3 or 5, with commas; the same list in
    /// every process
    #[arg(long, value_name = "LIST")]
    pub(crate) metas: Option<String>,
    /// Where this process listens for the others, IP:port; port 0: any free one
    /// [default: 127.0.0.1:7201]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where the others reach this process, host:port [default: as --listen]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Where this machine stands; replicas of a partition are spread over zones first
    #[arg(long, value_name = "NAME")]
    pub(crate) zone: Option<String>,
    /// File whose first line is the secret that all processes of the cluster share
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
}

/// Of all that run.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonFlags {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Prints the configuration that these flags and the file give, with every key
    /// explained, and ends
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Directory of the data [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Memory for rows and clients: a size like 4GiB, or auto, a quarter of what the
    /// machine or the cgroup has [default: auto]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Port of metrics, health and the admin API; 0: any free one [default: 9121]
    #[arg(long, value_name = "PORT")]
    pub(crate) http_port: Option<u16>,
    /// File whose first line is the password that clients must send
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// What an acknowledged write has survived: always (power loss), interval, os
    /// [default: always]
    #[arg(long, value_name = "HOW")]
    pub(crate) durability: Option<String>,
    /// What is logged: error, warn, info, debug, trace; or per crate,
    /// "info,storage=debug" [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// How log lines look: text, json [default: text]
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
    /// Where the HTTP port of a server is; in a cluster, of any of its processes
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9121", global = true)]
    pub(crate) url: String,
    /// File whose first line is the server's password or the cluster's secret; or put it
    /// into the environment as BRIDLE_PASSWORD
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) password_file: Option<PathBuf>,
    /// Answers in JSON, for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: AdminCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// How the server is, and its cluster
    Status,
    /// Lists the cluster's processes
    Nodes,
    /// Forgets a process that is down for good and holds nothing; what it may still have
    /// on disk stays out
    Forget {
        /// Its id or its address, as `nodes` shows them
        node: String,
    },
    /// Says that a meta's directory is lost for good, so that a server with an empty one
    /// may take its seat
    Release {
        /// Its place in cluster.metas; the first is 1
        seat: u32,
    },
    /// Lists the tables
    Tables,
    /// Lists a table's partitions: who leads, in which term, who follows and how far
    /// behind
    Partitions {
        /// Whose
        table: String,
    },
    /// Creates a table
    Create {
        /// Its name: letters, digits, '_', '-', '.', ':'; clients reach it by SELECT name
        name: String,
        /// How many partitions; for good [default: as configured]
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// How many copies of each partition; for good [default: as configured]
        #[arg(long, value_name = "N")]
        replicas: Option<u32>,
        /// An env from the start, as key=value; may be given several times
        #[arg(long, value_name = "KEY=VALUE")]
        env: Vec<String>,
    },
    /// Drops a table and everything in it
    Drop {
        /// Which
        name: String,
    },
    /// Has a partition led by another of its replicas
    Transfer {
        /// Whose
        table: String,
        /// Which partition
        partition: u32,
        /// Who is to lead: id or address, as `nodes` shows them
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Shows and changes a table's envs: settings that take effect while it serves
    #[command(subcommand, visible_alias = "envs")]
    Env(Env),
    /// Compacts a table: gives the space of deleted, replaced and expired data back to
    /// the disk
    Compact {
        /// Which
        name: String,
        /// Starts nothing, shows how the last one stands
        #[arg(long)]
        progress: bool,
        /// Waits until it is done, and shows how far it is
        #[arg(long, conflicts_with = "progress")]
        wait: bool,
    },
    /// Makes an authority and certificates for the processes of a cluster, to begin with;
    /// asks no server
    Certs {
        /// Where to write them; made when missing. An authority that is there already
        /// signs the new ones
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
        /// How many days they are good for
        #[arg(long, value_name = "N", default_value_t = 365)]
        days: u32,
        /// The hosts, by name or address, as they stand in cluster.advertise: one
        /// certificate each
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Env {
    /// Shows one env, or all that are set
    Get {
        /// Whose
        table: String,
        /// Which; all when absent
        key: Option<String>,
    },
    /// Sets an env; default_ttl: seconds that rows written without a TTL live
    Set {
        /// Whose
        table: String,
        /// Which
        key: String,
        /// To what
        value: String,
    },
    /// Puts an env back to its default
    #[command(alias = "delete")]
    Del {
        /// Whose
        table: String,
        /// Which
        key: String,
    },
}
