//! Calls per second and CPU time per call over loopback, both sides in this process:
//! `cargo run --release -p cluster --example net_speed`.
//!
//! Two worker threads, bodies of 100 bytes, echoed. `now`: answered on the reading task;
//! `later`: by a task of its own.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "prints what it measures, and may fail"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::ServerId;
use cluster::net::{Channel, Destination, Net, NetOptions, Peer, Service, ServiceReply, Services};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Echo;

impl Services for Echo {
    fn call(&self, _: &Peer, service: Service, body: Bytes) -> ServiceReply {
        match service {
            Service::Rows => ServiceReply::Now(Ok(body)),
            _ => ServiceReply::Later(Box::pin(async move { Ok(body) })),
        }
    }

    fn channel(&self, _: &Peer, _: Service, _: Bytes, _: Channel) {}
}

/// CPU time of this process, ticks of 10 ms from its stat file.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    Duration::from_millis(
        10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()),
    )
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(2.0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = Net::new(NetOptions::new(ServerId(2), &address)).unwrap();
    tokio::spawn(
        async move { served.serve(listener, Arc::new(Echo), CancellationToken::new()).await },
    );
    let net = Net::new(NetOptions::new(ServerId(1), "nowhere:1")).unwrap();
    net.set_address(ServerId(2), &address);
    println!("answer  in flight    calls/s  CPU us/call    p50 us    p99 us");
    for service in [Service::Rows, Service::Raft] {
        for in_flight in [1usize, 8, 50, 512] {
            measure(&net, service, in_flight, Duration::from_secs_f64(0.3)).await;
            let (calls, took, used, mut waits) =
                measure(&net, service, in_flight, Duration::from_secs_f64(seconds)).await;
            waits.sort_unstable();
            let at = |share: f64| waits[(waits.len() as f64 * share) as usize].as_secs_f64() * 1e6;
            let name = if service == Service::Rows { "now" } else { "later" };
            println!(
                "{name:6} {in_flight:10} {:10.0} {:12.2} {:9.0} {:9.0}",
                calls as f64 / took.as_secs_f64(),
                used.as_secs_f64() * 1e6 / calls as f64,
                at(0.5),
                at(0.99)
            );
        }
    }
}

async fn measure(
    net: &Arc<Net>,
    service: Service,
    in_flight: usize,
    length: Duration,
) -> (u64, Duration, Duration, Vec<Duration>) {
    let (started, cpu_before) = (Instant::now(), cpu());
    let callers: Vec<_> = (0..in_flight)
        .map(|_| {
            let net = net.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![1; 100]);
                let (mut calls, mut waits) = (0u64, Vec::new());
                while started.elapsed() < length {
                    let asked = Instant::now();
                    net.call(
                        Destination::Server(ServerId(2)),
                        service,
                        body.clone(),
                        Duration::from_secs(10),
                    )
                    .await
                    .unwrap();
                    calls += 1;
                    if calls.is_multiple_of(8) {
                        waits.push(asked.elapsed());
                    }
                }
                (calls, waits)
            })
        })
        .collect();
    let (mut calls, mut waits) = (0, Vec::new());
    for caller in callers {
        let (made, waited) = caller.await.unwrap();
        calls += made;
        waits.extend(waited);
    }
    (calls, started.elapsed(), cpu() - cpu_before, waits)
}
