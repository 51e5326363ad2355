//! Redis clients with default settings work through failovers: redis-py, ioredis and
//! redis-rs connect to a proxy of a cluster whose leaders, on other nodes, are killed and
//! restarted.
//!
//! Each client increments counters, sets strings, changes hashes in transactions, reads
//! everything back, and checks every reply. No read may fail. A write may have an unknown
//! outcome (`-UNKNOWNOUTCOME`, which no client retries): these are counted, and take
//! effect once or not at all.
//!
//! redis-rs's asynchronous connections time out by default after half a second, before a
//! new leader can be elected. The resulting error is the client's, so these run with this
//! setting changed.

mod external;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use external::{node, programs, redis_py, run_in};
use integration::cluster::Cluster;
use integration::within;
use integration::workload::{Rng, seed};
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Value, pipe};
use serde_json::{Value as Json, json};

/// Duration of the workload.
const TIME: Duration = Duration::from_secs(40);

/// Results of a redis-rs client.
#[derive(Default)]
struct Seen {
    calls: u64,
    unknown: u64,
    longest: Duration,
    wrong: Vec<String>,
    /// Rows whose last write is of unknown outcome, and their count before it.
    left: Vec<(String, u64)>,
}

impl Seen {
    /// The reply; `None`, recorded, when there was none.
    fn call<T>(
        &mut self,
        what: &str,
        writes: bool,
        mut ask: impl FnMut() -> RedisResult<T>,
    ) -> Option<T> {
        let began = Instant::now();
        let answer = ask();
        self.calls += 1;
        self.longest = self.longest.max(began.elapsed());
        match answer {
            Ok(answer) => Some(answer),
            Err(error) if writes && is_unknown(what, &error) => {
                self.unknown += 1;
                None
            }
            Err(error) => {
                self.wrong.push(format!("{what}: {error}"));
                None
            }
        }
    }

    fn expect<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        found: Option<T>,
        expected: T,
    ) {
        if let Some(found) = found.filter(|found| *found != expected) {
            self.wrong.push(format!("{what} is {found:?}, not {expected:?}"));
        }
    }

    fn json(&self, client: &str) -> Json {
        json!({
            "client": client,
            "calls": self.calls,
            "unknown": self.unknown,
            "wrong": self.wrong,
            "longest_ms": self.longest.as_millis() as u64,
        })
    }
}

/// redis-rs reports an error reply of EXEC only as a wrong type.
fn is_unknown(what: &str, error: &RedisError) -> bool {
    error.code() == Some("UNKNOWNOUTCOME")
        || (what == "EXEC" && error.kind() == ErrorKind::UnexpectedReturnType)
}

/// A connection of either kind.
trait Sends {
    fn one(&mut self, command: &redis::Cmd) -> RedisResult<Value>;
    fn send(&mut self, pipeline: &redis::Pipeline) -> RedisResult<Vec<Value>>;
}

impl Sends for redis::Connection {
    fn one(&mut self, command: &redis::Cmd) -> RedisResult<Value> {
        command.query(self)
    }

    fn send(&mut self, pipeline: &redis::Pipeline) -> RedisResult<Vec<Value>> {
        pipeline.query(self)
    }
}

/// A multiplexed connection and its runtime.
struct Multiplexed(tokio::runtime::Runtime, redis::aio::MultiplexedConnection);

impl Sends for Multiplexed {
    fn one(&mut self, command: &redis::Cmd) -> RedisResult<Value> {
        self.0.block_on(command.query_async(&mut self.1))
    }

    fn send(&mut self, pipeline: &redis::Pipeline) -> RedisResult<Vec<Value>> {
        self.0.block_on(pipeline.query_async(&mut self.1))
    }
}

