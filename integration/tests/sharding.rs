//! A table of many partitions, as a client sees it: commands on many keys fan out and
//! merge, commands that must be atomic are refused, and pipelines, cursors and
//! transactions behave as with one partition; in a cluster through any proxy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use integration::cluster::Cluster;
use integration::{CROSSSLOT, Client, Server, Value, within};

const PARTITIONS: u16 = 8;

fn start() -> Server {
    Server::builder()
        .flag("durability", "os")
        .flag("set", format!("tables.partitions={PARTITIONS}"))
        .start()
}

/// CRC16/XMODEM of the key or its hash tag, implemented again: the mapping of keys should
/// not be tested by itself.
fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty());
    let crc = tag.unwrap_or(key).bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16384
}

fn partition(key: &str) -> u16 {
    slot(key) / (16384 / PARTITIONS)
}

/// A key of each partition.
fn one_of_each() -> Vec<String> {
    let of = |wanted| {
        (0..)
            .map(|n| format!("key:{n}"))
            .find(|key| partition(key) == wanted)
            .expect("some number does it")
    };
    (0..PARTITIONS).map(of).collect()
}

fn call(client: &mut Client, words: &[&str]) -> Value {
    client.call(words).expect("the server is there")
}

fn with<'a>(name: &'a str, keys: &[&'a str]) -> Vec<&'a str> {
    [&[name], keys].concat()
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        other => panic!("not a list: {other:?}"),
    }
}

fn texts(value: Value) -> Vec<String> {
    list(value).iter().map(Value::text).collect()
}

#[test]
fn key_slots_match_redis_cluster() {
    // Agrees with `CLUSTER KEYSLOT`.
    let known = [
        ("foo", 12182),
        ("bar", 5061),
        ("{user1000}.following", 3443),
        ("{user1000}.followers", 3443),
        ("foo{}{bar}", 8363),
    ];
    for (key, expected) in known {
        assert_eq!(slot(key), expected, "{key}");
    }
}

/// Connections to different proxies, used in turn: no two consecutive commands use the
/// same one.
struct Turns(VecDeque<Client>);

impl Turns {
    fn call(&mut self, words: &[&str]) -> Value {
        self.0.rotate_left(1);
        call(&mut self.0[0], words)
    }

    fn run(&mut self, line: &str) -> Value {
        self.call(&line.split(' ').collect::<Vec<_>>())
    }

    fn select(&mut self, table: &str) {
        self.0
            .iter_mut()
            .for_each(|client| assert_eq!(client.run(&format!("SELECT {table}")), Value::ok()));
    }
}

#[test]
fn commands_on_many_keys_fan_out_and_merge() {
    let server = start();
    on_many_keys(Turns([server.client()].into()));
}

#[test]
fn commands_on_many_keys_work_through_every_proxy() {
    let cluster =
        Cluster::builder().partitions(PARTITIONS.into()).durability("os").proxies(1).start();
    // There are rows by then, but none of this test.
    assert_eq!(cluster.client(0).expect("it serves").run("FLUSHALL"), Value::ok());
    on_many_keys(Turns(
        (0..cluster.len()).map(|number| cluster.client(number).expect("it serves")).collect(),
    ));
}

