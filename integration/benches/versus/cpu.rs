//! Server CPU per command, the built binary against another: the price of a change.

use std::path::PathBuf;
use std::time::Duration;

use integration::{Server, binary};

use crate::driver::Rows;
use crate::{CLIENTS, Load, Settings, bridle_builder, median, rate, usage};

/// Turns of each measurement without `--rounds`.
const ROUNDS: usize = 5;
/// The largest ratio that counts as equal.
const RATIO_MAX: f64 = 1.03;
/// Bytes of a value.
const BYTES: usize = 64;
/// The longest wait for the work that a load leaves behind.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Measures both binaries alternately, each on a directory of its own, and prints the
/// median CPU per command of each, the median of the turns' ratios and a verdict.
pub(crate) fn report(settings: &Settings) {
    let path = settings.other.as_ref().expect("the path of another binary behind `cpu`");
    assert!(path.is_file(), "no binary at {} (benchmarks run in integration/)", path.display());
    let rounds = settings.rounds.unwrap_or(ROUNDS);
    let keys = *settings.keyspaces.last().expect("a number of keys");
    println!(
        "User and system CPU of the server per command, durability {}, memory auto: {CLIENTS} \
         connections, {keys} keys, values of {BYTES} bytes,",
        settings.durability
    );
    println!("median of {rounds} alternating turns of about {:?}", settings.window);
    println!("- other: {}\n- this: {}\n", path.display(), binary().display());
    println!(
        "| command | pipe | commands  | other µs | this µs | ratio | of turns      | within 3 % |"
    );
    println!(
        "|---------|-----:|----------:|---------:|--------:|------:|---------------|------------|"
    );
    let [other, this] = [path.clone(), binary()].map(|path| start(path, settings));
    let rows = Rows::new(keys as u64, BYTES as u64..=BYTES as u64);
    for server in [&other, &this] {
        rows.fill(server.port);
    }
    let mut beyond = 0;
    for pipeline in [1, 16] {
        for test in ["get", "set", "incr", "hset"] {
            let load = Load { test, keys, pipeline, bytes: BYTES };
            let ratio = compare(&other, &this, &load, rounds, settings.window);
            beyond += usize::from(ratio > RATIO_MAX);
        }
    }
    match beyond {
        0 => println!("\nWithin 3 %: yes\n"),
        _ => println!("\nWithin 3 %: NO, {beyond} of 8 are beyond\n"),
    }
}

fn start(binary: PathBuf, settings: &Settings) -> Server {
    bridle_builder(&settings.durability, "auto").binary(&binary).start()
}

/// Prints one line and returns its ratio.
fn compare(other: &Server, this: &Server, load: &Load<'_>, rounds: usize, window: Duration) -> f64 {
    // The warm-up makes the counters and fields, and tells the length of a turn.
    let warm_up = load.keys.max(10_000) * load.pipeline.min(4);
    let rates = [other, this].map(|server| rate(server.port, load, warm_up));
    let requests = (rates[0].min(rates[1]) * window.as_secs_f64()) as usize;
    [other, this].into_iter().for_each(settle);
    let mut turns = Vec::new();
    for turn in 0..rounds {
        // Whichever comes first in one turn comes last in the next.
        let (theirs, ours);
        if turn.is_multiple_of(2) {
            theirs = cpu_micros(other, load, requests);
            ours = cpu_micros(this, load, requests);
        } else {
            ours = cpu_micros(this, load, requests);
            theirs = cpu_micros(other, load, requests);
        }
        turns.push((theirs, ours));
    }
    let mut ratios: Vec<f64> = turns.iter().map(|(theirs, ours)| ours / theirs).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = median(ratios.clone());
    println!(
        "| {:<7} | {:>4} | {:>9} | {:>8.2} | {:>7.2} | {:>5.3} | {:.3} - {:.3} | {:<10} |",
        load.test,
        load.pipeline,
        requests,
        median(turns.iter().map(|turn| turn.0).collect()),
        median(turns.iter().map(|turn| turn.1).collect()),
        ratio,
        ratios[0],
        ratios[ratios.len() - 1],
        if ratio <= RATIO_MAX { "yes" } else { "NO" }
    );
    ratio
}

/// CPU per command of one load, with the flushes and compactions that it causes,
/// microseconds. The clock ticks of 10 ms are less than 1 % of a turn of a few seconds.
fn cpu_micros(server: &Server, load: &Load<'_>, requests: usize) -> f64 {
    let began = usage(server.pid()).0;
    rate(server.port, load, requests);
    settle(server);
    (usage(server.pid()).0 - began) * 1e6 / requests as f64
}

/// Waits until a server uses nearly no CPU.
fn settle(server: &Server) {
    const PAUSE: Duration = Duration::from_millis(100);
    let mut waited = Duration::ZERO;
    let mut before = usage(server.pid()).0;
    while waited < SETTLE_TIMEOUT {
        std::thread::sleep(PAUSE);
        waited += PAUSE;
        let now = usage(server.pid()).0;
        if now - before < 0.015 {
            return;
        }
        before = now;
    }
}
