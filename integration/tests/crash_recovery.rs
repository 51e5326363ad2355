//! With durability "always", every acknowledged write survives kill -9 at any moment, and
//! no write is half visible.
//!
//! Writers write ascending numbers, each into its own rows, and advance only after an
//! acknowledgement. The server is killed at a random moment and restarted on the same
//! data. Every row must then hold the last acknowledged number or the next one, which was
//! in flight; and writes of one transaction must have the same number.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use integration::{Client, Server, Value};

const WRITERS: usize = 8;

/// Default number of kills; `BRIDLE_KILLS` sets another.
fn kills() -> u32 {
    std::env::var("BRIDLE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

/// A small generator: the printed seed determines the moments of the kills (`BRIDLE_SEED`
/// replays them).
struct Rng(u64);

impl Rng {
    fn new() -> Rng {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos() as u64;
        let seed =
            std::env::var("BRIDLE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now | 1);
        eprintln!("BRIDLE_SEED={seed}");
        Rng(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// One writer's rows, and the last acknowledged number of each kind of write.
#[derive(Default)]
struct Writer {
    strings: AtomicU64,
    counter: AtomicU64,
    pair: AtomicU64,
    transaction: AtomicU64,
    pipelined: AtomicU64,
    replaced: AtomicU64,
}

/// Number of commands in a pipeline.
const BURST: u64 = 10;

impl Writer {
    /// Writes until the connection fails.
    fn write(&self, port: u16, me: usize, stop: &AtomicBool) {
        let _ = self.write_until_error(port, me, stop);
    }

    fn write_until_error(&self, port: u16, me: usize, stop: &AtomicBool) -> io::Result<()> {
        let mut client = Client::connect(port)?;
        while !stop.load(Ordering::Relaxed) {
            let next = self.strings.load(Ordering::Relaxed) + 1;
            expect(
                client.call(&["SET", &format!("string:{me}:{next}"), &next.to_string()])?,
                Value::ok(),
            );
            self.strings.store(next, Ordering::Relaxed);

            let next = self.counter.load(Ordering::Relaxed) + 1;
            expect(client.call(&["INCR", &format!("counter:{me}")])?, Value::Int(next as i64));
            self.counter.store(next, Ordering::Relaxed);

            let next = self.pair.load(Ordering::Relaxed) + 1;
            let number = next.to_string();
            let added = if next == 1 { 2 } else { 0 };
            expect(
                client.call(&["HSET", &format!("pair:{me}"), "a", &number, "b", &number])?,
                Value::Int(added),
            );
            self.pair.store(next, Ordering::Relaxed);

            let next = self.transaction.load(Ordering::Relaxed) + 1;
            let number = next.to_string();
            let (left, right) = (format!("left:{me}"), format!("right:{me}"));
            let replies = client.pipeline(&[
                vec!["MULTI"],
                vec!["SET", &left, &number],
                vec!["SET", &right, &number],
                vec!["EXEC"],
            ])?;
            expect(replies[3].clone(), Value::Array(vec![Value::ok(), Value::ok()]));
            self.transaction.store(next, Ordering::Relaxed);

            let done = self.pipelined.load(Ordering::Relaxed);
            let row = format!("pipelined:{me}");
            let burst: Vec<Vec<&str>> = (0..BURST).map(|_| vec!["INCR", &row]).collect();
            let replies = client.pipeline(&burst)?;
            expect(replies[BURST as usize - 1].clone(), Value::Int((done + BURST) as i64));
            self.pipelined.store(done + BURST, Ordering::Relaxed);

            // A hash of the last round is replaced by one with other fields: no old field
            // may be visible.
            let next = self.replaced.load(Ordering::Relaxed) + 1;
            let (row, field, number) =
                (format!("replaced:{me}"), format!("field{next}"), next.to_string());
            client.pipeline(&[
                vec!["MULTI"],
                vec!["DEL", &row],
                vec!["HSET", &row, &field, &number],
                vec!["EXEC"],
            ])?;
            self.replaced.store(next, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Checks the server's rows against the acknowledged numbers, and continues from
    /// there.
    fn check(&self, client: &mut Client, me: usize) {
        let acked = self.strings.load(Ordering::Relaxed);
        for n in 1..=acked {
            let row = format!("string:{me}:{n}");
            assert_eq!(
                client.run(&format!("GET {row}")),
                Value::bulk(&n.to_string()),
                "acknowledged, and lost: {row}"
            );
        }
        let under_way = client.run(&format!("EXISTS string:{me}:{}", acked + 1)).int();
        assert_eq!(client.run(&format!("EXISTS string:{me}:{}", acked + 2)).int(), 0, "never sent");
        self.strings.store(acked + under_way as u64, Ordering::Relaxed);

        settle(&self.counter, 1, number(&client.run(&format!("GET counter:{me}"))), "counter");
        let a = number(&client.run(&format!("HGET pair:{me} a")));
        assert_eq!(
            a,
            number(&client.run(&format!("HGET pair:{me} b"))),
            "a write of two fields came half"
        );
        settle(&self.pair, 1, a, "pair");
        let left = number(&client.run(&format!("GET left:{me}")));
        assert_eq!(
            left,
            number(&client.run(&format!("GET right:{me}"))),
            "a transaction came half"
        );
        settle(&self.transaction, 1, left, "transaction");
        settle(
            &self.pipelined,
            BURST,
            number(&client.run(&format!("GET pipelined:{me}"))),
            "pipelined",
        );
        match client.run(&format!("HGETALL replaced:{me}")) {
            Value::Array(pair) if pair.is_empty() => settle(&self.replaced, 1, 0, "replaced"),
            Value::Array(pair) => {
                assert_eq!(pair.len(), 2, "a replaced hash shows through: {pair:?}");
                assert_eq!(pair[0].text(), format!("field{}", pair[1].text()));
                settle(&self.replaced, 1, number(&pair[1]), "replaced");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The number must be the acknowledged one or the next.
fn settle(acked: &AtomicU64, step: u64, found: u64, what: &str) {
    let known = acked.load(Ordering::Relaxed);
    assert!((known..=known + step).contains(&found), "{what}: {known} acknowledged, {found} found");
    acked.store(found, Ordering::Relaxed);
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Nil => 0,
        other => other.text().parse().unwrap_or_else(|_| panic!("not a number: {other:?}")),
    }
}

fn expect(found: Value, wanted: Value) {
    assert_eq!(found, wanted);
}

#[test]
fn acknowledged_writes_survive_kill_9_at_any_moment() {
    let mut rng = Rng::new();
    let mut server = Server::builder().flag("durability", "always").start();
    let writers: Vec<Writer> = (0..WRITERS).map(|_| Writer::default()).collect();
    for _ in 0..kills() {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (me, writer) in writers.iter().enumerate() {
                let (port, stop) = (server.port, &stop);
                scope.spawn(move || writer.write(port, me, stop));
            }
            thread::sleep(Duration::from_millis(20 + rng.below(400)));
            server.kill();
            stop.store(true, Ordering::Relaxed);
        });
        server.restart();
        let mut client = server.client();
        writers.iter().enumerate().for_each(|(me, writer)| writer.check(&mut client, me));
    }
    let written: u64 = writers.iter().map(|writer| writer.strings.load(Ordering::Relaxed)).sum();
    println!("{} kills, {written} strings and as many of each other kind, none lost", kills());
    assert!(written > u64::from(kills()), "the writers hardly wrote: the test shows nothing");
}
