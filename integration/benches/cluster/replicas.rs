//! SET compared with a Redis primary with two replicas, each write followed by WAIT 2.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::driver::{Ask, Figures, Target, drive_by_all};
use crate::process::{Redis, cpu_seconds, wait_for};
use crate::table::Table;
use crate::{CLIENTS, KEYS, Settings};

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A primary and two replicas, which have caught up.
fn start() -> Vec<Redis> {
    let primary = Redis::start(&DURABLE);
    let port = primary.address.port().to_string();
    let follow: Vec<&str> =
        DURABLE.into_iter().chain(["--replicaof", "127.0.0.1", &port]).collect();
    let mut all = vec![primary];
    all.extend((0..2).map(|_| Redis::start(&follow)));
    let mut client = all[0].client().expect("the primary");
    wait_for("two replicas", || {
        client.run("SET one two");
        client.run("WAIT 2 100").int() == 2
    });
    all
}

/// The result of redis-benchmark, which does not report its own CPU time.
pub(crate) fn redis_benchmark(
    address: SocketAddr,
    test: &str,
    pipeline: usize,
    requests: usize,
    pids: &[u32],
) -> Figures {
    let before = cpu_seconds(pids);
    let output = Command::new("redis-benchmark")
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "-t",
            test,
            "-n",
            &requests.to_string(),
        ])
        .args([
            "-c",
            &CLIENTS.to_string(),
            "-P",
            &pipeline.to_string(),
            "-r",
            &KEYS.to_string(),
            "-d",
            "64",
            "--csv",
        ])
        .output()
        .expect("redis-benchmark is installed (make setup-test)");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rfind(|line| !line.contains("\"test\"")).unwrap_or_default();
    // test, rps, avg, min, p50, p95, p99, max; the times are milliseconds.
    let cells: Vec<f64> =
        line.split(',').skip(1).map_while(|cell| cell.trim_matches('"').parse().ok()).collect();
    let [rate, _, _, p50, _, p99, _] = cells[..] else { panic!("redis-benchmark said: {text}") };
    let time = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
    let servers_us = (cpu_seconds(pids) - before) * 1e6 / requests as f64;
    Figures { rate, p50: time(p50), p99: time(p99), driver_us: f64::NAN, servers_us }
}

pub(crate) fn report(settings: &Settings) {
    let redis = start();
    let cluster = settings.cluster().start();
    let theirs: Vec<u32> = redis.iter().map(|one| one.process.pid()).collect();
    let ours = cluster.pids();
    let primary = [Target::new(redis[0].address)];
    let targets: Vec<Target> = cluster.all_proxies().into_iter().map(Target::new).collect();
    let window = settings.window();
    for pipeline in [1, 16] {
        println!(
            "SET at pipeline {pipeline}: redis-server and two replicas, all appendfsync always, \
             WAIT 2 after every {pipeline}; bridle, three nodes, durability always (a majority \
             has fsynced when it answers; with WAIT 2 it is all three)\n"
        );
        let table = Table::of(
            settings.rounds,
            1,
            vec![
                (
                    "redis-server, WAIT 2".to_owned(),
                    Box::new(|| drive_by_all(&primary, Ask::SetAndWait, pipeline, window, &theirs))
                        as Box<dyn FnMut() -> Figures>,
                ),
                (
                    "bridle, clients at one node".to_owned(),
                    Box::new(|| drive_by_all(&targets[..1], Ask::Set, pipeline, window, &ours)),
                ),
                (
                    "bridle, clients at all three".to_owned(),
                    Box::new(|| drive_by_all(&targets, Ask::Set, pipeline, window, &ours)),
                ),
            ],
        );
        table.print(1.5);
    }
}