fn on_many_keys(mut client: Turns) {
    let keys: Vec<String> = (0..2000).map(|n| format!("key:{n}")).collect();
    assert_eq!(
        keys.iter().map(|key| partition(key)).collect::<BTreeSet<_>>().len(),
        usize::from(PARTITIONS)
    );
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let pairs: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), &key[4..]]).collect();
    assert_eq!(client.call(&with("MSET", &pairs)), Value::ok());
    assert_eq!(client.run("DBSIZE"), Value::Int(2000));

    // In the order of the request, whatever the partitions; with missing keys, rows of
    // other kinds and repeated keys.
    client.run("HSET hash field value");
    let asked: Vec<&str> =
        names.iter().rev().copied().chain(["missing", "hash", "key:7", "key:7"]).collect();
    let mut expected: Vec<Value> = keys.iter().rev().map(|key| Value::bulk(&key[4..])).collect();
    expected.extend([Value::Nil, Value::Nil, Value::bulk("7"), Value::bulk("7")]);
    assert_eq!(list(client.call(&with("MGET", &asked))), expected);
    // For a repeated key the last value counts, as if they were set one after another.
    assert_eq!(client.run("MSET key:7 a key:8 b key:7 c"), Value::ok());
    assert_eq!(
        client.run("MGET key:7 key:8"),
        Value::Array(vec![Value::bulk("c"), Value::bulk("b")])
    );

    for count in ["EXISTS", "TOUCH"] {
        assert_eq!(
            client.call(&with(count, &asked)),
            Value::Int(2003),
            "{count} counts keys as often as they are named"
        );
    }
    assert!(texts(client.run("KEYS *")).contains(&client.run("RANDOMKEY").text()));
    assert_eq!(texts(client.run("KEYS *")).into_iter().collect::<BTreeSet<_>>().len(), 2001);
    assert_eq!(texts(client.run("KEYS key:19?")).into_iter().collect::<BTreeSet<_>>().len(), 10);
    assert_eq!(
        client.call(&with("DEL", &[&names[..500], &names[..10], &["missing"]].concat())),
        Value::Int(500)
    );
    assert_eq!(client.call(&with("UNLINK", &names[..1000])), Value::Int(500));
    assert_eq!(client.run("DBSIZE"), Value::Int(1001));

    // FLUSHDB empties this table, FLUSHALL every table, in all partitions.
    client.select("1");
    assert_eq!(client.call(&with("MSET", &pairs)), Value::ok());
    client.select("0");
    assert_eq!(client.run("FLUSHDB"), Value::ok());
    assert_eq!(
        (client.run("DBSIZE"), client.run("RANDOMKEY"), client.run("KEYS *")),
        (Value::Int(0), Value::Nil, Value::Array(vec![]))
    );
    client.call(&with("MSET", &pairs));
    client.select("1");
    assert_eq!(client.run("DBSIZE"), Value::Int(2000));
    assert_eq!(client.run("FLUSHALL"), Value::ok());
    for table in ["0", "1"] {
        client.select(table);
        assert_eq!(client.run("DBSIZE"), Value::Int(0));
        assert!(client.call(&with("MGET", &names)) == Value::Array(vec![Value::Nil; 2000]));
    }
}

/// Commands that must be atomic are refused over partitions, and change nothing.
#[test]
fn atomic_commands_over_partitions_fail_without_effect() {
    let server = start();
    let mut client = server.client();
    let keys = one_of_each();
    let (a, b) = (keys[0].as_str(), keys[5].as_str());
    call(&mut client, &["MSET", a, "1", b, "2"]);
    let crossslot = Value::Error(CROSSSLOT.into());
    for line in [
        format!("MSETNX {a}x 3 {b}x 4 {a} 5 {b} 6"),
        format!("RENAME {a} {b}"),
        format!("RENAMENX {a} {b}"),
        format!("COPY {a} {b} REPLACE"),
        format!("LCS {a} {b}"),
    ] {
        assert_eq!(client.run(&line), crossslot, "{line}");
    }
    let both = Value::Array(vec![Value::bulk("1"), Value::bulk("2")]);
    assert_eq!(call(&mut client, &["MGET", a, b]), both);
    for queued in [
        vec![format!("SET {a} 3"), format!("SET {b} 4")],
        vec![format!("GET {a}"), format!("GET {b}")],
        vec![format!("MGET {a} {b}")],
        vec![format!("INCR {a}"), "DBSIZE".to_owned()],
        vec![format!("INCR {a}"), "FLUSHDB".to_owned()],
        vec![format!("INCR {a}"), "KEYS *".to_owned()],
        vec![format!("INCR {a}"), "SCAN 0".to_owned()],
        vec![format!("INCR {a}"), "SELECT 1".to_owned(), format!("SET {a} 4")],
    ] {
        client.run("MULTI");
        queued.iter().for_each(|line| {
            assert_eq!(client.run(line), Value::Status("QUEUED".into()), "{line}")
        });
        assert_eq!(client.run("EXEC"), crossslot, "{queued:?}");
        client.run("SELECT 0");
        assert_eq!(call(&mut client, &["MGET", a, b]), both, "{queued:?}");
    }
    // Watched rows belong to the transaction.
    call(&mut client, &["WATCH", a, b]);
    client.run("MULTI");
    client.run(&format!("SET {a} 3"));
    assert_eq!(client.run("EXEC"), crossslot);
    assert_eq!(call(&mut client, &["MGET", a, b]), both);

    // Keys of one partition are enough, by a hash tag or by chance.
    let beside = (0..)
        .map(|n| format!("other:{n}"))
        .find(|key| partition(key) == partition(a) && slot(key) != slot(a))
        .expect("there is");
    for (one, other) in [(a, beside.as_str()), ("{user}:one", "{user}:other")] {
        call(&mut client, &["MSET", one, "x", other, "y"]);
        assert_eq!(call(&mut client, &["MSETNX", one, "3", other, "4"]), Value::Int(0));
        assert_eq!(call(&mut client, &["COPY", one, other, "REPLACE"]), Value::Int(1));
        assert_eq!(call(&mut client, &["LCS", one, other]), Value::bulk("x"));
        call(&mut client, &["WATCH", one, other]);
        client.run("MULTI");
        client.run(&format!("APPEND {one} z"));
        client.run(&format!("MGET {one} {other}"));
        let values = Value::Array(vec![Value::bulk("xz"), Value::bulk("x")]);
        assert_eq!(client.run("EXEC"), Value::Array(vec![Value::Int(2), values]));
        assert_eq!(call(&mut client, &["RENAME", one, other]), Value::ok());
        assert_eq!(
            call(&mut client, &["MGET", one, other]),
            Value::Array(vec![Value::Nil, Value::bulk("xz")])
        );
    }
}

