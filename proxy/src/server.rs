//! The server family: what the session does for TIME, SHUTDOWN, WAIT, FLUSHALL, DEBUG and the like.
//!
//! INFO, CONFIG, SLOWLOG, LATENCY, MEMORY and MONITOR have files of their own; [`call`] leads to them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::CallError;
use commands::{Reply, Session};
use futures::{StreamExt, TryStreamExt, stream};
use row::op::{Op, Request};

use crate::node::Durability;
use crate::{Client, Proxy, config, info, latency, memory, router, words};

/// Partitions that FLUSHALL empties at a time.
const FLUSHES_AT_ONCE: usize = 16;

/// Longer than anybody waits, and not too long for a timer.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What a command of this family asks of the connection.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send it.
    Reply(Reply),
    /// Close without a reply (SHUTDOWN).
    Close,
    /// Not of this family; given back untouched.
    NotMine(Session),
}

/// Carries out a command of the server family for `client`.
pub(crate) async fn call(proxy: &Arc<Proxy>, client: &Arc<Client>, call: Session) -> Outcome {
    let settings = proxy.settings.load_full();
    Outcome::Reply(match call {
        Session::Info(sections) => info::info(proxy, &sections),
        Session::ConfigGet(globs) => config::get(proxy, &globs),
        Session::ConfigSet(pairs) => config::set(proxy, &pairs),
        Session::ConfigResetStat => config::reset_stat(proxy),
        Session::ConfigRewrite => config::rewrite(proxy),
        Session::FlushAll => flush_all(proxy).await,
        Session::Time => time(),
        Session::Shutdown { save, force, abort, .. } => return shutdown(proxy, save, force, abort).await,
        Session::SlowlogGet(count) => proxy.slowlog.get(count),
        Session::SlowlogLen => proxy.slowlog.len(),
        Session::SlowlogReset => proxy.slowlog.reset(),
        Session::LatencyLatest => proxy.latency.latest(),
        Session::LatencyHistory(event) => proxy.latency.history(&event),
        Session::LatencyReset(events) => proxy.latency.reset(&events),
        Session::LatencyDoctor => proxy.latency.doctor(settings.latency_threshold_ms),
        Session::LatencyHistogram(names) => latency::histogram(&proxy.stats, &names),
        Session::MemoryDoctor => memory::doctor(proxy),
        Session::MemoryStats => memory::stats(proxy),
        Session::Monitor => {
            client.shown.lock().monitors = true;
            proxy.monitors.watch(client);
            Reply::OK
        }
        Session::Lolwut(_) => lolwut(proxy),
        Session::DebugSleep { seconds } => sleep(proxy, seconds).await,
        Session::DebugActiveExpire(on) => {
            proxy.node.set_active_expire(on);
            Reply::OK
        }
        Session::Wait { .. } => Reply::Int(copies(proxy, client)),
        Session::WaitAof { local, timeout_ms, .. } => wait_aof(proxy, client, local, timeout_ms).await,
        other => return Outcome::NotMine(other),
    })
}

/// Does what has to be done by the clock: rates, the memory peak. Ends with the server.
pub async fn clock(proxy: Arc<Proxy>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while proxy.shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        proxy.stats.sample(Instant::now());
        memory::Figures::note_peak(&proxy);
    }
}

fn time() -> Reply {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let bulk = |number: u64| Reply::Bulk(number.to_string().into());
    Reply::Array(vec![bulk(now.as_secs()), bulk(u64::from(now.subsec_micros()))])
}

