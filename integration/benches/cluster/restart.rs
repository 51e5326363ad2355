//! Restart time of a node with much data, from its start until it has caught up, while
//! clients keep writing.
//!
//! It has caught up when, by the admin API, each of its replicas runs and lacks at most
//! [`LAG_MAX`] entries, both of the leader's log and of its applied entries; under load
//! the lag is never zero, since some entries are always in flight.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use integration::Client;
use integration::cluster::Cluster;

use crate::driver::{VALUE, Walk, key};
use crate::{KEYS, Settings, median};

const PARTITIONS: usize = 64;
/// Maximum lag of a replica that counts as caught up, entries.
const LAG_MAX: u64 = 64;
/// Downtime of the node.
const AWAY: Duration = Duration::from_secs(5);
/// Number of connections of the load, without pipelining; half of them write through each
/// of the two other nodes.
const LOAD: usize = 8;
/// Maximum time until leaderships return to the node.
const SETTLE: Duration = Duration::from_secs(15);
const GOAL: f64 = 15.0;

pub(crate) fn report(settings: &Settings) {
    let mut cluster = settings.cluster().partitions(PARTITIONS as u32).start();
    let began = Instant::now();
    fill(&cluster, PARTITIONS * settings.keys);
    println!(
        "A node with {PARTITIONS} partitions of {} keys each (written in {:.0} s), killed, \
         {AWAY:?} later started, {LOAD} connections writing all the time\n",
        settings.keys,
        began.elapsed().as_secs_f64()
    );
    let mut turns = Vec::new();
    for _ in 0..settings.rounds {
        turns.push(restart(&mut cluster));
    }
    for (number, turn) in turns.iter().enumerate() {
        println!("- turn {}: {turn:?}", number + 1);
    }
    let took = median(turns.iter().map(|turn| turn.caught_up).collect());
    println!(
        "- caught up after {took:.2} s (goal: at most {GOAL} s; met: {})\n",
        if took <= GOAL { "yes" } else { "NO" }
    );
}

/// Measurements; times in seconds since the start, rates in requests per second.
#[derive(Debug)]
#[expect(dead_code, reason = "all of it is printed")]
struct Turn {
    serves: f64,
    all_run: f64,
    caught_up: f64,
    lag_at_start: u64,
    rate_before: f64,
    rate_meanwhile: f64,
    /// From the start until leaderships have returned, some seconds after it has caught
    /// up: the writers' errors, and the longest wait for a reply.
    errors: u64,
    last_error: String,
    slowest_ms: u64,
}

/// Connections that write all the time and accept errors.
#[derive(Default)]
struct Writers {
    done: AtomicU64,
    errors: AtomicU64,
    slowest_ms: AtomicU64,
    last_error: Mutex<String>,
    stop: AtomicBool,
}

impl Writers {
    fn start(addresses: &[SocketAddr]) -> (Arc<Writers>, StopOnDrop) {
        let writers = Arc::new(Writers::default());
        let start = |number: usize| {
            let (writers, address) = (writers.clone(), addresses[number % addresses.len()]);
            std::thread::spawn(move || writers.write(number, address))
        };
        let threads = (0..LOAD).map(start).collect();
        (writers.clone(), StopOnDrop(writers, threads))
    }