/// All pages of one SCAN; `ask` gets the page's number and executes the command.
fn scan(rest: &str, mut ask: impl FnMut(usize, &str) -> Value) -> Vec<String> {
    let (mut found, mut cursor) = (Vec::new(), "0".to_owned());
    for page in 0.. {
        assert!(page < 10_000, "SCAN does not end");
        let reply = list(ask(page, format!("SCAN {cursor} {rest}").trim_end()));
        cursor = reply[0].text();
        found.extend(texts(reply[1].clone()));
        if cursor == "0" {
            break;
        }
    }
    found
}

/// SCAN's guarantee and more: keys that exist throughout are returned, and only once.
fn assert_each_once(found: &[String], stays: &BTreeSet<String>, of: &str) {
    let all: Vec<&String> = found.iter().filter(|key| stays.contains(*key)).collect();
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), stays.iter().collect(), "{of}");
    assert_eq!(all.len(), stays.len(), "a key was returned twice: {of}");
}

/// Keys that stay, and some that do not.
fn fill(client: &mut Client) -> BTreeSet<String> {
    let stays: BTreeSet<String> = (0..1000)
        .map(|n| format!("stay:{n}"))
        .chain((0..200).map(|n| format!("{{tag}}stay:{n}")))
        .collect();
    let keys: Vec<String> =
        stays.iter().cloned().chain((0..300).map(|n| format!("goes:{n}"))).collect();
    let pairs: Vec<&str> = keys.iter().flat_map(|key| [key.as_str(), "v"]).collect();
    assert_eq!(call(client, &with("MSET", &pairs)), Value::ok());
    stays
}

/// Between two pages keys come and go, and values are replaced.
fn come_and_go(client: &mut Client, page: usize) {
    call(client, &["DEL", &format!("goes:{}", page % 300)]);
    call(client, &["MSET", &format!("comes:{page}"), "v", &format!("stay:{}", page % 1000), "new"]);
}

/// SCAN returns every key that exists throughout exactly once, across partitions and a
/// restart.
#[test]
fn scan_returns_stable_keys_once_over_all_partitions() {
    let mut server = start();
    let mut client = server.client();
    let stays = fill(&mut client);
    for rest in [
        "COUNT 1",
        "COUNT 7",
        "COUNT 100",
        "COUNT 100000",
        "",
        "MATCH *stay:* COUNT 33",
        "TYPE string COUNT 50",
    ] {
        let found = scan(rest, |page, line| {
            if page % 10 == 1 {
                come_and_go(&mut client, page);
            }
            client.run(line)
        });
        assert_each_once(&found, &stays, rest);
    }
    // The same cursor works after kill -9, on another connection.
    let found = scan("COUNT 60 MATCH *stay*", |page, line| {
        if page % 8 == 3 {
            server.restart();
            client = server.client();
        }
        client.run(line)
    });
    assert_each_once(&found, &stays, "over restarts");
    for strange in ["18446744073709551615", "4611686018427387904", "4611686018427387903"] {
        let reply = list(client.run(&format!("SCAN {strange}")));
        assert_eq!(reply[0].text(), "0", "behind the last position there is nothing");
    }
}

