//! Histories of clients are linearizable while processes are killed, frozen and cut off.
//!
//! `BRIDLE_LIN_SECONDS` sets the duration of each run on a cluster (`make soak`: a fifth
//! of its time), `BRIDLE_SEED` repeats the random choices of a run.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use integration::cluster::Cluster;
use integration::lin::Limits;
use integration::nemesis::{self, Fault, Nemesis};
use integration::netns::Network;
use integration::workload::{Rng, Workload, WorkloadOptions, check_all, seed};
use integration::{Client, Server, within};

/// Duration of a run on a cluster.
fn time() -> Duration {
    Duration::from_secs(
        std::env::var("BRIDLE_LIN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(35),
    )
}

#[test]
fn one_process_is_linearizable_under_kills_and_freezes() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut server =
        Server::builder().flag("durability", "always").config("[tables]\npartitions = 4\n").start();
    let workload = Workload::start(WorkloadOptions::new(
        vec![SocketAddr::from(([127, 0, 0, 1], server.port))],
        seed,
    ));
    let (end, mut kills, mut freezes) = (Instant::now() + Duration::from_secs(20), 0, 0);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100 + rng.below(900)));
        if rng.below(3) == 0 {
            server.signal("STOP");
            std::thread::sleep(Duration::from_millis(50 + rng.below(1_500)));
            server.signal("CONT");
            freezes += 1;
        } else {
            server.kill();
            server.restart();
            kills += 1;
        }
    }
    let seen = workload.finish();
    eprintln!("{kills} kills, {freezes} freezes");
    assert!(
        seen.answered > 1_000 && seen.unknown > 0,
        "the test shows nothing: {} answered, {} unknown",
        seen.answered,
        seen.unknown
    );
    check_all(&seen, &Limits::default()).assert_linearizable();
}

/// A server without durability: it is empty after a restart.
fn forgetful(port: u16) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--save", "", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = command.spawn().expect("redis-server starts");
    within(10, "redis-server answers", || Client::connect(port).is_ok());
    child
}

#[test]
fn lost_writes_are_caught() {
    let seed = seed();
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let mut server = forgetful(port);
    let workload =
        Workload::start(WorkloadOptions::new(vec![SocketAddr::from(([127, 0, 0, 1], port))], seed));
    std::thread::sleep(Duration::from_secs(1));
    let end =
        |server: &mut Child| server.kill().and_then(|()| server.wait()).expect("our own child");
    end(&mut server);
    let mut server = forgetful(port);
    std::thread::sleep(Duration::from_secs(1));
    let seen = workload.finish();
    end(&mut server);
    let result = check_all(&seen, &Limits::default());
    assert!(
        result.violations.len() * 2 > result.linearizable,
        "{} of {} keys caught",
        result.violations.len(),
        seen.keys.len()
    );
    eprintln!("for example {}: {}", result.violations[0].0, result.violations[0].1);
}

/// Runs clients of all processes of a cluster while these faults are injected.
fn run(mut cluster: Cluster, network: Option<Arc<Network>>, faults: &[Fault], seed: u64) {
    let workload = Workload::start(WorkloadOptions::new(cluster.all_proxies(), seed));
    Nemesis::new(faults, seed, network).run(&mut cluster, time());
    let seen = workload.finish();
    assert!(seen.answered > 1_000, "the test shows nothing: {} answered", seen.answered);
    check_all(&seen, &Limits::default()).assert_linearizable();
}

#[test]
fn a_cluster_is_linearizable_under_kills_and_transfers() {
    let seed = seed();
    run(Cluster::builder().proxies(1).start(), None, &nemesis::PROCESSES, seed);
}

#[test]
fn a_cluster_is_linearizable_under_network_faults() {
    let seed = seed();
    let Some(network) = Network::if_allowed(3, seed).map(Arc::new) else { return };
    let faults =
        [&nemesis::NETWORK[..], &[Fault::KillLeader, Fault::Transfer, Fault::ThereAndBack]]
            .concat();
    run(Cluster::builder().network(&network).start(), Some(network), &faults, seed);
}

#[test]
fn a_cluster_is_linearizable_under_clock_jumps() {
    let seed = seed();
    run(
        Cluster::builder().clocks().start(),
        None,
        &[Fault::Clock, Fault::Clock, Fault::KillLeader, Fault::Transfer, Fault::ThereAndBack],
        seed,
    );
}
