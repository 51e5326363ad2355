//! The runtimes of a process, and the signals that end it.
//!
//! Four runtimes, so that no kind of work can hold up another: Redis clients, executors
//! and what other servers ask of rows; Raft; the connections to other servers, which a
//! heavy command must not silence, nor the channel to meta; and a small one for
//! everything that is not on the way of a command (HTTP, catalogue, signals). RocksDB has
//! threads of its own, and so has the log, for what Raft's threads do not write before
//! they sleep.

use std::time::Duration;

use anyhow::Context;
use engine::log::BeforeSleep;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;

/// The runtimes of a process.
pub(crate) struct Runtimes {
    pub(crate) proxy: Runtime,
    pub(crate) raft: Runtime,
    pub(crate) net: Runtime,
    pub(crate) control: Runtime,
    /// By which Raft's threads write the log before they sleep.
    pub(crate) before_sleep: BeforeSleep,
}

impl Runtimes {
    pub(crate) fn start(config: &Config) -> anyhow::Result<Runtimes> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = |set: u32, by_cores: usize| if set == 0 { by_cores } else { set as usize };
        let build = |name: &str, threads: usize, before_sleep: Option<BeforeSleep>| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name(name).enable_all();
            if let Some(before_sleep) = before_sleep {
                builder.on_thread_park(move || before_sleep.write());
            }
            builder.build().with_context(|| format!("start the {name} runtime"))
        };
        let before_sleep = BeforeSleep::default();
        // A group's work is short; a quarter of the cores drives many groups. One more is
        // in reserve, for when the disk stalls.
        let raft = build(
            "raft",
            threads(config.threads.raft, (cores / 4).max(1)) + 1,
            Some(before_sleep.clone()),
        )?;
        before_sleep
            .keep_reserve(raft.handle())
            .context("start a thread that looks after the log's writers")?;
        Ok(Runtimes {
            // One core is left to Raft, the log and RocksDB. One thread is enough where
            // there are two cores: a heavy command computes elsewhere
            // (`cluster::blocking`), and a second thread costs a GET at pipeline 1 a
            // quarter of its rate by waking the first.
            proxy: build("proxy", threads(config.threads.proxy, (cores - 1).max(1)), None)?,
            raft,
            net: build("net", (cores / 4).max(1), None)?,
            control: build("small", 1, None)?,
            before_sleep,
        })
    }

    /// Waits a little for what still runs; blocking calls that never end must not keep
    /// the process.
    pub(crate) fn stop(self) {
        self.before_sleep.stop();
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

    /// SIGHUP, which ends nothing from here on, as with Redis.
    pub(crate) fn hangups() -> anyhow::Result<Signal> {
        signal(SignalKind::hangup()).context("catch signals")
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