/// The same workload as in the programs in other languages.
fn work(name: &str, redis: &mut dyn Sends) -> Json {
    let mut seen = Seen::default();
    let one =
        |redis: &mut dyn Sends, words: &[&str]| redis.one(redis::cmd(words[0]).arg(&words[1..]));
    let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    let (end, mut generation) = (Instant::now() + TIME, 0);
    while Instant::now() < end && seen.wrong.len() < 20 {
        generation += 1;
        let [counter, string, hash] =
            ["counter", "string", "hash"].map(|kind| format!("{name}:{kind}:{generation}"));
        for n in (1..200_u64).take_while(|_| Instant::now() < end) {
            let number = n.to_string();
            let counted = seen.call("INCR", true, || one(redis, &["INCR", &counter]));
            if counted.is_none() {
                seen.left.push((counter, n - 1));
                break;
            }
            seen.expect("INCR", counted, Value::Int(n as i64));
            let set = seen.call("SET", true, || one(redis, &["SET", &string, &number]));
            if set.is_none() {
                seen.left.push((string, n - 1));
                break;
            }
            seen.expect("SET", set, Value::Okay);
            let mut transaction = pipe();
            transaction
                .atomic()
                .cmd("HSET")
                .arg(&hash)
                .arg("n")
                .arg(n)
                .cmd("HINCRBY")
                .arg(&hash)
                .arg("times")
                .arg(1);
            let changed = seen.call("EXEC", true, || redis.send(&transaction));
            if changed.is_none() {
                seen.left.push((hash, n - 1));
                break;
            }
            seen.expect(
                "EXEC",
                changed.map(|mut replies| replies.pop()),
                Some(Value::Int(n as i64)),
            );
            let read = seen.call("GET", false, || one(redis, &["GET", &string]));
            seen.expect("GET", read, text(&number));
            let read = seen.call("MGET", false, || one(redis, &["MGET", &counter, &string]));
            seen.expect("MGET", read, Value::Array(vec![text(&number), text(&number)]));
            let read = seen.call("HMGET", false, || one(redis, &["HMGET", &hash, "n", "times"]));
            seen.expect("HMGET", read, Value::Array(vec![text(&number), text(&number)]));
            thread::sleep(Duration::from_millis(2));
        }
    }
    for (key, done) in std::mem::take(&mut seen.left) {
        let words =
            if key.contains("hash") { vec!["HGET", &key, "times"] } else { vec!["GET", &key] };
        let found = match seen.call("GET", false, || one(redis, &words)) {
            Some(Value::BulkString(bytes)) => {
                String::from_utf8_lossy(&bytes).parse().unwrap_or(u64::MAX)
            }
            Some(_) => 0,
            None => continue,
        };
        if found != done && found != done + 1 {
            seen.wrong.push(format!(
                "{key}: {done} were acknowledged, one more was tried, {found} were done"
            ));
        }
    }
    seen.json(name)
}

/// Runs a program in another language; returns its output.
fn program(dir: &Path, program: &Path, words: &[&str], port: u16) -> Json {
    let env = [("BRIDLE_PORT", port.to_string()), ("BRIDLE_SECONDS", TIME.as_secs().to_string())];
    let ended = run_in(dir, program, words, &env, "");
    assert!(ended.success, "{} {words:?}:\n{}", program.display(), ended.output);
    serde_json::from_str(ended.output.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {}", ended.output))
}

/// Kills leaders on nodes 1 and 2 alternately until the time is over; returns the number
/// of kills.
fn kill_leaders(cluster: &mut Cluster, rng: &mut Rng) -> u32 {
    let (end, mut kills) = (Instant::now() + TIME - Duration::from_secs(8), 0);
    while Instant::now() < end {
        let victim = 1 + kills as usize % 2;
        // There must be data to lose.
        let partitions = cluster.leaders("db0").map_or(0, |leaders| leaders.len());
        for partition in (0..partitions).filter(|partition| partition % 2 == 0) {
            if let Err(error) = cluster.transfer("db0", partition, victim) {
                eprintln!("partition {partition} stays where it is: {error}");
            }
        }
        thread::sleep(Duration::from_millis(300 + rng.below(500)));
        let led = cluster
            .leaders("db0")
            .map_or(0, |leaders| leaders.iter().filter(|leader| **leader == Some(victim)).count());
        eprintln!("kill {victim}, which leads {led} partitions");
        cluster.kill(victim);
        kills += 1;
        thread::sleep(Duration::from_millis(1_000 + rng.below(2_000)));
        cluster.launch(victim);
        within(30, "all partitions have a leader, and the killed one is back", || {
            cluster.client(victim).is_ok_and(|mut client| {
                client
                    .call(&["SET", "back", "yes"])
                    .is_ok_and(|output| output == integration::Value::ok())
            }) && cluster.leaders("db0").is_ok_and(|leaders| leaders.iter().all(Option::is_some))
        });
    }
    kills
}

#[test]
fn clients_with_defaults_survive_leader_kills() {
    let mut rng = Rng::new(seed());
    let (python, node) = (redis_py(), node(&["failover.js"]));
    let mut cluster = Cluster::builder().start();
    let port = cluster.proxy(0).port();
    let client = Client::open(format!("redis://127.0.0.1:{port}")).expect("a fine URL");
    let (kills, told) = thread::scope(|scope| {
        let clients = [
            scope.spawn(|| program(&programs("redis_py"), &python, &["-B", "failover.py"], port)),
            scope.spawn(|| program(&node, Path::new("node"), &["failover.js"], port)),
            scope.spawn(|| {
                work("redis-rs, blocking", &mut client.get_connection().expect("a live server"))
            }),
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                let config = AsyncConnectionConfig::new()
                    .set_response_timeout(Some(Duration::from_secs(10)));
                let connection = runtime
                    .block_on(client.get_multiplexed_async_connection_with_config(&config))
                    .expect("a live server");
                work("redis-rs, multiplexed", &mut Multiplexed(runtime, connection))
            }),
        ];
        let kills = kill_leaders(&mut cluster, &mut rng);
        (kills, clients.map(|client| client.join().expect("clients don't panic")))
    });
    println!("{kills} nodes that led were killed");
    for seen in &told {
        println!("{seen}");
    }
    for seen in &told {
        assert_eq!(seen["wrong"], json!([]), "{seen}");
        assert!(seen["calls"].as_u64() > Some(1_000), "it hardly did anything: {seen}");
    }
    assert!(kills >= 5, "the test shows nothing");
}
