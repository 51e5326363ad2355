//! An open-loop load at half of the peak rate: requests are due at fixed times whether or
//! not earlier ones were answered, and latency counts from the due time, so that a stall
//! affects every request that it delays (no coordinated omission). One thread drives all
//! connections and sleeps until a timer ticks or a reply arrives, so that the driver does
//! not compete with the server for cores.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;

use crate::Redis;

const CONNECTIONS: usize = 50;
const MEASURE: Duration = Duration::from_secs(10);
/// Interval at which the driver checks for due requests; latencies include half of it.
const TICK: Duration = Duration::from_micros(100);

/// Measures SET and GET and prints percentiles of Bridle, of redis-server, and of a
/// server that does nothing: many stalls come from the machine.
pub(crate) fn report() {
    println!(
        "Steady load at half of the peak, {CONNECTIONS} connections, {MEASURE:?}, latency from \
         the moment a request was due\n"
    );
    println!(
        "| server                      | command | peak/s | load/s | p50 ms | p99 ms | p99/p50 \
         (goal: under 5) |"
    );
    println!(
        "|-----------------------------|---------|-------:|-------:|-------:|-------:\
         |------------------------:|"
    );
    for fsync in ["always", "os"] {
        {
            let server = crate::bridle(fsync, "auto");
            of(&format!("bridle, {fsync}"), server.port);
        }
        let is_durable = fsync == "always";
        let redis = Redis::start(if is_durable {
            &["--appendonly", "yes", "--appendfsync", "always"]
        } else {
            &["--appendonly", "no"]
        });
        of(
            if is_durable { "redis, appendfsync always" } else { "redis, no persistence" },
            redis.port,
        );
    }
    of("a server that does nothing", idler());
    println!();
}

/// Starts a server, in a thread of its own, that replies without executing anything, and
/// returns its port: its latency is that of the machine, the kernel's sockets and the
/// driver, a lower bound for every server.
fn idler() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            let value: &str = format!("$64\r\n{}\r\n", "v".repeat(64)).leak();
            loop {
                let (mut socket, _) = listener.accept().await.expect("descriptors are left");
                socket.set_nodelay(true).expect("a TCP socket");
                tokio::task::spawn_local(async move {
                    let mut request = [0; 1 << 10];
                    // A request arrives in one piece, since the one before it was
                    // answered.
                    while socket.read(&mut request).await.is_ok_and(|read| read > 0) {
                        let answer = if request.starts_with(b"*3") { "+OK\r\n" } else { value };
                        socket.write_all(answer.as_bytes()).await.expect("a driver that reads");
                    }
                });
            }
        });
    });
    port
}

fn of(server: &str, port: u16) {
    for command in ["SET", "GET"] {
        let peak = drive(port, command, None).len() as f64 / MEASURE.as_secs_f64();
        let mut latencies = drive(port, command, Some(peak / 2.0));
        latencies.sort_unstable();
        let at = |share: f64| {
            latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0
        };
        let (load, p50, p99) = (latencies.len() as f64 / MEASURE.as_secs_f64(), at(0.5), at(0.99));
        println!(
            "| {server:<27} | {command:<7} | {peak:>6.0} | {load:>6.0} | {p50:>6.3} | {p99:>6.3} \
             | {:>23.2} |",
            p99 / p50
        );
    }
}

/// Latencies of one load; without a rate the loop is closed.
fn drive(port: u16, command: &'static str, rate: Option<f64>) -> Vec<Duration> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let all = tokio::task::LocalSet::new();
    all.block_on(&runtime, async {
        // All connections exist before the first due time.
        let began = Instant::now() + rate.map_or(Duration::ZERO, |_| Duration::from_millis(100));
        let clock = Rc::new(Clock::default());
        let tasks: Vec<_> = (0..CONNECTIONS)
            .map(|me| {
                tokio::task::spawn_local(connection(port, command, rate, me, began, clock.clone()))
            })
            .collect();
        // A closed loop waits for no tick.
        let ticking = rate.map(|_| tokio::task::spawn_local(async move { clock.tick().await }));
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await.expect("a connection does not fail"));
        }
        ticking.inspect(tokio::task::JoinHandle::abort);
        latencies
    })
}

/// A timer for due times.
#[derive(Default)]
struct Clock {
    ticks: tokio::sync::Notify,
}

impl Clock {
    async fn wait_for(&self, due: Instant) {
        loop {
            let tick = self.ticks.notified();
            if Instant::now() >= due {
                return;
            }
            tick.await;
        }
    }

    /// tokio's timers have a resolution of a millisecond.
    async fn tick(&self) {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer: OwnedFd =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).expect("a timer");
        let period = Timespec::try_from(TICK).expect("a short time");
        let ticking = Itimerspec { it_interval: period, it_value: period };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ticking)
            .expect("a valid period");
        // A timerfd is read like a pipe.
        let mut timer =
            pipe::Receiver::from_owned_fd_unchecked(timer).expect("a timer can be waited for");
        loop {
            timer.read_exact(&mut [0; 8]).await.expect("a timer tells how often it has ticked");
            self.ticks.notify_waiters();
        }
    }
}

async fn connection(
    port: u16,
    command: &str,
    rate: Option<f64>,
    me: usize,
    began: Instant,
    clock: Rc<Clock>,
) -> Vec<Duration> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("a server");
    socket.set_nodelay(true).expect("a TCP socket");
    let period = rate.map(|rate| Duration::from_secs_f64(CONNECTIONS as f64 / rate));
    let mut due = began + period.unwrap_or_default().mul_f64(me as f64 / CONNECTIONS as f64);
    let (mut latencies, mut answer) = (Vec::new(), Vec::with_capacity(1 << 10));
    let value = "v".repeat(64);
    let mut n = me;
    while due < began + MEASURE {
        clock.wait_for(due).await;
        n = (n * 7919 + 1) % 100_000;
        let request = match command {
            "SET" => format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{n:012}\r\n$64\r\n{value}\r\n"),
            _ => format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{n:012}\r\n"),
        };
        socket.write_all(request.as_bytes()).await.expect("a live server");
        answer.clear();
        while !is_whole(&answer) {
            let read = socket.read_buf(&mut answer).await.expect("a live server");
            assert!(read > 0, "the server closed a connection");
        }
        latencies.push(due.elapsed());
        due = period.map_or_else(Instant::now, |period| due + period);
    }
    latencies
}

/// The reply to SET or GET is complete.
fn is_whole(answer: &[u8]) -> bool {
    match answer {
        b"+OK\r\n" | b"$-1\r\n" => true,
        [b'$', b'6', b'4', b'\r', b'\n', rest @ ..] => rest.len() == 66,
        [] | [b'$' | b'+', ..] => false,
        _ => panic!("an error: {}", String::from_utf8_lossy(answer)),
    }
}
