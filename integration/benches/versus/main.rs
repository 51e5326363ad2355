//! Bridle compared with redis-server: same machine, same run, equal and stated
//! durability, ratios.
//!
//! `cargo bench -p integration` (or `make bench`) starts both servers on free ports, runs
//! redis-benchmark against both, alternating, and prints each result with its target.
//! Arguments after `--` select sections: `durable`, `memory`, `idle`, `million`,
//! `steady`, `readers`, `large`, `beside`; none means all. `--requests N` sets the length
//! of one measurement (200,000 by default; four times that in pipelines), `--rounds N`
//! the number of turns (3), of which the median counts, `--keys N` the number of keys of
//! `durable` and `memory` (1 and 100,000, one after the other).
//!
//! `readers`, `large` and `beside` use a driver of their own (`driver.rs`): `--seconds N`
//! is the length of one measurement (5), `--data N,N,..` the MiB of values of `large`
//! (128,1024,4096: they are on disk at the same time), `--rows N` the rows of `beside`
//! (2,000,000).
//!
//! `cpu PATH` compares the built binary with another one instead of redis-server: server
//! CPU per command (`--rounds`, 5; `--seconds`, 5; `--durability`, os).

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::{Client, Server, ServerBuilder};

mod cpu;
mod driver;
mod large;
mod open_loop;
mod readers;

const CLIENTS: usize = 50;
/// Number of keys of a load: redis-benchmark's default, and enough for lookups to matter.
const KEYSPACES: [usize; 2] = [1, 100_000];

fn main() {
    let settings = Settings::from_args();
    if settings.other.is_some() {
        cpu::report(&settings);
    }
    if settings.other.is_some() && settings.sections.is_empty() {
        return;
    }
    println!(
        "{} cores; redis-benchmark, {CLIENTS} connections, median of {} turns\n",
        cores(),
        settings.rounds()
    );
    if settings.wants("durable") {
        durable(&settings);
    }
    if settings.wants("memory") {
        in_memory(&settings);
    }
    if settings.wants("idle") {
        idle();
    }
    if settings.wants("million") {
        million();
    }
    if settings.wants("open_loop") {
        open_loop::report();
    }
    if settings.wants("readers") {
        readers::report(&settings);
    }
    if settings.wants("large") {
        large::report(&settings);
    }
    if settings.wants("beside") {
        large::beside_redis(&settings);
    }
}

struct Settings {
    sections: Vec<String>,
    requests: usize,
    rounds: Option<usize>,
    /// Number of keys of loads.
    keyspaces: Vec<usize>,
    /// Length of a measurement of `readers`, `large`, `beside` and `cpu`.
    window: Duration,
    /// MiB of values of `large`.
    data: Vec<u64>,
    /// Number of rows of `beside`.
    rows: usize,
    /// The other binary of `cpu`.
    other: Option<PathBuf>,
    /// Durability of `cpu`.
    durability: String,
}

impl Settings {
    fn from_args() -> Settings {
        let mut settings = Settings {
            sections: Vec::new(),
            requests: 200_000,
            rounds: None,
            keyspaces: KEYSPACES.to_vec(),
            window: Duration::from_secs(5),
            data: vec![128, 1024, 4096],
            rows: 2_000_000,
            other: None,
            durability: "os".to_owned(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--requests" => settings.requests = number(words.next()),
                "--rounds" => settings.rounds = Some(number(words.next())),
                "--keys" => settings.keyspaces = vec![number(words.next())],
                "--seconds" => settings.window = Duration::from_secs(number(words.next()) as u64),
                "--data" => {
                    let sizes = words.next().unwrap_or_default();
                    settings.data = sizes
                        .split(',')
                        .map(|mib| mib.parse().expect("numbers behind --data"))
                        .collect();
                }
                "--rows" => settings.rows = number(words.next()),
                "--durability" => {
                    settings.durability = words.next().expect("a durability behind the flag");
                }
                "cpu" => {
                    let path = words.next().expect("the path of another binary behind `cpu`");
                    settings.other = Some(PathBuf::from(path));
                }
                // What `cargo bench` adds.
                "--bench" => {}
                section => settings.sections.push(section.to_owned()),
            }
        }
        settings
    }