    fn write(&self, number: usize, address: SocketAddr) {
        let mut client = Client::reach(address, Duration::from_secs(60)).expect("a server");
        let mut keys = Walk::new(number, KEYS);
        let value = String::from_utf8_lossy(VALUE).into_owned();
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = client.call(&["SET", &key(keys.next()), &value]).expect("a live server");
            self.slowest_ms.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            if answer.is_error() {
                self.errors.fetch_add(1, Ordering::Relaxed);
                *self.last_error.lock().expect("nobody panics with it") = answer.text();
            } else {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes per second since the last call.
    fn rate_over(&self, window: Duration) -> f64 {
        let before = self.done.load(Ordering::Relaxed);
        std::thread::sleep(window);
        (self.done.load(Ordering::Relaxed) - before) as f64 / window.as_secs_f64()
    }
}

/// Stops the writers while the servers still run.
struct StopOnDrop(Arc<Writers>, Vec<JoinHandle<()>>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        // A panic has been printed already.
        self.1.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn restart(cluster: &mut Cluster) -> Turn {
    let (writers, _stop) = Writers::start(&[cluster.proxy(0), cluster.proxy(1)]);
    let rate_before = writers.rate_over(AWAY);
    cluster.kill(2);
    std::thread::sleep(AWAY);
    let lag_at_start = worst(cluster, 2).map_or(0, |(_, lag)| lag);
    // Errors of the kill are not measured.
    writers.errors.store(0, Ordering::Relaxed);
    writers.slowest_ms.store(0, Ordering::Relaxed);
    let done = writers.done.load(Ordering::Relaxed);
    let began = Instant::now();
    cluster.launch(2);
    let (mut serves, mut all_run, mut caught_up) = (None, None, None);
    while caught_up.is_none() {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "not caught up in two minutes:\n{}",
            cluster.tails()
        );
        std::thread::sleep(Duration::from_millis(50));
        let now = began.elapsed().as_secs_f64();
        if serves.is_none() && answers(cluster.proxy(2)) {
            serves = Some(now);
        }
        let Some((runs, lag)) = worst(cluster, 2) else { continue };
        if runs && all_run.is_none() {
            all_run = Some(now);
        }
        if runs && lag <= LAG_MAX {
            caught_up = Some(now);
        }
    }
    let seconds = |when: Option<f64>| when.unwrap_or(f64::NAN);
    let rate_meanwhile =
        (writers.done.load(Ordering::Relaxed) - done) as f64 / began.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    Turn {
        serves: seconds(serves),
        all_run: seconds(all_run),
        caught_up: seconds(caught_up),
        lag_at_start,
        rate_before,
        rate_meanwhile,
        errors: writers.errors.load(Ordering::Relaxed),
        last_error: writers.last_error.lock().expect("nobody panics with it").clone(),
        slowest_ms: writers.slowest_ms.load(Ordering::Relaxed),
    }
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut client) = Client::reach(address, Duration::from_millis(200)) else { return false };
    client.call(&["GET", "key:000000000001"]).is_ok_and(|answer| !answer.is_error())
}

/// The maximum lag of a process's replicas, if all of them run; `None` when a lag is
/// unknown.
fn worst(cluster: &Cluster, process: usize) -> Option<(bool, u64)> {
    let partitions = cluster.ask("GET", "/v1/tables/db0/partitions", None).ok()?;
    let address = cluster.address(process);
    let (mut runs, mut worst, mut known) = (true, 0, true);
    for partition in partitions.as_array()? {
        let members = partition["members"].as_array()?;
        let own = members.iter().find(|member| member["address"] == address.as_str())?;
        let applied = members.iter().filter_map(|member| member["applied"].as_u64()).max()?;
        runs &= own["state"] == "running";
        let unapplied = applied.saturating_sub(own["applied"].as_u64()?);
        match own["lag"].as_u64() {
            Some(lag) => worst = worst.max(lag).max(unapplied),
            None => known = false,
        }
    }
    (known || !runs).then_some((runs, worst))
}

/// Writes this many keys by several connections in pipelines, keys of a partition
/// together, so that one entry has many.
fn fill(cluster: &Cluster, keys: usize) {
    const BURST: usize = 500;
    const WRITERS: usize = 12;
    let mut by_partition = vec![Vec::new(); PARTITIONS];
    for number in 0..keys {
        let slot = usize::from(row::key::slot(key(number).as_bytes()));
        by_partition[slot * PARTITIONS / 16384].push(number);
    }
    let value = String::from_utf8_lossy(VALUE).into_owned();
    let write = |writer: usize, address: SocketAddr| {
        let value = value.clone();
        let numbers: Vec<usize> =
            by_partition.iter().skip(writer).step_by(WRITERS).flatten().copied().collect();
        std::thread::spawn(move || {
            let mut client = Client::reach(address, Duration::from_secs(60)).expect("a server");
            for numbers in numbers.chunks(BURST) {
                let burst: Vec<Vec<String>> = numbers
                    .iter()
                    .map(|number| vec!["SET".to_owned(), key(*number), value.clone()])
                    .collect();
                let replies = client.pipeline(&burst).expect("a live server");
                assert!(
                    replies.iter().all(|reply| !reply.is_error()),
                    "a write failed: {:?}",
                    replies[0]
                );
            }
        })
    };
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| write(writer, cluster.proxy(writer % cluster.nodes()))).collect();
    writers.into_iter().for_each(|writer| writer.join().expect("a writer does not fail"));
}
