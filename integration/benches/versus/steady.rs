//! Latency under a steady load of half of the peak: requests are due at fixed moments whether or not earlier ones were answered, and latency
//! counts from the moment a request was due, so that a stall is felt by everyone it would have hit.

use std::time::{Duration, Instant};

use integration::{Client, Server};

const CONNECTIONS: usize = 50;
const MEASURE: Duration = Duration::from_secs(10);

/// Measures SET and GET and prints percentiles.
pub(crate) fn report() {
    println!("Steady load at half of the peak, {CONNECTIONS} connections, {MEASURE:?}, latency from the moment a request was due\n");
    println!("| durability | command | peak/s | load/s | p50 ms | p99 ms | p99/p50 (goal: under 5) |");
    println!("|------------|---------|-------:|-------:|-------:|-------:|------------------------:|");
    for durability in ["always", "os"] {
        let server = Server::builder().flag("durability", durability).start();
        for command in ["SET", "GET"] {
            let peak = drive(server.port, command, None).len() as f64 / MEASURE.as_secs_f64();
            let mut latencies = drive(server.port, command, Some(peak / 2.0));
            latencies.sort_unstable();
            let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
            let (p50, p99) = (at(0.5), at(0.99));
            println!(
                "| {durability:<10} | {command:<7} | {peak:>6.0} | {:>6.0} | {p50:>6.3} | {p99:>6.3} | {:>23.2} |",
                latencies.len() as f64 / MEASURE.as_secs_f64(),
                p99 / p50
            );
        }
    }
    println!();
}

/// Latencies of one load; without a rate each connection sends as soon as it is answered.
fn drive(port: u16, command: &'static str, rate: Option<f64>) -> Vec<Duration> {
    let began = Instant::now() + Duration::from_millis(100);
    let threads: Vec<_> = (0..CONNECTIONS).map(|me| std::thread::spawn(move || connection(port, command, rate, me, began))).collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("a connection does not fail")).collect()
}

fn connection(port: u16, command: &str, rate: Option<f64>, me: usize, began: Instant) -> Vec<Duration> {
    let mut client = Client::connect(port).expect("a server");
    let period = rate.map(|rate| Duration::from_secs_f64(CONNECTIONS as f64 / rate));
    let mut due = began + period.unwrap_or_default().mul_f64(me as f64 / CONNECTIONS as f64);
    let mut latencies = Vec::new();
    let value = "v".repeat(64);
    let mut n = me;
    while began.elapsed() < MEASURE || Instant::now() < began {
        match period {
            Some(period) => {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due += period;
            }
            None => due = Instant::now(),
        }
        let from = period.map_or(due, |period| due - period);
        n = (n * 7919 + 1) % 100_000;
        let key = format!("key:{n:012}");
        let words: &[&str] = if command == "SET" { &["SET", &key, &value] } else { &["GET", &key] };
        client.call(words).expect("a live server");
        latencies.push(from.elapsed());
    }
    latencies
}
