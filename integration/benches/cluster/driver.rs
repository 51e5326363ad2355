//! A closed-loop load: connections send their next requests as soon as the last are
//! answered, all on one thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{cpu_seconds, own_cpu_seconds};
use crate::{CLIENTS, KEYS};

/// The address and the keys of some of the connections.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) keys: Arc<[String]>,
}

impl Target {
    pub(crate) fn new(address: SocketAddr) -> Target {
        Target { address, keys: all_keys() }
    }
}

/// Keys named as by redis-benchmark.
pub(crate) fn key(number: usize) -> String {
    format!("key:{number:012}")
}

pub(crate) fn all_keys() -> Arc<[String]> {
    (0..KEYS).map(key).collect()
}

/// Commands of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// SET of 64 bytes.
    Set,
    /// SETs of 64 bytes and then one WAIT for two replicas, sent together.
    SetAndWait,
    /// GET.
    Get,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) ask: Ask,
    pub(crate) connections: usize,
    /// Requests sent at once; the next follow when all are answered.
    pub(crate) pipeline: usize,
    pub(crate) window: Duration,
}

/// Result of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Requests per second; WAITs are not counted.
    pub(crate) rate: f64,
    /// Median time from sending to the last answer.
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// CPU time of the driver per request, microseconds.
    pub(crate) driver_us: f64,
    /// CPU time of the servers per request, microseconds.
    pub(crate) servers_us: f64,
}

impl Figures {
    /// The result of exchanges of `each` requests with these times.
    pub(crate) fn of(
        mut took: Vec<Duration>,
        each: usize,
        elapsed: Duration,
        driver: f64,
        servers: f64,
    ) -> Figures {
        assert!(!took.is_empty(), "nothing was answered");
        took.sort_unstable();
        let requests = (took.len() * each) as f64;
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        let (driver_us, servers_us) = (driver * 1e6 / requests, servers * 1e6 / requests);
        Figures {
            rate: requests / elapsed.as_secs_f64(),
            p50: at(0.5),
            p99: at(0.99),
            driver_us,
            servers_us,
        }
    }
}

/// Drives servers; their process ids are given for their CPU time.
///
/// # Panics
/// When a connection fails or a request is answered with an error.
pub(crate) fn drive(targets: &[Target], load: Load, pids: &[u32]) -> Figures {
    on_one_thread(load.connections, load.window, pids, load.pipeline, |number, stop| {
        let target = targets[number % targets.len()].clone();
        converse(target, load, number, stop)
    })
}

/// [`drive`] with [`CLIENTS`] connections.
pub(crate) fn drive_by_all(
    targets: &[Target],
    ask: Ask,
    pipeline: usize,
    window: Duration,
    pids: &[u32],
) -> Figures {
    drive(targets, Load { ask, connections: CLIENTS, pipeline, window }, pids)
}

/// Runs many connections on this thread for a while; each returns the times of its
/// exchanges.
pub(crate) fn on_one_thread<F>(
    connections: usize,
    window: Duration,
    pids: &[u32],
    each: usize,
    mut converse: impl FnMut(usize, Arc<AtomicBool>) -> F,
) -> Figures
where
    F: Future<Output = Vec<Duration>> + 'static,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (before, own_before, began) = (cpu_seconds(pids), own_cpu_seconds(), Instant::now());
    let stop = Arc::new(AtomicBool::new(false));
    let all = tokio::task::LocalSet::new();
    let took = all.block_on(&runtime, async {
        let tasks: Vec<_> = (0..connections)
            .map(|number| tokio::task::spawn_local(converse(number, stop.clone())))
            .collect();
        tokio::time::sleep(window).await;
        stop.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.expect("a connection does not fail"));
        }
        took
    });
    Figures::of(
        took,
        each,
        began.elapsed(),
        own_cpu_seconds() - own_before,
        cpu_seconds(pids) - before,
    )
}

async fn converse(
    target: Target,
    load: Load,
    number: usize,
    stop: Arc<AtomicBool>,
) -> Vec<Duration> {
    let mut socket = TcpStream::connect(target.address).await.expect("a server");
    socket.set_nodelay(true).expect("a TCP socket");
    let (mut request, mut answer) = (Vec::new(), Vec::with_capacity(64 << 10));
    let replies = load.pipeline + usize::from(load.ask == Ask::SetAndWait);
    let mut keys = Walk::new(number, target.keys.len());
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        request.clear();
        (0..load.pipeline)
            .for_each(|_| write_request(&mut request, load.ask, &target.keys[keys.next()]));
        if load.ask == Ask::SetAndWait {
            request.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$1\r\n0\r\n");
        }
        let began = Instant::now();
        socket.write_all(&request).await.expect("a live server");
        answer.clear();
        let (mut seen, mut at) = (0, 0);
        while seen < replies {
            let read = socket.read_buf(&mut answer).await.expect("a live server");
            assert!(read > 0, "the server closed a connection");
            while let Some(end) = end_of_reply(&answer, at) {
                (seen, at) = (seen + 1, end);
            }
        }
        assert!(
            load.ask != Ask::SetAndWait || answer.ends_with(b":2\r\n"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        took.push(began.elapsed());
    }
    took
}

/// Numbers below a bound, in an order without a pattern for caches.
pub(crate) struct Walk {
    state: u64,
    bound: usize,
}

impl Walk {
    pub(crate) fn new(seed: usize, bound: usize) -> Walk {
        assert!(bound > 0, "there are keys to walk over");
        Walk { state: seed as u64 * 0x9e37_79b9 + 1, bound }
    }

    pub(crate) fn next(&mut self) -> usize {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % self.bound
    }
}

/// The value of every SET: 64 bytes.
pub(crate) const VALUE: &[u8; 64] = &[b'v'; 64];

pub(crate) fn write_request(request: &mut Vec<u8>, ask: Ask, key: &str) {
    request.extend_from_slice(if ask == Ask::Get {
        b"*2\r\n$3\r\nGET\r\n$"
    } else {
        b"*3\r\n$3\r\nSET\r\n$"
    });
    request.extend_from_slice(key.len().to_string().as_bytes());
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(key.as_bytes());
    if ask != Ask::Get {
        request.extend_from_slice(b"\r\n$64\r\n");
        request.extend_from_slice(VALUE);
    }
    request.extend_from_slice(b"\r\n");
}

/// End of the reply that begins at `at`, if it is complete. Knows the replies of SET, GET
/// and WAIT.
fn end_of_reply(answer: &[u8], at: usize) -> Option<usize> {
    let line = answer.get(at..)?.iter().position(|byte| *byte == b'\n')?;
    let text = &answer[at..at + line - 1];
    let end = at + line + 1;
    match text[0] {
        b'+' | b':' => Some(end),
        b'$' if text == b"$-1" => Some(end),
        b'$' => {
            let length: usize = std::str::from_utf8(&text[1..])
                .ok()
                .and_then(|text| text.parse().ok())
                .expect("a length");
            Some(end + length + 2).filter(|end| *end <= answer.len())
        }
        _ => panic!("answered: {}", String::from_utf8_lossy(text)),
    }
}