#[test]
fn a_cursor_works_on_any_proxy_and_after_a_failover() {
    let mut cluster =
        Cluster::builder().partitions(PARTITIONS.into()).durability("os").proxies(1).start();
    let stays = fill(&mut cluster.client(0).expect("it serves"));
    // The proxy and two of the nodes continue the scan in turn; the third, which is
    // killed, leads some of the remaining partitions.
    let last = usize::from(PARTITIONS) - 1;
    let victim = cluster.leaders("db0").expect("the admin API answers")[last]
        .expect("it serves, so it has a leader");
    let stay_up: Vec<usize> = (0..cluster.len()).filter(|number| *number != victim).collect();
    let mut through: Vec<Client> =
        stay_up.iter().map(|number| cluster.client(*number).expect("it serves")).collect();
    let mut errors = 0;
    let found = scan("COUNT 11", |page, line| {
        if page == 40 {
            cluster.kill(victim);
        }
        let client = &mut through[page % stay_up.len()];
        if page % 5 == 1 {
            // The outcome does not matter: SCAN is right with and without these keys.
            come_and_go(client, page);
        }
        let mut reply = Value::Nil;
        within(20, "a page is returned", || {
            reply = client.run(line);
            errors += usize::from(reply.is_error());
            !reply.is_error()
        });
        reply
    });
    assert_each_once(&found, &stays, "over a failover");
    println!("{} keys in all; {errors} errors meanwhile", found.len());
    assert!(!cluster.runs(victim), "the scan was over before the kill");
    cluster.launch(victim);
    cluster.wait_until_serving();
    let found = scan("", |page, line| {
        call(
            &mut cluster.client(page % cluster.len()).expect("it serves"),
            &line.split(' ').collect::<Vec<_>>(),
        )
    });
    assert_each_once(&found, &stays, "through all of them");
}

#[test]
fn randomkey_is_uniform_over_partitions() {
    const DRAWS: usize = 4000;
    let server = start();
    let mut client = server.client();
    assert_eq!(client.run("RANDOMKEY"), Value::Nil);
    // Three quarters of all keys share one slot, more than a server samples at a time;
    // the others are anywhere.
    let keys: Vec<String> = (0..300)
        .map(|n| format!("{{tag}}{n}"))
        .chain((0..100).map(|n| format!("key:{n}")))
        .collect();
    for key in &keys {
        call(&mut client, &["SET", key, "v"]);
    }
    let draws = client.pipeline(&vec![vec!["RANDOMKEY"]; DRAWS]).expect("the server is there");
    let mut drawn = BTreeMap::<String, usize>::new();
    draws.iter().for_each(|key| *drawn.entry(key.text()).or_default() += 1);
    let of = |wanted: u16| {
        drawn
            .iter()
            .filter(|(key, _)| partition(key) == wanted)
            .map(|(_, times)| times)
            .sum::<usize>()
    };
    for index in 0..PARTITIONS {
        let share =
            keys.iter().filter(|key| partition(key) == index).count() as f64 / keys.len() as f64;
        // Five standard deviations.
        let (expected, noise) =
            (share * DRAWS as f64, 5.0 * (share * (1.0 - share) * DRAWS as f64).sqrt());
        let seen = of(index) as f64;
        eprintln!("partition {index}: {seen} draws, {expected} expected, give or take {noise:.0}");
        assert!(
            (seen - expected).abs() <= noise,
            "partition {index} was drawn {seen} times instead of {expected}"
        );
    }
    // In a partition of many rows the gaps between them are the probabilities: some rows
    // are returned more frequently, few never.
    let tagged = drawn.keys().filter(|key| key.starts_with("{tag}")).count();
    let most = drawn.values().max().copied().unwrap_or(0);
    eprintln!("{tagged} of 300 keys of one slot were drawn, the luckiest of all keys {most} times");
    assert!(tagged > 200, "only {tagged} of 300 keys of one slot were drawn");
    assert!(most < DRAWS / 20, "one key was drawn {most} times of {DRAWS}");
}

