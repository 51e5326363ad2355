//! No acknowledged write of a cluster is lost when processes are killed, and none is
//! applied twice.
//!
//! Writers write ascending numbers through different proxies, each into its own rows, and
//! advance only after an acknowledgement. A row whose last write is of unknown outcome is
//! abandoned for a fresh one. After every ten kills all rows are read. `make soak` runs
//! this for hundreds of kills.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use integration::cluster::Cluster;
use integration::workload::{Rng, seed};
use integration::{Client, Value};

const WRITERS: usize = 8;
/// Number of strings read by one command.
const READ_AT_ONCE: u64 = 200;

/// The victim of a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    /// All processes, simultaneously.
    All,
    /// The proxy.
    Proxy,
    /// The meta leader.
    MetaLeader,
    /// A meta that is not the leader.
    OtherMeta,
    /// The leader of a partition.
    Leader,
    /// A node without leaderships, which were transferred before.
    Follower,
}

/// Leaders most frequently.
const VICTIMS: [Victim; 8] = [
    Victim::All,
    Victim::Proxy,
    Victim::MetaLeader,
    Victim::OtherMeta,
    Victim::Leader,
    Victim::Leader,
    Victim::Leader,
    Victim::Follower,
];

impl Victim {
    /// The process to kill; `None`: all.
    fn number(self, cluster: &Cluster, rng: &mut Rng) -> Option<usize> {
        let any = rng.below(cluster.nodes() as u64) as usize;
        let leaders = cluster.leaders("db0").unwrap_or_default();
        let leading_meta = || cluster.meta_leader().ok().flatten().unwrap_or(any);
        match self {
            Victim::All => None,
            Victim::Proxy => Some(cluster.len() - 1),
            Victim::MetaLeader => Some(leading_meta()),
            Victim::OtherMeta => Some((leading_meta() + 1 + rng.below(2) as usize) % 3),
            Victim::Leader if leaders.is_empty() => Some(any),
            Victim::Leader => Some(rng.one_of(&leaders).unwrap_or(any)),
            Victim::Follower => {
                for (partition, _) in
                    leaders.iter().enumerate().filter(|(_, leader)| **leader == Some(any))
                {
                    // Where a transfer fails, the victim is still a leader, which is as
                    // good a kill.
                    let _ = cluster.transfer("db0", partition, (any + 1 + partition % 2) % 3);
                }
                Some(any)
            }
        }
    }
}

/// Default number of kills; `BRIDLE_KILLS` sets another.
fn kills() -> u32 {
    std::env::var("BRIDLE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// A row that one writer extends, one write after the other.
#[derive(Debug, Clone, Default)]
struct Growing {
    /// Number of times that it was replaced by a fresh one.
    generation: u64,
    /// Number of acknowledged writes.
    done: u64,
}

/// A writer and its progress.
#[derive(Debug, Default)]
struct Writer {
    me: usize,
    /// `string:{me}:{n}` is acknowledged for every n up to this.
    strings: u64,
    /// `counter:{me}:{generation}`, by INCR.
    counter: Growing,
    /// `list:{me}:{generation}`, by APPEND.
    list: Growing,
    /// Rows whose last write is of unknown outcome: it may take effect at any later time,
    /// so they get no more writes.
    left: Vec<(String, u64)>,
    increments: u64,
    appends: u64,
    /// Number of writes of unknown outcome.
    unknown: u64,
    /// Number of writes that were refused and repeated.
    refused: u64,
}

/// Outcome of a write.
enum Fate {
    Acknowledged(Value),
    Refused,
    Unknown,
}

/// A connection to any proxy that accepts it.
struct Connection<'a> {
    proxies: &'a [SocketAddr],
    rng: Rng,
    client: Option<Client>,
}

impl Connection<'_> {
    fn call(&mut self, words: &[&str]) -> Fate {
        if self.client.is_none() {
            let address = *self.rng.one_of(self.proxies);
            self.client = Client::reach(address, Duration::from_secs(8)).ok();
        }
        let Some(client) = &mut self.client else {
            thread::sleep(Duration::from_millis(10));
            return Fate::Refused;
        };
        match client.call(words) {
            Ok(Value::Error(text)) if text.starts_with("UNKNOWNOUTCOME") => Fate::Unknown,
            Ok(Value::Error(text))
                if ["CLUSTERDOWN", "BUSY", "LOADING"]
                    .iter()
                    .any(|known| text.starts_with(known)) =>
            {
                thread::sleep(Duration::from_millis(10));
                Fate::Refused
            }
            Ok(Value::Error(text)) => panic!("{words:?}: {text}"),
            Ok(value) => Fate::Acknowledged(value),
            Err(_) => {
                self.client = None;
                Fate::Unknown
            }
        }
    }

    /// Reads until there is an answer, for at most a minute.
    fn read(&mut self, words: &[&str]) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Fate::Acknowledged(value) = self.call(words) {
                return value;
            }
            assert!(Instant::now() < deadline, "all run, and {words:?} is not answered");
        }
    }
}

impl Writer {
    fn work(&mut self, proxies: &[SocketAddr], rng: Rng, stop: &AtomicBool) {
        let mut connection = Connection { proxies, rng, client: None };
        while !stop.load(Ordering::Relaxed) {
            let next = self.strings + 1;
            match connection.call(&[
                "SET",
                &format!("string:{}:{next}", self.me),
                &next.to_string(),
            ]) {
                Fate::Acknowledged(_) => self.strings = next,
                Fate::Refused => self.refused += 1,
                // Repeated by the next round with the same key and value, so that twice
                // is harmless.
                Fate::Unknown => self.unknown += 1,
            }
            self.count(&mut connection);
            self.append(&mut connection);
        }
    }

