//! A closed-loop load with incompressible values and keys by a distribution: connections
//! send their next requests as soon as the last are answered, all on one thread.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Incompressible bytes, of which values are slices.
const NOISE_BYTES: usize = 1 << 20;

/// Distribution of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Uniform.
    Uniform,
    /// Zipfian as in YCSB (exponent 0.99): of a million keys, some 4,000 get half of all
    /// requests.
    Zipfian,
}

impl Spread {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Spread::Uniform => "uniform",
            Spread::Zipfian => "zipfian",
        }
    }
}

/// Commands of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Get,
    Set,
    /// Sequential.
    Mixed,
}

impl Ask {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Ask::Get => "get",
            Ask::Set => "set",
            Ask::Mixed => "mixed",
        }
    }
}

/// The rows: `key:000000000000` to one below the number of keys, each with a value of a
/// length of its own.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) keys: u64,
    lengths: RangeInclusive<u64>,
    noise: Rc<Vec<u8>>,
    /// Of [`Spread::Zipfian`]: the sum of 1 / i^0.99 over all keys.
    zeta: f64,
}

const THETA: f64 = 0.99;

/// splitmix64 (Steele, Lea, Flood 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rows {
    /// This many rows, with values of these lengths.
    pub(crate) fn new(keys: u64, lengths: RangeInclusive<u64>) -> Rows {
        let noise = (0..NOISE_BYTES as u64 / 8).flat_map(|word| mix(word).to_ne_bytes()).collect();
        let zeta = (1..=keys).map(|rank| (rank as f64).powf(-THETA)).sum();
        Rows { keys, lengths, noise: Rc::new(noise), zeta }
    }

    /// A key, by 64 random bits.
    fn draw(&self, spread: Spread, random: u64) -> u64 {
        match spread {
            Spread::Uniform => random % self.keys,
            // Gray et al., Quickly Generating Billion-Record Synthetic Databases (1994),
            // as in YCSB; which keys are the frequent ones is scrambled.
            Spread::Zipfian => {
                let (keys, share) =
                    (self.keys as f64, (random >> 11) as f64 / (1_u64 << 53) as f64);
                let second = 1.0 + 0.5_f64.powf(THETA);
                let rank = match share * self.zeta {
                    one if one < 1.0 => 0,
                    two if two < second => 1,
                    _ => {
                        let eta =
                            (1.0 - (2.0 / keys).powf(1.0 - THETA)) / (1.0 - second / self.zeta);
                        (keys * (eta * share - eta + 1.0).powf(1.0 / (1.0 - THETA))) as u64
                    }
                };
                mix(rank) % self.keys
            }
        }
    }

    fn push_get(&self, request: &mut Vec<u8>, key: u64) {
        request
            .extend_from_slice(format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{key:012}\r\n").as_bytes());
    }

    fn push_set(&self, request: &mut Vec<u8>, key: u64, version: u64) {
        let (least, most) = (*self.lengths.start(), *self.lengths.end());
        let length = least + mix(key) % (most - least + 1);
        let from = (mix(key ^ version) % (NOISE_BYTES as u64 - length)) as usize;
        request.extend_from_slice(
            format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${length}\r\n").as_bytes(),
        );
        request.extend_from_slice(&self.noise[from..from + length as usize]);
        request.extend_from_slice(b"\r\n");
    }

    /// Writes all rows.
    pub(crate) fn fill(&self, port: u16) {
        const CONNECTIONS: u64 = 8;
        const BURST: u64 = 64;
        on_one_thread(async {
            let fill = |part: u64| {
                let rows = self.clone();
                async move {
                    let mut connection = Connection::open(port).await;
                    let mut next = part * BURST;
                    while next < rows.keys {
                        let burst = next..(next + BURST).min(rows.keys);
                        let count = (burst.end - burst.start) as usize;
                        burst.for_each(|key| rows.push_set(&mut connection.request, key, 0));
                        connection.exchange(count).await;
                        next += BURST * CONNECTIONS;
                    }
                }
            };
            let parts: Vec<_> =
                (0..CONNECTIONS).map(|part| tokio::task::spawn_local(fill(part))).collect();
            for part in parts {
                part.await.expect("a connection does not fail");
            }
        });
    }
}

