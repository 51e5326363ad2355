//! Random commands get the same replies from Bridle as from redis-server.
//!
//! Both get the same pipelines. Replies that may differ are left out: orders that Redis
//! does not guarantee, remaining times, encodings of values, commands with two errors
//! (Bridle checks the arguments before the row), and GETEX with the expiry that a key
//! already has (for Bridle that is no change, so WATCH does not abort).

mod external;

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use commands::testscript::Value;
use external::free_port;
use integration::{Server, within};

/// Default number of pipelines; `BRIDLE_ROUNDS` sets another.
fn rounds() -> u32 {
    std::env::var("BRIDLE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

/// Random choices by the printed seed (`BRIDLE_SEED` replays them).
struct Rng(u64);

impl Rng {
    fn new() -> Rng {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos() as u64;
        Rng(std::env::var("BRIDLE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now | 1))
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// Placeholders in [`COMMANDS`], and their values.
const WORDS: &[(&str, &[&str])] = &[
    ("KEY", &["a", "b", "c", "h", "{t}1", ""]),
    ("FIELD", &["f", "g", "", "1", "x\0y"]),
    (
        "VALUE",
        &[
            "",
            "1",
            "-1",
            "10",
            "abc",
            "3.5",
            "1e5",
            " 1",
            "01",
            "9223372036854775807",
            "-9223372036854775808",
            "hello world",
            "inf",
            "nan",
            "0x10",
            "1.0",
            "+5",
            "-0",
            "\u{fe}\r\n\0",
            "5e-324",
            "1e400",
            "99999999999999999999",
            "0.1",
            "-1e400",
        ],
    ),
    (
        "NUMBER",
        &[
            "0",
            "1",
            "-1",
            "5",
            "-5",
            "100",
            "9223372036854775807",
            "-9223372036854775808",
            "abc",
            "",
            "1.5",
            "-100",
            "2",
        ],
    ),
    ("OFFSET", &["0", "3", "10", "-1", "abc", "9223372036854775807", "536870912"]),
    ("SECONDS", &["33000000000", "33000000001", "34000000000"]),
    ("MILLIS", &["33000000000000", "33000000000001", "34000000000000"]),
    ("GLOB", &["*", "a", "[a-c]", "?", "{t}*", "[^a]", "\\a", "h?"]),
    ("ONLY", &["NX", "XX", "GT", "LT", "nx", "foo"]),
];

/// Commands with deterministic replies.
const COMMANDS: &[&str] = &[
    "SET KEY VALUE",
    "SET KEY VALUE NX",
    "SET KEY VALUE XX GET",
    "SET KEY VALUE GET KEEPTTL",
    "SET KEY VALUE EXAT SECONDS",
    "SET KEY VALUE XX PXAT MILLIS",
    "SET KEY VALUE NX XX",
    "SET KEY",
    "GET KEY",
    "GETSET KEY VALUE",
    "GETDEL KEY",
    "GETEX KEY PERSIST",
    "GETEX KEY",
    "SETNX KEY VALUE",
    "MSET KEY VALUE KEY VALUE",
    "MSET KEY VALUE KEY",
    "MSETNX KEY VALUE KEY VALUE",
    "MGET KEY KEY KEY",
    "APPEND KEY VALUE",
    "STRLEN KEY",
    "INCR KEY",
    "DECR KEY",
    "INCRBY KEY NUMBER",
    "DECRBY KEY NUMBER",
    "INCRBYFLOAT KEY VALUE",
    "GETRANGE KEY NUMBER NUMBER",
    "SUBSTR KEY NUMBER NUMBER",
    "SETRANGE KEY OFFSET VALUE",
    "LCS KEY KEY",
    "LCS KEY KEY LEN",
    "LCS KEY KEY IDX WITHMATCHLEN",
    "HSET KEY FIELD VALUE",
    "HSET KEY FIELD VALUE FIELD VALUE",
    "HSET KEY FIELD",
    "HMSET KEY FIELD VALUE FIELD VALUE",
    "HSETNX KEY FIELD VALUE",
    "HGET KEY FIELD",
    "HMGET KEY FIELD FIELD",
    "HDEL KEY FIELD FIELD",
    "HLEN KEY",
    "HEXISTS KEY FIELD",
    "HSTRLEN KEY FIELD",
    "HINCRBY KEY FIELD NUMBER",
    "HINCRBYFLOAT KEY FIELD VALUE",
    "DEL KEY KEY",
    "UNLINK KEY",
    "EXISTS KEY KEY KEY",
    "TOUCH KEY KEY",
    "TYPE KEY",
    "EXPIREAT KEY SECONDS",
    "PEXPIREAT KEY MILLIS",
    "EXPIREAT KEY SECONDS ONLY",
    "PEXPIREAT KEY MILLIS ONLY",
    "PEXPIREAT KEY MILLIS ONLY ONLY",
    "EXPIRE KEY 0",
    "PERSIST KEY",
    "EXPIRETIME KEY",
    "PEXPIRETIME KEY",
    "RENAME KEY KEY",
    "RENAMENX KEY KEY",
    "COPY KEY KEY",
    "COPY KEY KEY REPLACE",
    "DBSIZE",
    "ECHO VALUE",
    "PING",
    "PING VALUE",
    "PING VALUE VALUE",
    "WATCH KEY",
    "UNWATCH",
    "DISCARD",
    "EXEC",
    "NOSUCH NUMBER",
    "CLIENT SETNAME FIELD",
    "CLIENT GETNAME",
    "CLIENT NOSUCH",
    "GET",
    "GET KEY KEY",
    "OBJECT NOSUCH",
    "SELECT 99",
    "SORT KEY ALPHA",
    "SCAN abc",
    "SCAN 0 COUNT 0",
];

/// Commands with unordered replies.
const UNORDERED: &[&str] = &[
    "HGETALL KEY",
    "HKEYS KEY",
    "HVALS KEY",
    "KEYS GLOB",
    "HRANDFIELD KEY 100",
    "HRANDFIELD KEY 100 WITHVALUES",
];

/// A random command of the lists, and whether its reply is ordered.
type Drawn = (Vec<String>, bool);

fn draw(rng: &mut Rng, from: &[&str], ordered: bool) -> Drawn {
    let words =
        rng.pick(from).split(' ').map(|word| match WORDS.iter().find(|(name, _)| *name == word) {
            Some((_, choices)) => rng.pick(choices).to_owned(),
            None => word.to_owned(),
        });
    (words.collect(), ordered)
}

/// A pipeline, including transactions.
fn pipeline(rng: &mut Rng) -> Vec<Drawn> {
    let mut all = Vec::new();
    for _ in 0..40 {
        match rng.below(20) {
            0 => {
                all.push((vec!["MULTI".to_owned()], true));
                (0..rng.below(6)).for_each(|_| all.push(draw(rng, COMMANDS, true)));
                all.push((vec!["EXEC".to_owned()], true));
            }
            1..=4 => all.push(draw(rng, UNORDERED, false)),
            _ => all.push(draw(rng, COMMANDS, true)),
        }
    }
    all
}

/// The connection to one of the two servers.
struct Twin(BufReader<TcpStream>);

impl Twin {
    fn connect(port: u16) -> Option<Twin> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        Some(Twin(BufReader::new(stream)))
    }

    fn answers(&mut self, commands: &[Drawn]) -> Vec<Value> {
        let mut bytes = Vec::new();
        for (words, _) in commands {
            bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
            words.iter().for_each(|word| {
                bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes())
            });
        }
        self.0.get_mut().write_all(&bytes).expect("a live server");
        commands
            .iter()
            .map(|(words, _)| {
                Value::read(&mut self.0).unwrap_or_else(|error| panic!("{words:?}: {error}"))
            })
            .collect()
    }
}

/// A redis-server for the test.
struct Redis(Child, u16);

impl Redis {
    fn start() -> Redis {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed (make setup-test)");
        within(30, "redis-server listens", || Twin::connect(port).is_some());
        Redis(child, port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The reply for comparison: without an order that is not guaranteed (a map's pairs stay
/// together, as in RESP3).
fn shown(value: &Value, ordered: bool) -> String {
    match value {
        Value::Array(values) | Value::Set(values) if !ordered => {
            let mut values: Vec<String> = values.iter().map(ToString::to_string).collect();
            values.sort_unstable();
            values.join(", ")
        }
        Value::Map(pairs) => {
            let mut pairs: Vec<String> =
                pairs.iter().map(|(key, value)| format!("{key} => {value}")).collect();
            pairs.sort_unstable();
            pairs.join(", ")
        }
        other => other.to_string(),
    }
    // The limits of a string's size differ, and the error names them.
    .replace(
        "(max_write_size; the configuration file changes it, at a restart)",
        "(proto-max-bulk-len)",
    )
}

/// The last commands before a difference, for the report.
fn history(before: &[Drawn], commands: &[Drawn]) -> String {
    let all: Vec<String> =
        before.iter().chain(commands).map(|(words, _)| format!("{words:?}")).collect();
    all[all.len().saturating_sub(40)..].join("\n")
}

#[test]
fn random_commands_get_the_replies_of_redis() {
    let (bridle, redis) = (Server::builder().flag("durability", "os").start(), Redis::start());
    let mut rng = Rng::new();
    let seed = rng.0;
    for protocol in ["2", "3"] {
        let mut twins =
            [bridle.port, redis.1].map(|port| Twin::connect(port).expect("a live server"));
        let begin = [vec!["FLUSHALL".to_owned()], vec!["HELLO".to_owned(), protocol.to_owned()]]
            .map(|words| (words, true));
        twins.iter_mut().for_each(|twin| drop(twin.answers(&begin)));
        let mut before: Vec<Drawn> = Vec::new();
        for round in 0..rounds() / 2 {
            let commands = pipeline(&mut rng);
            let [ours, theirs] = twins.each_mut().map(|twin| twin.answers(&commands));
            for (at, (words, ordered)) in commands.iter().enumerate() {
                let (ours, theirs) = (shown(&ours[at], *ordered), shown(&theirs[at], *ordered));
                assert!(
                    ours == theirs,
                    "BRIDLE_SEED={seed}, RESP{protocol}, round {round}: {words:?}\nBridle \
                     {ours}\nRedis  {theirs}\nafter\n{}",
                    history(&before, &commands[..at])
                );
            }
            before = commands;
        }
    }
}
