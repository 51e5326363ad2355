//! Replicated writes compared with other systems of three copies: same machine, same run,
//! equal and stated durability, ratios.
//!
//! `cargo bench -p integration --bench cluster` (or `make bench-cluster`) starts clusters
//! of real processes on free ports and prints each figure with its target. Words after
//! `--` pick sections: `etcd`, `replicas`, `proxy`, `delay`, `restart`, `idle`; none =
//! all. `--seconds N` is the length of one measurement by our own driver (5),
//! `--requests N` that of one by redis-benchmark (100,000), `--rounds N` the number of
//! turns (3), of which the median counts; `--partitions N` how many partitions the table
//! has in `etcd`, `replicas`, `proxy` and `delay` (1: etcd and a Redis primary put all
//! writes in one order, too; a new table has 8 otherwise); `--keys N` how many
//! keys each partition of `restart` has (100,000); `--bridle FILE` measures another
//! binary than the one just built. How long a failover takes is measured by
//! `integration/tests/failover.rs`.
//!
//! # The driver
//! [`driver`]: one thread, plain sockets, the same code for all servers with RESP; etcd
//! gets its own gRPC, by `h2` and hand-written messages, which costs the driver more per
//! request than RESP. The tables show the CPU time of the driver and of the servers: on
//! two cores the servers can't use what the driver takes.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod delay;
mod driver;
mod etcd;
mod idle;
mod process;
mod proxy;
mod replicas;
mod restart;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use integration::cluster::{Cluster, ClusterBuilder};

/// Number of connections of every throughput measurement.
const CLIENTS: usize = 50;
/// Number of keys of loads.
const KEYS: usize = 100_000;

fn main() {
    let settings = Settings::from_args();
    println!(
        "{} cores; {CLIENTS} connections, values of 64 bytes, {KEYS} keys; medians of {} turns; \
         tables of {} partitions\n",
        cores(),
        settings.rounds,
        settings.partitions
    );
    let sections: [(&str, fn(&Settings)); 6] = [
        ("etcd", etcd::report),
        ("replicas", replicas::report),
        ("proxy", proxy::report),
        ("delay", delay::report),
        ("restart", restart::report),
        ("idle", idle::report),
    ];
    for (name, report) in sections {
        if settings.sections.is_empty() || settings.sections.iter().any(|wanted| wanted == name) {
            report(&settings);
        }
    }
}

struct Settings {
    sections: Vec<String>,
    seconds: u64,
    requests: usize,
    rounds: usize,
    keys: usize,
    partitions: u32,
    bridle: Option<PathBuf>,
}

impl Settings {
    fn from_args() -> Settings {
        let mut settings = Settings {
            sections: Vec::new(),
            seconds: 5,
            requests: 100_000,
            rounds: 3,
            keys: 100_000,
            partitions: 1,
            bridle: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--seconds" => settings.seconds = number(words.next()) as u64,
                "--requests" => settings.requests = number(words.next()),
                "--rounds" => settings.rounds = number(words.next()),
                "--keys" => settings.keys = number(words.next()),
                "--partitions" => settings.partitions = number(words.next()) as u32,
                "--bridle" => settings.bridle = words.next().map(PathBuf::from),
                // What `cargo bench` adds.
                "--bench" => {}
                section => settings.sections.push(section.to_owned()),
            }
        }
        settings
    }

    /// Duration of a measurement.
    fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Three nodes, three replicas, durability `always`.
    fn cluster(&self) -> ClusterBuilder {
        let builder = Cluster::builder().partitions(self.partitions).set("node.memory=512MiB");
        match &self.bridle {
            Some(program) => builder.program(program.clone()),
            None => builder,
        }
    }
}

fn number(word: Option<String>) -> usize {
    word.and_then(|text| text.parse().ok()).expect("a number behind the flag")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
