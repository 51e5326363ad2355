//! Commands about the server: TIME, SHUTDOWN, FLUSHALL, MONITOR and others; and its
//! periodic work.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::{Boxed, CallError, PartitionId};
use commands::Reply;
use commands::server::ServerCommand;
use row::PartitionOp;
use row::op::{Op, Request};

use crate::local::LocalReply;
use crate::session::Session;
use crate::{Proxy, REDIS_VERSION, errors, info, memory, router};

/// Partitions that FLUSHALL clears concurrently.
const FLUSH_CONCURRENCY: usize = 16;

/// Sampling interval of rates: sixteen samples are two seconds.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(125);
/// The allocator's statistics take a moment to collect, so the peak is updated only once
/// per this many ticks.
const PEAK_TICKS: u64 = 40;

impl Session {
    /// Runs a command about the server. In a transaction it `may_block` nobody, so that
    /// MONITOR is refused.
    pub(crate) fn run_server(
        &mut self,
        command: ServerCommand,
        may_block: bool,
    ) -> Boxed<'_, LocalReply> {
        Box::pin(async move {
            LocalReply::Sent(match command {
                ServerCommand::Info { sections } => info::info(&self.proxy, &sections).await,
                ServerCommand::Time => time(),
                ServerCommand::FlushAll => self.flush_all().await,
                ServerCommand::Shutdown { save, now: _, force, abort } => {
                    return self.shut_down(save, force, abort).await;
                }
                ServerCommand::Monitor if !may_block => {
                    Reply::error("ERR MONITOR isn't allowed for DENY BLOCKING client")
                }
                ServerCommand::Monitor => {
                    self.client.info.lock().monitors = true;
                    self.proxy.monitors.add(&self.client);
                    Reply::OK
                }
                ServerCommand::Lolwut { version: _ } => lolwut(&self.proxy),
            })
        })
    }

    async fn flush_all(&mut self) -> Reply {
        let reply = flush_all(&self.proxy).await;
        let tables = self.proxy.catalogue.tables();
        tables
            .iter()
            .flat_map(|table| router::partitions(table))
            .for_each(|partition| self.written.note(partition));
        reply
    }

    /// Stops the server gracefully. All acknowledged data is written to disk first, with
    /// SAVE or without: there is no snapshot that NOSAVE could skip, as in a Redis with an
    /// append-only file only. FORCE stops even if writing fails. NOW has no effect, as
    /// there are no replicas to wait for; and as the stop begins immediately, there is
    /// never one to ABORT.
    async fn shut_down(&mut self, save: Option<bool>, force: bool, abort: bool) -> LocalReply {
        if abort {
            return Reply::error("ERR No shutdown in progress.").into();
        }
        tracing::info!(?save, force, "SHUTDOWN from a client");
        match self.proxy.host.sync().await {
            Err(error) if !force => {
                tracing::error!(%error, "flush to disk failed; the server does not shut down");
                return Reply::error("ERR Errors trying to SHUTDOWN. Check logs.").into();
            }
            Err(error) => {
                tracing::error!(%error, "flush to disk failed; shutting down anyway (FORCE)")
            }
            Ok(()) => (),
        }
        self.proxy.shutdown.cancel();
        self.closing = true;
        LocalReply::None
    }
}

/// Periodic work: rates and the memory peak. Ends with the server. One loop runs per
/// proxy, however many are started.
pub(crate) async fn run_periodic(proxy: Arc<Proxy>) {
    if proxy.stats.is_sampled.swap(true, Relaxed) {
        return;
    }
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in 0u64.. {
        if proxy.shutdown.run_until_cancelled(ticks.tick()).await.is_none() {
            return;
        }
        proxy.stats.sample(Instant::now());
        if tick.is_multiple_of(PEAK_TICKS) {
            memory::MemoryStats::note_peak(&proxy);
        }
    }
}

fn time() -> Reply {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let bulk = |number: u64| Reply::Bulk(number.to_string().into());
    Reply::Array(vec![bulk(now.as_secs()), bulk(u64::from(now.subsec_micros()))])
}