    /// Turns of a comparison with redis-server.
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(3)
    }

    fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|wanted| wanted == section)
    }
}

fn number(word: Option<String>) -> usize {
    word.and_then(|text| text.parse().ok()).expect("a number behind the flag")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A redis-server for this run.
struct Redis {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Redis {
    fn start(flags: &[&str]) -> Redis {
        let dir = tempfile::tempdir().expect("a directory for redis-server");
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--dir"])
            .arg(dir.path())
            .args(flags)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (make setup-test)");
        let redis = Redis { child, port, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Client::connect(redis.port).and_then(|mut client| client.call(&["PING"])).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        redis
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One kind of load.
struct Load<'a> {
    test: &'a str,
    keys: usize,
    pipeline: usize,
    bytes: usize,
}

/// Requests per second by redis-benchmark.
fn rate(port: u16, load: &Load<'_>, requests: usize) -> f64 {
    let keyspace = load.keys.to_string();
    let over_keys: &[&str] = if load.keys > 1 { &["-r", &keyspace] } else { &[] };
    let output = Command::new("redis-benchmark")
        .args(over_keys)
        .args([
            "-p",
            &port.to_string(),
            "-t",
            load.test,
            "-n",
            &requests.to_string(),
            "-c",
            &CLIENTS.to_string(),
        ])
        .args(["-P", &load.pipeline.to_string(), "-d", &load.bytes.to_string(), "--csv"])
        .output()
        .expect("redis-benchmark is installed (make setup-test)");
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = text
        .lines()
        .rfind(|line| !line.contains("\"test\""))
        .and_then(|line| line.split(',').nth(1));
    figure
        .and_then(|cell| cell.trim_matches('"').parse().ok())
        .unwrap_or_else(|| panic!("redis-benchmark said: {text}"))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Measures both alternately and prints the median rates, the median of the turns'
/// ratios, and the target.
fn compare(bridle: &Server, redis: &Redis, load: &Load<'_>, target: f64, settings: &Settings) {
    let requests = if load.pipeline > 1 { settings.requests * 4 } else { settings.requests };
    let turns: Vec<(f64, f64)> = (0..settings.rounds())
        .map(|_| (rate(redis.port, load, requests), rate(bridle.port, load, requests)))
        .collect();
    let ratio = median(turns.iter().map(|(theirs, ours)| ours / theirs).collect());
    let (theirs, ours) = (
        median(turns.iter().map(|turn| turn.0).collect()),
        median(turns.iter().map(|turn| turn.1).collect()),
    );
    println!(
        "| {:<10} | {:>6} | {:>4} | {:>5} | {:>9.0} | {:>9.0} | {:>5.2} | {:>4.2} | {} |",
        load.test,
        load.keys,
        load.pipeline,
        load.bytes,
        theirs,
        ours,
        ratio,
        target,
        if ratio >= target { "yes" } else { "NO" }
    );
}

/// A server with this durability and memory; the test kit's default is small.
fn bridle(durability: &str, memory: &str) -> Server {
    bridle_builder(durability, memory).start()
}

fn bridle_builder(durability: &str, memory: &str) -> ServerBuilder {
    Server::builder().flag("durability", durability).flag("memory", memory)
}

fn heading(title: &str) {
    println!("{title}\n");
    println!("| command    |   keys | pipe | bytes | redis/s   | bridle/s  | ratio | goal | met |");
    println!("|------------|-------:|-----:|------:|----------:|----------:|------:|-----:|-----|");
}

fn durable(settings: &Settings) {
    let redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let bridle = bridle("always", "auto");
    heading(
        "Every write fsynced before its reply: redis-server appendfsync always, bridle durability \
         always",
    );
    for &keys in &settings.keyspaces {
        for bytes in [64, 1024] {
            for pipeline in [1, 16] {
                for test in ["set", "incr", "hset"] {
                    compare(&bridle, &redis, &Load { test, keys, pipeline, bytes }, 1.0, settings);
                }
            }
        }
    }
    println!();
}

fn in_memory(settings: &Settings) {
    let redis = Redis::start(&["--appendonly", "no"]);
    let bridle = bridle("os", "auto");
    heading(
        "No fsync: redis-server without persistence (a crash loses all), bridle durability os (a \
         crash of the process loses nothing)",
    );
    for (test, pipeline, target) in [("ping_mbulk", 1, 0.8), ("ping_mbulk", 16, 0.5)] {
        compare(&bridle, &redis, &Load { test, keys: 1, pipeline, bytes: 64 }, target, settings);
    }
    for &keys in &settings.keyspaces {
        for (test, pipeline, target) in
            [("set", 1, 0.65), ("set", 16, 0.35), ("get", 1, 0.8), ("get", 16, 0.5)]
        {
            compare(&bridle, &redis, &Load { test, keys, pipeline, bytes: 64 }, target, settings);
        }
    }
    println!();
}

/// CPU seconds used so far and resident bytes of a process.
fn usage(pid: u32) -> (f64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a live process");
    let fields: Vec<&str> =
        stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let ticks: f64 =
        fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let rss =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has one");
    let kilobytes: u64 = rss.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    // The clock tick of /proc is 1/100 s on every Linux that Rust runs on.
    (ticks / 100.0, kilobytes << 10)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn idle() {
    let bridle = bridle("always", "auto");
    let mut client = bridle.client();
    for table in 0..16 {
        client.run(&format!("SELECT {table}"));
        client.run("SET key value");
    }
    std::thread::sleep(Duration::from_secs(3));
    let (began, window) = (usage(bridle.pid()).0, Duration::from_secs(20));
    std::thread::sleep(window);
    let (cpu, rss) = usage(bridle.pid());
    println!("Idle with 16 tables, durability always, over {window:?}\n");
    println!(
        "- CPU: {:.2} % of a core (goal: under 1)",
        (cpu - began) / window.as_secs_f64() * 100.0
    );
    println!("- resident: {:.1} MiB (goal: under 100)\n", megabytes(rss));
}

/// A million keys of 16 bytes with values of 64.
fn fill(port: u16) {
    const KEYS: usize = 1_000_000;
    const BURST: usize = 1000;
    let mut client = Client::connect(port).expect("a server");
    let value = "v".repeat(64);
    for start in (0..KEYS).step_by(BURST) {
        let burst: Vec<Vec<String>> = (start..start + BURST)
            .map(|n| vec!["SET".to_owned(), format!("key:{n:012}"), value.clone()])
            .collect();
        let replies = client.pipeline(&burst).expect("a live server");
        assert!(replies.iter().all(|reply| !reply.is_error()), "a write failed: {:?}", replies[0]);
    }
    assert_eq!(client.run("DBSIZE").int(), KEYS as i64);
}

fn million() {
    let redis = Redis::start(&["--appendonly", "no"]);
    let mut bridle = bridle("always", "64MiB");
    let empty = usage(redis.child.id()).1;
    fill(redis.port);
    fill(bridle.port);
    // Both have freed the memory that only loading needed.
    std::thread::sleep(Duration::from_secs(5));
    let (theirs, ours) = (usage(redis.child.id()).1, usage(bridle.pid()).1);
    let restart = bridle.restart();
    let mut client = bridle.client();
    assert_eq!(client.run("DBSIZE").int(), 1_000_000);
    println!("A million keys (16 bytes, values 64 bytes), memory = \"64MiB\"\n");
    println!(
        "- redis-server resident: {:.1} MiB ({:.1} when empty)",
        megabytes(theirs),
        megabytes(empty)
    );
    println!(
        "- bridle resident: {:.1} MiB, all caches included: {:.2} of redis-server's (goal: at \
         most 0.33)",
        megabytes(ours),
        ours as f64 / theirs as f64
    );
    println!("- on disk: {:.1} MiB", megabytes(directory_bytes(bridle.dir())));
    println!(
        "- killed and restarted: serves after {:.2} s (goal: under 3)\n",
        restart.as_secs_f64()
    );
}

fn directory_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => directory_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