    /// One INCR. No other client uses the counter, so its reply is known in advance.
    fn count(&mut self, connection: &mut Connection<'_>) {
        let key = format!("counter:{}:{}", self.me, self.counter.generation);
        match connection.call(&["INCR", &key]) {
            Fate::Acknowledged(value) => {
                self.counter.done += 1;
                self.increments += 1;
                assert_eq!(
                    value,
                    Value::Int(self.counter.done as i64),
                    "{key}: an increment was lost or applied twice"
                );
            }
            Fate::Refused => self.refused += 1,
            Fate::Unknown => self.leave(key, |writer| &mut writer.counter),
        }
    }

    /// One APPEND of the next number.
    fn append(&mut self, connection: &mut Connection<'_>) {
        let key = format!("list:{}:{}", self.me, self.list.generation);
        match connection.call(&["APPEND", &key, &format!("{},", self.list.done)]) {
            Fate::Acknowledged(value) => {
                self.list.done += 1;
                self.appends += 1;
                assert_eq!(
                    value,
                    Value::Int(list(self.list.done).len() as i64),
                    "{key}: an append was lost or applied twice"
                );
                if self.list.done == 200 {
                    // The list is long enough.
                    self.left.push((key, self.list.done));
                    self.list = Growing { generation: self.list.generation + 1, done: 0 };
                }
            }
            Fate::Refused => self.refused += 1,
            Fate::Unknown => self.leave(key, |writer| &mut writer.list),
        }
    }

    fn leave(&mut self, key: String, of: impl Fn(&mut Writer) -> &mut Growing) {
        self.unknown += 1;
        let row = of(self);
        let done = std::mem::take(&mut row.done);
        row.generation += 1;
        self.left.push((key, done));
    }

    /// Reads all acknowledged rows.
    fn check(&self, connection: &mut Connection<'_>) {
        for first in (1..=self.strings).step_by(READ_AT_ONCE as usize) {
            let numbers = first..=self.strings.min(first + READ_AT_ONCE - 1);
            let keys: Vec<String> =
                numbers.clone().map(|n| format!("string:{}:{n}", self.me)).collect();
            let words: Vec<&str> =
                ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
            let expected = numbers.map(|n| Value::bulk(&n.to_string())).collect();
            assert_eq!(
                connection.read(&words),
                Value::Array(expected),
                "acknowledged, and lost: one of {} from {first} on",
                keys[0]
            );
        }
        let never_sent = format!("string:{}:{}", self.me, self.strings + 2);
        assert_eq!(connection.read(&["EXISTS", &never_sent]), Value::Int(0), "{never_sent}");
        let counter =
            (format!("counter:{}:{}", self.me, self.counter.generation), self.counter.done);
        let growing = (format!("list:{}:{}", self.me, self.list.generation), self.list.done);
        for (key, done) in self.left.iter().chain([&counter, &growing]) {
            let found = connection.read(&["GET", key]);
            if key.starts_with("counter") {
                let found = number(&found);
                assert!(
                    (*done..=done + 1).contains(&found),
                    "{key}: {done} acknowledged, {found} found"
                );
            } else {
                let found = if found == Value::Nil { String::new() } else { found.text() };
                assert!(
                    found == list(*done) || found == list(done + 1),
                    "{key}: {done} acknowledged, found {found}"
                );
            }
        }
    }
}

/// A list after this many appends.
fn list(done: u64) -> String {
    (0..done).map(|n| format!("{n},")).collect()
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Nil => 0,
        other => other.text().parse().unwrap_or_else(|_| panic!("not a number: {other:?}")),
    }
}

#[test]
fn no_acknowledged_write_is_lost_by_kills() {
    let mut rng = Rng::new(seed());
    let mut cluster = Cluster::builder().proxies(1).start();
    let proxies = cluster.all_proxies();
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|me| Writer { me, ..Writer::default() }).collect();
    let (mut done, mut killed) = (0, BTreeMap::<Victim, u32>::new());
    while done < kills() {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in &mut writers {
                let (proxies, stop, rng) = (&proxies, &stop, rng.another());
                scope.spawn(move || writer.work(proxies, rng, stop));
            }
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(200 + rng.below(1_500)));
                let victim = *rng.one_of(&VICTIMS);
                match victim.number(&cluster, &mut rng) {
                    None => {
                        cluster.kill_all();
                        (0..cluster.len()).for_each(|number| cluster.launch(number));
                    }
                    Some(number) => {
                        cluster.kill(number);
                        thread::sleep(Duration::from_millis(rng.below(3_000)));
                        cluster.launch(number);
                    }
                }
                *killed.entry(victim).or_default() += 1;
                done += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        cluster.wait_until_serving();
        let began = Instant::now();
        for writer in &writers {
            writer.check(&mut Connection { proxies: &proxies, rng: rng.another(), client: None });
        }
        eprintln!("{done} kills, all read again in {:.1?}", began.elapsed());
    }
    let sum = |of: fn(&Writer) -> u64| writers.iter().map(of).sum::<u64>();
    println!(
        "{done} kills {killed:?}: {} strings, {} increments, {} appends, none lost, none twice; \
         {} unknown, {} refused",
        sum(|writer| writer.strings),
        sum(|writer| writer.increments),
        sum(|writer| writer.appends),
        sum(|writer| writer.unknown),
        sum(|writer| writer.refused)
    );
    assert!(
        sum(|writer| writer.strings) > u64::from(done),
        "the writers hardly wrote: the test shows nothing"
    );
}