/// Clears every partition of every table. Atomic per partition; Redis's is atomic for the
/// server.
async fn flush_all(proxy: &Proxy) -> Reply {
    let deadline = Instant::now() + Duration::from_millis(proxy.settings.load().call_deadline_ms);
    // Includes tables that this proxy does not know yet.
    let tables = match router::find_all(proxy).await {
        Ok(tables) => tables,
        Err(error) => return errors::catalogue_error(&error),
    };
    let partitions: Vec<_> = tables.iter().flat_map(|table| router::partitions(table)).collect();
    let mut done = 0;
    for some in partitions.chunks(FLUSH_CONCURRENCY) {
        let mut cleared = Vec::with_capacity(some.len());
        for &partition in some {
            cleared.push(clear(proxy, partition, deadline));
        }
        let (fine, failed): (Vec<_>, Vec<_>) =
            futures::future::join_all(cleared).await.into_iter().partition(Result::is_ok);
        done += fine.len();
        // An unknown outcome takes precedence: the other errors mean that nothing was
        // done.
        let failed = failed
            .into_iter()
            .filter_map(Result::err)
            .max_by_key(|error| matches!(error, CallError::Unknown(_)));
        if let Some(error) = failed {
            return if done > 0 { errors::partly_done(&error) } else { errors::call_error(&error) };
        }
    }
    Reply::OK
}

async fn clear(proxy: &Proxy, partition: PartitionId, deadline: Instant) -> Result<(), CallError> {
    let request = Request {
        ops: vec![Op::Partition(PartitionOp::Clear)],
        joined: Vec::new(),
        watched: Vec::new(),
    };
    match router::respond(proxy, partition, &request, deadline).await {
        // Dropped in the meantime, so it is empty.
        Ok(_) | Err(CallError::NoTable) => Ok(()),
        Err(error) => Err(error),
    }
}

/// LOLWUT, in any version: a bridled horse. Tests of client libraries look for Redis's
/// version in the last line.
fn lolwut(proxy: &Proxy) -> Reply {
    Reply::Text(format!(
        "{HORSE}Redis ver. {REDIS_VERSION}, by Bridle ver. {}\n",
        proxy.server_info.version
    ))
}

const HORSE: &str = r"
            ,  ,.~'~.,
          ,/ \/       `-.
         / o  ==\        `.
        /      | \         \
       (  _.--=|= \         |
        \/     |   `.      /
              ''     `.__,'

";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{self, FakeBackend};

    #[test]
    fn time_is_seconds_and_microseconds() {
        let Reply::Array(parts) = time() else { panic!("an array") };
        let number = |reply: &Reply| {
            let Reply::Bulk(text) = reply else { panic!("a bulk string") };
            std::str::from_utf8(text).expect("digits").parse::<u64>().expect("digits")
        };
        assert!(number(&parts[0]) > 1_600_000_000 && number(&parts[1]) < 1_000_000);
    }

    /// Stops a proxy on this backend; `true` if it stops then.
    async fn stop(backend: FakeBackend, force: bool, abort: bool) -> (LocalReply, bool) {
        let proxy = fakes::proxy(&Arc::new(backend));
        let mut session = Session::new(proxy.clone(), fakes::client(1));
        let command = ServerCommand::Shutdown { save: None, now: false, force, abort };
        let reply = session.run_server(command, true).await;
        assert_eq!(session.closing, proxy.shutdown.is_cancelled());
        (reply, session.closing)
    }

    #[tokio::test]
    async fn shutdown_stops_once_everything_is_on_disk() {
        let broken = || FakeBackend { disk_fails: true, ..FakeBackend::default() };
        for (backend, force, abort, refused) in [
            (FakeBackend::default(), false, false, None),
            (broken(), false, false, Some("ERR Errors trying to SHUTDOWN. Check logs.")),
            (broken(), true, false, None),
            (FakeBackend::default(), false, true, Some("ERR No shutdown in progress.")),
        ] {
            match (stop(backend, force, abort).await, refused) {
                ((LocalReply::None, true), None) => {}
                ((LocalReply::Sent(reply), false), Some(text)) => {
                    assert_eq!(reply, Reply::error(text))
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn flush_all_reaches_every_partition_of_every_table() {
        let backend = Arc::new(FakeBackend::default());
        let reply = flush_all(&fakes::proxy(&backend)).await;
        assert_eq!(
            (reply, backend.called.load(std::sync::atomic::Ordering::Relaxed)),
            (Reply::OK, 8)
        );
    }
}
