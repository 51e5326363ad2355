//! Server commands: TIME, SHUTDOWN, FLUSHALL, DEBUG and others.
//!
//! INFO, CONFIG, SLOWLOG, LATENCY, MEMORY and MONITOR have files of their own, which
//! `call` leads to. WAIT and WAITAOF are in `waits`.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::{CallError, PartitionId};
use commands::{LocalCommand, Reply};
use row::PartitionOp;
use row::op::{Op, Request};

use crate::{Client, Proxy, REDIS_VERSION, config, errors, info, latency, memory, router};

/// Partitions that FLUSHALL clears concurrently.
const FLUSH_CONCURRENCY: usize = 16;

/// Sampling interval of rates: sixteen samples are two seconds.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(125);
/// The allocator's statistics take a moment to collect, so the peak is updated only once
/// per this many ticks.
const PEAK_TICKS: u64 = 40;

/// Maximum of DEBUG SLEEP: longer than any test of a client's timeouts.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Result of a server command for the connection.
#[derive(Debug)]
pub(crate) enum ServerOutcome {
    /// Send this reply.
    Reply(Reply),
    /// Close without a reply (SHUTDOWN).
    Close,
    /// Not a server command; nothing was done.
    NotHandled,
}

/// Executes a server command for `client`.
pub(crate) async fn call(
    proxy: &Arc<Proxy>,
    client: &Arc<Client>,
    call: LocalCommand,
) -> ServerOutcome {
    let settings = proxy.settings.load_full();
    ServerOutcome::Reply(match call {
        LocalCommand::Info(sections) => info::info(proxy, &sections).await,
        LocalCommand::ConfigGet(globs) => config::get(proxy, &globs),
        LocalCommand::ConfigSet(pairs) => config::set(proxy, &pairs),
        LocalCommand::ConfigResetStat => config::reset_stat(proxy),
        LocalCommand::ConfigRewrite => config::rewrite(proxy),
        LocalCommand::Time => time(),
        LocalCommand::Shutdown { save, force, abort, .. } => {
            return shutdown(proxy, save, force, abort).await;
        }
        LocalCommand::SlowlogGet(count) => proxy.slowlog.get(count),
        LocalCommand::SlowlogLen => proxy.slowlog.len(),
        LocalCommand::SlowlogReset => proxy.slowlog.reset(),
        LocalCommand::LatencyLatest => proxy.latency.latest(),
        LocalCommand::LatencyHistory(event) => proxy.latency.history(&event),
        LocalCommand::LatencyReset(events) => proxy.latency.reset(&events),
        LocalCommand::LatencyDoctor => proxy.latency.doctor(settings.latency_threshold_ms),
        LocalCommand::LatencyHistogram(names) => latency::histogram(&proxy.stats, &names),
        LocalCommand::MemoryDoctor => memory::doctor(proxy),
        LocalCommand::MemoryStats => memory::stats(proxy),
        LocalCommand::Monitor => {
            client.info.lock().monitors = true;
            proxy.monitors.add(client);
            Reply::OK
        }
        LocalCommand::Lolwut(_) => lolwut(proxy),
        LocalCommand::DebugSleep { seconds } => sleep(proxy, client, seconds).await,
        LocalCommand::DebugActiveExpire(on) => {
            proxy.host.set_active_expire(on);
            Reply::OK
        }
        _ => return ServerOutcome::NotHandled,
    })
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

/// Stops the server gracefully. All acknowledged data is written to disk first, with SAVE
/// or without: there is no snapshot that NOSAVE could skip, as in a Redis with an
/// append-only file only. FORCE stops even if writing fails. NOW has no effect, as there
/// are no replicas to wait for; and as the stop begins immediately, there is never one to
/// ABORT.
async fn shutdown(proxy: &Proxy, save: Option<bool>, force: bool, abort: bool) -> ServerOutcome {
    if abort {
        return ServerOutcome::Reply(Reply::error("ERR No shutdown in progress."));
    }
    tracing::info!(?save, force, "SHUTDOWN from a client");
    match proxy.host.sync().await {
        Err(error) if !force => {
            tracing::error!(%error, "flush to disk failed; the server does not shut down");
            return ServerOutcome::Reply(Reply::error(
                "ERR Errors trying to SHUTDOWN. Check logs.",
            ));
        }
        Err(error) => {
            tracing::error!(%error, "flush to disk failed; shutting down anyway (FORCE)")
        }
        Ok(()) => (),
    }
    proxy.shutdown.cancel();
    ServerOutcome::Close
}

/// Clears every partition of every table. Atomic per partition; Redis's is atomic for the
/// server.
pub(crate) async fn flush_all(proxy: &Proxy) -> Reply {
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

/// DEBUG SLEEP. Only this connection sleeps, as the server has other threads. It ends
/// when the client is killed or leaves.
async fn sleep(proxy: &Proxy, client: &Client, seconds: f64) -> Reply {
    tokio::select! {
        () = tokio::time::sleep(sleep_time(seconds)) => {}
        () = client.killed() => {}
        () = proxy.shutdown.cancelled() => {}
    }
    Reply::OK
}

/// Clamps a number of seconds to a duration; NaN and negative numbers are zero.
fn sleep_time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, SLEEP_MAX.as_secs_f64()))
        .unwrap_or(Duration::ZERO)
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

    #[test]
    fn sleep_takes_any_number() {
        for (seconds, time) in [
            (0.0, Duration::ZERO),
            (-1.0, Duration::ZERO),
            (0.5, Duration::from_millis(500)),
            (f64::NAN, Duration::ZERO),
        ] {
            assert_eq!(sleep_time(seconds), time, "{seconds}");
        }
        assert_eq!((sleep_time(1e300), sleep_time(f64::INFINITY)), (SLEEP_MAX, SLEEP_MAX));
    }

    async fn done(
        backend: FakeBackend,
        call: LocalCommand,
    ) -> (ServerOutcome, Arc<FakeBackend>, Arc<Proxy>) {
        let backend = Arc::new(backend);
        let proxy = fakes::proxy(&backend);
        let outcome = super::call(&proxy, &fakes::client(1), call).await;
        (outcome, backend, proxy)
    }

    fn reply(outcome: ServerOutcome) -> Reply {
        if let ServerOutcome::Reply(reply) = outcome { reply } else { panic!("{outcome:?}") }
    }

    fn stop(force: bool, abort: bool) -> LocalCommand {
        LocalCommand::Shutdown { save: None, now: false, force, abort }
    }

    #[tokio::test]
    async fn shutdown_stops_once_everything_is_on_disk() {
        let (outcome, _, proxy) = done(FakeBackend::default(), stop(false, false)).await;
        assert!(matches!(outcome, ServerOutcome::Close) && proxy.shutdown.is_cancelled());
        let (outcome, _, proxy) =
            done(FakeBackend { disk_fails: true, ..FakeBackend::default() }, stop(false, false))
                .await;
        assert_eq!(reply(outcome), Reply::error("ERR Errors trying to SHUTDOWN. Check logs."));
        assert!(!proxy.shutdown.is_cancelled());
        let (outcome, _, proxy) =
            done(FakeBackend { disk_fails: true, ..FakeBackend::default() }, stop(true, false))
                .await;
        assert!(matches!(outcome, ServerOutcome::Close) && proxy.shutdown.is_cancelled());
        let (outcome, _, proxy) = done(FakeBackend::default(), stop(false, true)).await;
        assert_eq!(reply(outcome), Reply::error("ERR No shutdown in progress."));
        assert!(!proxy.shutdown.is_cancelled());
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

    #[tokio::test]
    async fn other_families_are_left_alone() {
        let (outcome, ..) = done(FakeBackend::default(), LocalCommand::Multi).await;
        assert!(matches!(outcome, ServerOutcome::NotHandled));
    }
}
