//! Measures appends to the node's log: `cargo run --release -p engine --example log
//! [DIR]`, with DIR on the disk to measure.
//!
//! One line per case: microseconds from append to acknowledgement (median and 99th
//! percentile), CPU time of the whole process, and the number of appends per fsync.

#![expect(clippy::print_stdout, reason = "a measurement prints its figures")]

use std::path::Path;
use std::time::{Duration, Instant};

use engine::log::{Durability, Log, LogError, LogOptions};
use engine::raft::log_store::GroupLog;
use engine::raft::types::{Entry, EntryPayload, Flushed, LeaderId, LogId, Payload, Types};
use futures::future::join_all;
use openraft::storage::RaftLogStorage;
use openraft::type_config::TypeConfigExt;

struct Case {
    name: &'static str,
    durability: Durability,
    preallocate: bool,
    groups: u64,
    payload: usize,
}

fn entry(index: u64, payload: &Payload) -> Entry {
    let log_id = LogId { leader_id: LeaderId { term: 1.into(), node_id: 1 }, index };
    Entry { log_id, payload: EntryPayload::Normal(payload.clone()) }
}

/// Appends one entry to each group and waits for all.
async fn round(
    groups: &mut [GroupLog],
    index: u64,
    payload: &Payload,
) -> Result<(), std::io::Error> {
    let mut waits = Vec::with_capacity(groups.len());
    for group in groups.iter_mut() {
        let (done, wait) = Types::oneshot();
        group.append([entry(index, payload)], Flushed::signal(done)).await?;
        waits.push(wait);
    }
    for acknowledged in join_all(waits).await {
        acknowledged.map_err(|_| LogError::Closed)??;
    }
    Ok(())
}

/// CPU time of the process so far, in microseconds.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .filter_map(|f| f.parse().ok())
        .collect();
    // utime and stime, in ticks of 10 ms; the state before them is no number.
    fields.get(10..12).map_or(0, |ticks| ticks.iter().sum::<u64>() * 10_000)
}

async fn run(dir: &Path, case: &Case) -> Result<(), std::io::Error> {
    let options = LogOptions {
        durability: case.durability,
        preallocate: case.preallocate,
        ..LogOptions::new(dir)
    };
    let log = Log::open(options)?;
    let mut groups: Vec<GroupLog> = (1..=case.groups).map(|id| log.group_log(id)).collect();
    let payload = Payload(vec![7; case.payload].into());
    let (start, cpu) = (Instant::now(), cpu_micros());
    let mut times = Vec::new();
    while start.elapsed() < Duration::from_secs(2) {
        let index = times.len() as u64 + 1;
        let begun = Instant::now();
        round(&mut groups, index, &payload).await?;
        times.push(begun.elapsed());
        if index.is_multiple_of(1000) {
            for group in &mut groups {
                group.purge(entry(index - 100, &payload).log_id).await?;
            }
        }
    }
    let appends = times.len() as u64 * case.groups;
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!(
        "{:36} p50 {:7.1} us  p99 {:7.1} us  {:8.0} appends/s  cpu {:5.1} us/append  {:6.1} \
         appends/fsync",
        case.name,
        at(50),
        at(99),
        appends as f64 / start.elapsed().as_secs_f64(),
        (cpu_micros() - cpu) as f64 / appends as f64,
        appends as f64 / log.stats().fsyncs().max(1) as f64,
    );
    drop(groups);
    log.close()?;
    drop(log);
    std::fs::remove_dir_all(dir)
}

#[tokio::main]
async fn main() -> Result<(), std::io::Error> {
    let base =
        std::env::args().nth(1).unwrap_or_else(|| std::env::temp_dir().display().to_string());
    let dir = Path::new(&base).join(format!("bridle-log-{}", std::process::id()));
    let interval = Durability::Interval(Duration::from_millis(100));
    let case = |name, durability, groups, payload| Case {
        name,
        durability,
        preallocate: true,
        groups,
        payload,
    };
    let cases = [
        case("always, 1 group, 100 B", Durability::Always, 1, 100),
        Case {
            preallocate: false,
            ..case("always, 1 group, 100 B, growing file", Durability::Always, 1, 100)
        },
        case("always, 1 group, 4 kB", Durability::Always, 1, 4096),
        Case {
            preallocate: false,
            ..case("always, 1 group, 4 kB, growing file", Durability::Always, 1, 4096)
        },
        case("always, 16 groups, 100 B", Durability::Always, 16, 100),
        case("interval, 1 group, 100 B", interval, 1, 100),
        case("interval, 1 group, 4 kB", interval, 1, 4096),
        case("os, 1 group, 100 B", Durability::Os, 1, 100),
        case("os, 1 group, 4 kB", Durability::Os, 1, 4096),
        case("os, 16 groups, 100 B", Durability::Os, 16, 100),
    ];
    for case in &cases {
        run(&dir, case).await?;
    }
    Ok(())
}
