//! The tokio runtimes of a process, and its signals.
//!
//! Four runtimes, so that no kind of work delays another: `proxy` for Redis clients,
//! executors and row requests of other servers; `raft`; `net` for the connections to
//! other servers and the channel to meta, which a heavy command must not block; and
//! `control` for everything off the path of a command (HTTP, catalogue, signals). RocksDB
//! has its own threads, and so has the log, for records that Raft's threads do not write
//! themselves before they park.

use std::time::Duration;

use anyhow::Context;
use engine::log::WriteOnPark;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;

/// The runtimes of a process.
pub(crate) struct Runtimes {
    pub(crate) proxy: Runtime,
    pub(crate) raft: Runtime,
    pub(crate) net: Runtime,
    pub(crate) control: Runtime,
    /// Raft's threads write the log with it before they park.
    pub(crate) write_on_park: WriteOnPark,
}

impl Runtimes {
    pub(crate) fn start(config: &Config) -> anyhow::Result<Runtimes> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = |set: u32, by_cores: usize| if set == 0 { by_cores } else { set as usize };
        let build = |name: &str, threads: usize, write_on_park: Option<WriteOnPark>| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name(name).enable_all();
            if let Some(write_on_park) = write_on_park {
                builder.on_thread_park(move || write_on_park.write());
            }
            builder.build().with_context(|| format!("start the {name} runtime"))
        };
        let write_on_park = WriteOnPark::default();
        // A group's work is short: a quarter of the cores drives many groups. One more
        // thread is in reserve while the disk blocks another.
        let raft = build(
            "raft",
            threads(config.threads.raft, (cores / 4).max(1)) + 1,
            Some(write_on_park.clone()),
        )?;
        write_on_park
            .keep_reserve(raft.handle())
            .context("start the watchdog of the log's writers")?;
        Ok(Runtimes {
            // One core is left to Raft, the log and RocksDB. One thread is enough on two
            // cores: heavy commands run elsewhere (`cluster::blocking`), and a second
            // thread costs GET without pipelining a quarter of its rate, by waking the
            // first.
            proxy: build("proxy", threads(config.threads.proxy, (cores - 1).max(1)), None)?,
            raft,
            net: build("net", (cores / 4).max(1), None)?,
            control: build("small", 1, None)?,
            write_on_park,
        })
    }

    /// Waits at most a second for running tasks: blocking calls that never return must
    /// not keep the process alive.
    pub(crate) fn stop(self) {
        self.write_on_park.stop();
        for runtime in [self.proxy, self.raft, self.net, self.control] {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn catch() -> anyhow::Result<Signals> {
        let catch = |kind| signal(kind).context("catch signals");
        Ok(Signals {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    /// SIGHUP, which no longer ends the process from here on, as in Redis.
    pub(crate) fn hangups() -> anyhow::Result<Signal> {
        signal(SignalKind::hangup()).context("catch signals")
    }

    /// Waits for the next signal; its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