/// A small generator: the test can be replayed by its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Replies come in the order of the commands, and commands see earlier writes of their
/// connection.
#[test]
fn pipelines_over_partitions_keep_order_and_see_own_writes() {
    let seed = std::env::var("BRIDLE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()) | 1);
    eprintln!("BRIDLE_SEED={seed}");
    let mut chance = Chance(seed);
    let server = start();
    let mut client = server.client();
    let keys: Vec<String> = (0..40).map(|n| format!("key:{n}")).collect();
    let mut tables = [BTreeMap::<String, i64>::new(), BTreeMap::new()];
    let mut table = 0;
    for _ in 0..20 {
        let (mut sent, mut expected) = (Vec::new(), Vec::new());
        for at in 0..1500 {
            let (one, other) = (keys[chance.below(40)].clone(), keys[chance.below(40)].clone());
            let rows = &mut tables[table];
            let number = |rows: &BTreeMap<String, i64>, key: &str| {
                rows.get(key).map_or(Value::Nil, |n| Value::bulk(&n.to_string()))
            };
            let (words, reply) = match chance.below(11) {
                0 | 1 => {
                    let value = rows.entry(one.clone()).or_default();
                    *value += 1;
                    (vec!["INCR".into(), one], Value::Int(*value))
                }
                2 => {
                    rows.insert(one.clone(), at);
                    (vec!["SET".into(), one, at.to_string()], Value::ok())
                }
                3 | 4 => {
                    let reply = number(rows, &one);
                    (vec!["GET".into(), one], reply)
                }
                5 => {
                    let reply = Value::Array(vec![number(rows, &one), number(rows, &other)]);
                    (vec!["MGET".into(), one, other], reply)
                }
                6 => {
                    rows.insert(one.clone(), at);
                    rows.insert(other.clone(), at + 1);
                    (
                        vec!["MSET".into(), one, at.to_string(), other, (at + 1).to_string()],
                        Value::ok(),
                    )
                }
                7 => {
                    let gone = i64::from(rows.remove(&one).is_some())
                        + i64::from(rows.remove(&other).is_some());
                    (vec!["DEL".into(), one, other], Value::Int(gone))
                }
                8 => (vec!["DBSIZE".into()], Value::Int(rows.len() as i64)),
                9 => (vec!["ECHO".into(), at.to_string()], Value::bulk(&at.to_string())),
                _ => {
                    table = chance.below(2);
                    (vec!["SELECT".into(), table.to_string()], Value::ok())
                }
            };
            sent.push(words);
            expected.push(reply);
        }
        let replies = client.pipeline(&sent).expect("the server is there");
        for (at, (reply, expected)) in replies.iter().zip(&expected).enumerate() {
            assert_eq!(reply, expected, "command {at} of a pipeline: {:?}", sent[at]);
        }
    }
}

/// A write to a watched row of any partition aborts the transaction.
#[test]
fn watch_aborts_on_a_write_in_any_partition() {
    let mut server = start();
    let (mut client, mut other) = (server.client(), server.client());
    for key in one_of_each() {
        let key = key.as_str();
        call(&mut client, &["SET", key, "1"]);
        let attempt = |client: &mut Client, touch: &mut dyn FnMut()| {
            assert_eq!(call(client, &["WATCH", key]), Value::ok());
            let seen = call(client, &["GET", key]).text();
            touch();
            client.run("MULTI");
            call(client, &["SET", key, &format!("{seen}+")]);
            call(client, &["GET", key]);
            client.run("EXEC")
        };
        let done = Value::Array(vec![Value::ok(), Value::bulk("1+")]);
        assert_eq!(attempt(&mut client, &mut || ()), done, "no write touched {key}");
        assert_eq!(
            attempt(&mut client, &mut || drop(call(&mut other, &["SET", key, "2"]))),
            Value::Nil
        );
        assert_eq!(
            attempt(&mut client, &mut || drop(call(
                &mut other,
                &["MSET", "elsewhere", "3", key, "3"]
            ))),
            Value::Nil
        );
        assert_eq!(
            attempt(&mut client, &mut || drop(call(&mut other, &["DEL", "elsewhere", key]))),
            Value::Nil
        );
        call(&mut client, &["SET", key, "4"]);
        assert_eq!(attempt(&mut client, &mut || drop(other.run("FLUSHDB"))), Value::Nil);
        assert_eq!(call(&mut client, &["GET", key]), Value::Nil);
    }
    // Rows that are only watched count, too: EXEC without rows of its own checks watched
    // rows in every partition.
    let keys = one_of_each();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    for touched in [None, Some(names[6])] {
        call(&mut client, &with("WATCH", &names));
        if let Some(key) = touched {
            call(&mut other, &["SET", key, "5"]);
        }
        client.run("MULTI");
        client.run("PING");
        let expected = if touched.is_some() {
            Value::Nil
        } else {
            Value::Array(vec![Value::Status("PONG".into())])
        };
        assert_eq!(client.run("EXEC"), expected);
    }
    server.restart();
    assert_eq!(server.client().run(&format!("GET {}", names[6])), Value::bulk("5"));
}