/// A load.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) ask: Ask,
    pub(crate) spread: Spread,
    pub(crate) connections: usize,
    /// Requests sent at once; the next follow when all are answered.
    pub(crate) pipeline: usize,
    pub(crate) window: Duration,
}

/// Result of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) rate: f64,
    /// From sending to the last answer.
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Drives a server with several simultaneous loads; returns the result of each.
pub(crate) fn drive(port: u16, rows: &Rows, loads: &[Load]) -> Vec<Figures> {
    on_one_thread(async {
        let mut running = Vec::new();
        for (number, load) in loads.iter().enumerate() {
            let start = |connection: usize| {
                let seed = mix((number << 32 | connection) as u64 ^ u64::from(std::process::id()));
                tokio::task::spawn_local(converse(port, rows.clone(), load.clone(), seed))
            };
            running.push((0..load.connections).map(start).collect::<Vec<_>>());
        }
        let mut all = Vec::new();
        for (load, connections) in loads.iter().zip(running) {
            let mut took = Vec::new();
            for connection in connections {
                took.extend(connection.await.expect("a connection does not fail"));
            }
            took.sort_unstable();
            let at = |share: f64| {
                took.get(((took.len().max(1) - 1) as f64 * share) as usize)
                    .copied()
                    .unwrap_or_default()
            };
            let requests = (took.len() * load.pipeline) as u64;
            all.push(Figures {
                requests,
                rate: requests as f64 / load.window.as_secs_f64(),
                p50: at(0.5),
                p99: at(0.99),
            });
        }
        all
    })
}

fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// The exchanges of one connection; returns the time of each.
async fn converse(port: u16, rows: Rows, load: Load, mut random: u64) -> Vec<Duration> {
    let mut connection = Connection::open(port).await;
    let end = Instant::now() + load.window;
    let mut took = Vec::new();
    loop {
        for at in 0..load.pipeline {
            random = mix(random);
            let key = rows.draw(load.spread, random);
            let is_get = load.ask == Ask::Get
                || (load.ask == Ask::Mixed && (took.len() + at).is_multiple_of(2));
            if is_get {
                rows.push_get(&mut connection.request, key)
            } else {
                rows.push_set(&mut connection.request, key, random)
            }
        }
        let sent = Instant::now();
        if sent >= end {
            return took;
        }
        connection.exchange(load.pipeline).await;
        took.push(sent.elapsed());
    }
}

struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    unread: Vec<u8>,
}

impl Connection {
    async fn open(port: u16) -> Connection {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("a server");
        socket.set_nodelay(true).expect("a TCP socket");
        Connection { socket, request: Vec::new(), unread: Vec::new() }
    }

    /// Sends requests and waits for their replies.
    async fn exchange(&mut self, answers: usize) {
        self.socket.write_all(&self.request).await.expect("a live server");
        self.request.clear();
        let (mut left, mut at) = (answers, 0);
        while left > 0 {
            while let Some(length) =
                answer_length(&self.unread[at..]).filter(|length| at + length <= self.unread.len())
            {
                (left, at) = (left - 1, at + length);
            }
            if left > 0 {
                self.unread.drain(..at);
                at = 0;
                let read = self.socket.read_buf(&mut self.unread).await.expect("a live server");
                assert!(read > 0, "the server closed a connection");
            }
        }
        self.unread.clear();
    }
}

/// Length of the reply that begins here, a status or a bulk string.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).take(64).position(|pair| pair == b"\r\n")?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    match line.as_bytes()[0] {
        b'+' => Some(end + 2),
        b'$' if line == "$-1" => Some(end + 2),
        b'$' => Some(end + 2 + line[1..].parse::<usize>().ok()? + 2),
        _ => panic!("an error: {line}"),
    }
}
