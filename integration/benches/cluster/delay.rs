//! Latency of SET with links of half a millisecond: at least one round trip and one
//! fsync.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use integration::netns::{Link, Network};

use crate::driver::{Ask, Load, drive};
use crate::process::Redis;
use crate::proxy::keys_led_by;
use crate::{CLIENTS, Settings, median};

/// Delay in each direction.
const DELAY: Duration = Duration::from_micros(500);
/// Number of measurements of a round trip and of an fsync.
const SAMPLES: u64 = 500;

pub(crate) fn report(settings: &Settings) {
    println!(
        "Three nodes in network namespaces, {DELAY:?} each way between them, durability always; \
         the client is beside the leader\n"
    );
    // Places 1 to 3 are the nodes; place 4 only serves to measure a round trip.
    let network = match Network::new(4, 1) {
        Ok(network) => Arc::new(network),
        Err(error) => return println!("not measured: no network namespaces here: {error}\n"),
    };
    let slow = Link { delay: DELAY, ..Link::default() };
    for (one, other) in [(1, 2), (1, 3), (2, 3), (0, 4)] {
        network.set_both(one, other, slow);
    }
    let echo = Redis::start_at(
        IpAddr::V4(network.address(4)),
        &network.wrapper(4),
        &["--appendonly", "no"],
    );
    let cluster = settings.cluster().network(&network).start();
    let led = keys_led_by(&cluster, 0);
    let mut turns = Vec::new();
    for _ in 0..settings.rounds {
        let (trip, sync) = (round_trip(&echo), fsync());
        let load = |connections| Load {
            ask: Ask::Set,
            connections,
            pipeline: 1,
            window: settings.window(),
        };
        let alone = drive(std::slice::from_ref(&led), load(1), &cluster.pids());
        let crowd = drive(std::slice::from_ref(&led), load(CLIENTS), &cluster.pids());
        turns.push([
            trip,
            sync,
            alone.p50.as_secs_f64(),
            alone.p99.as_secs_f64(),
            crowd.p50.as_secs_f64(),
            crowd.rate,
        ]);
    }
    let of = |figure: usize| median(turns.iter().map(|turn| turn[figure]).collect());
    let ratio = median(turns.iter().map(|turn| turn[2] / (turn[0] + turn[1])).collect());
    println!(
        "- one round trip: {:.3} ms (PING of a redis-server over such a link); one fsync: {:.3} ms",
        of(0) * 1e3,
        of(1) * 1e3
    );
    println!("- SET, one connection: p50 {:.3} ms, p99 {:.3} ms", of(2) * 1e3, of(3) * 1e3);
    let verdict = if ratio <= 2.0 { "yes" } else { "NO" };
    println!(
        "- p50 is {ratio:.2} times a round trip and an fsync (goal: at most 2; met: {verdict})"
    );
    println!(
        "- SET, {CLIENTS} connections: p50 {:.3} ms, {:.0} requests/s (no goal)\n",
        of(4) * 1e3,
        of(5)
    );
}

/// The median round trip time of a delayed link, seconds.
fn round_trip(echo: &Redis) -> f64 {
    let mut client = echo.client().expect("a server");
    let mut once = || {
        let began = Instant::now();
        client.call(&["PING"]).expect("a live server");
        began.elapsed().as_secs_f64()
    };
    median((0..SAMPLES).map(|_| once()).collect())
}

/// The median time of a small write into a preallocated file and an fdatasync, seconds:
/// the work of a log, alone on the disk.
fn fsync() -> f64 {
    let dir = tempfile::tempdir().expect("a directory on the disk that the nodes use");
    let file = File::create(dir.path().join("log")).expect("room for a file");
    file.write_all_at(&vec![0; 1 << 20], 0)
        .and_then(|()| file.sync_all())
        .expect("room for a file");
    let once = |number: u64| {
        let began = Instant::now();
        file.write_all_at(&[1; 200], number * 200)
            .and_then(|()| file.sync_data())
            .expect("room for a file");
        began.elapsed().as_secs_f64()
    };
    median((0..SAMPLES).map(once).collect())
}