/// Stops the server in good order. All that was acknowledged is written to disk first, whether SAVE is said or not: there is no snapshot
/// that NOSAVE could leave out, as in a Redis that only has an append-only file. FORCE stops even if that fails. NOW changes nothing, as
/// there are no replicas to wait for; and because a stop begins at once, there is never one to ABORT.
async fn shutdown(proxy: &Proxy, save: Option<bool>, force: bool, abort: bool) -> Outcome {
    if abort {
        return Outcome::Reply(Reply::error("ERR No shutdown in progress."));
    }
    tracing::info!(?save, force, "a client asked to stop the server");
    match proxy.node.sync().await {
        Err(error) if !force => {
            tracing::error!(%error, "write acknowledged data to disk before stopping; the server goes on");
            return Outcome::Reply(Reply::error("ERR Errors trying to SHUTDOWN. Check logs."));
        }
        Err(error) => tracing::error!(%error, "write acknowledged data to disk before stopping; stopping all the same"),
        Ok(()) => (),
    }
    proxy.shutdown.cancel();
    Outcome::Close
}

/// Empties every partition of every table. Atomic for each partition; Redis's is for the server.
async fn flush_all(proxy: &Proxy) -> Reply {
    let deadline = Instant::now() + Duration::from_millis(proxy.settings.load().call_deadline_ms);
    let tables = proxy.catalogue.tables();
    let clear = |partition| async move {
        let request = Request { ops: vec![Op::Clear], watched: Vec::new() };
        match router::respond(proxy, partition, request, deadline).await {
            // Dropped meanwhile: empty enough.
            Ok(_) | Err(CallError::NoTable) => Ok(()),
            Err(error) => Err(error),
        }
    };
    let partitions = tables.iter().flat_map(|table| router::partitions(table));
    let done: Result<(), CallError> = stream::iter(partitions).map(clear).buffer_unordered(FLUSHES_AT_ONCE).try_collect().await;
    done.map_or_else(|error| words::call_error(&error), |()| Reply::OK)
}

/// DEBUG SLEEP. Only this connection sleeps: the server has other threads.
async fn sleep(proxy: &Proxy, seconds: f64) -> Reply {
    proxy.shutdown.run_until_cancelled(tokio::time::sleep(sleep_time(seconds))).await;
    Reply::OK
}

/// Any number of seconds as a time that timers can count; what is none is no time.
fn sleep_time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, FOREVER.as_secs_f64())).unwrap_or(Duration::ZERO)
}

/// WAIT: how many copies beside the leader's have everything that this client was told is written. Answered at once, since an
/// acknowledged write is already where it is going to be counted: waiting longer would not add a copy.
fn copies(proxy: &Proxy, client: &Client) -> i64 {
    let table = proxy.catalogue.table(&client.table());
    let partitions = table.iter().flat_map(|table| router::partitions(table));
    partitions.map(|partition| proxy.node.replicas(partition)).min().map_or(0, i64::from)
}

/// WAITAOF: (is it on this disk, on how many other disks). With durability `always` it is, at once; else it is written to disk now.
async fn wait_aof(proxy: &Proxy, client: &Client, local: i64, timeout_ms: u64) -> Reply {
    let always = proxy.node.durability() == Durability::Always;
    let synced = match (always, local > 0) {
        (true, _) => true,
        (false, false) => false,
        (false, true) => {
            let timeout = if timeout_ms == 0 { FOREVER } else { Duration::from_millis(timeout_ms).min(FOREVER) };
            match tokio::time::timeout(timeout, proxy.node.sync()).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => return words::call_error(&error),
                Err(_) => false,
            }
        }
    };
    // What others fsync on their own time is not known here, so it is not claimed.
    let others = if always { copies(proxy, client) } else { 0 };
    Reply::Array(vec![Reply::Int(i64::from(synced)), Reply::Int(others)])
}

/// LOLWUT, in any version: a horse with its bridle on.
fn lolwut(proxy: &Proxy) -> Reply {
    Reply::Text(format!("{HORSE}Bridle ver. {}\n", proxy.facts.version))
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
        for (seconds, time) in
            [(0.0, Duration::ZERO), (-1.0, Duration::ZERO), (0.5, Duration::from_millis(500)), (f64::NAN, Duration::ZERO)]
        {
            assert_eq!(sleep_time(seconds), time, "{seconds}");
        }
        assert_eq!((sleep_time(1e300), sleep_time(f64::INFINITY)), (FOREVER, FOREVER));
    }
}
