//! The `bridle` binary: the command line, and the assembly of proxy, storage and meta
//! into one process.
//!
//! # Life of a process
//! [`server::run`] resolves the configuration ([`config`]), locks the data directory
//! ([`data_dir`]), binds the ports ([`ports`]), and opens the log, meta and the replicas,
//! as a standalone server ([`standalone`]) or as a process of a cluster ([`member`]).
//! [`reconcile`] makes the replicas those that meta assigns. Only then does the process
//! serve Redis clients. A signal or SHUTDOWN undoes these steps in reverse order. The
//! metrics, health and admin pages ([`http`]) are served from start to stop.
//!
//! # Adapters
//! The ground crates do not know each other. [`raft_transport`] sends engine's Raft
//! messages over cluster's connections, and [`rpc_services`] hands incoming requests to
//! storage and meta.
//!
//! # Not here
//! Logic that belongs to a server: this crate holds only the assembly; the operators'
//! files are beside it.

mod admin;
mod admin_proxy;
mod banner;
mod certificates;
mod cli;
mod compaction;
mod components;
mod config;
mod data_dir;
mod descriptors;
mod exposition;
mod http;
mod logging;
mod member;
mod meta_admission;
#[cfg(feature = "mutants")]
mod mutants;
mod ports;
mod process_info;
mod raft_transport;
mod reachability;
mod reconcile;
mod reporter;
mod rpc_services;
mod runtimes;
mod server;
mod stale_cache;
mod standalone;
mod stores;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, ClientFlags, ClusterFlags, Command, CommonFlags};
use cluster::meta_protocol::Roles;
use server::{CliFlags, Mode};

#[global_allocator]
static ALLOCATOR: engine::memory::Jemalloc = engine::memory::Jemalloc;

/// Options of jemalloc (its manual, "TUNING"): freed pages go back to the system after a
/// second (sooner with little memory: `config/memory.rs`), and few arenas limit
/// fragmentation.
// SAFETY: jemalloc reads a pointer to a zero-terminated string under this name, once,
// before `main`; a slice begins with its pointer.
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:4\0";

fn main() -> ExitCode {
    #[cfg(feature = "mutants")]
    if let Err(error) = mutants::announce() {
        let _ = writeln!(std::io::stderr(), "bridle: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = match Cli::parse().command {
        Command::Standalone(flags) => server::run(
            Mode::Standalone,
            &CliFlags { common: &flags.common, clients: Some(&flags.clients), cluster: None },
        ),
        Command::Node(flags) => {
            run_member(true, true, true, &flags.common, Some(&flags.clients), &flags.cluster)
        }
        Command::Storage(flags) => {
            run_member(false, true, false, &flags.common, None, &flags.cluster)
        }
        Command::Proxy(flags) => {
            run_member(false, false, true, &flags.common, Some(&flags.clients), &flags.cluster)
        }
        Command::Meta(flags) => run_member(true, false, false, &flags.common, None, &flags.cluster),
        Command::Admin(asked) => admin::run(&asked).and_then(|text| print(&text)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}`: the whole chain of reasons in one line.
            let _ = writeln!(std::io::stderr(), "bridle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_member(
    meta: bool,
    storage: bool,
    proxy: bool,
    common: &CommonFlags,
    clients: Option<&ClientFlags>,
    cluster: &ClusterFlags,
) -> anyhow::Result<()> {
    server::run(
        Mode::Member(Roles { meta, storage, proxy }),
        &CliFlags { common, clients, cluster: Some(cluster) },
    )
}

/// Prints to standard output. A closed pipe (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
