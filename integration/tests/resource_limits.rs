//! Resource limits: the size of the log, the directory and memory, the time of restarts
//! and of operations on a huge row, and the CPU share of background threads.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::{Client, Server, ServerBuilder, Value, within};

const MIB: u64 = 1 << 20;

fn small() -> ServerBuilder {
    let builder =
        Server::builder().flag("durability", "os").flag("set", "raft_log.segment_size=4MiB");
    builder.flag("set", "storage.memtables=8MiB").flag("set", "raft_log.tail_cache=1MiB")
}

/// Incompressible bytes, different for each seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Executes many commands in pipelines; none may fail.
fn load(client: &mut Client, commands: impl Iterator<Item = Vec<Vec<u8>>>) {
    let mut commands = commands.peekable();
    while commands.peek().is_some() {
        let chunk: Vec<_> = commands.by_ref().take(100).collect();
        for reply in client.pipeline(&chunk).expect("the server lives") {
            assert!(!reply.is_error(), "{reply:?}");
        }
    }
}

/// HSETs of `count` fields `field:<n>` with values of some length, a hundred fields each.
fn fields(row: &str, count: u64, len: usize) -> impl Iterator<Item = Vec<Vec<u8>>> {
    let row = row.as_bytes().to_vec();
    (0..count.div_ceil(100)).map(move |chunk| {
        let pairs = (chunk * 100..(chunk * 100 + 100).min(count))
            .flat_map(|n| [format!("field:{n}").into_bytes(), noise(n, len)]);
        [b"HSET".to_vec(), row.clone()].into_iter().chain(pairs).collect()
    })
}

/// The log, the data directory and memory stay bounded, and a restart stays fast.
#[test]
fn endless_overwriting_keeps_disk_memory_and_restart_bounded() {
    const KEYS: u64 = 1000;
    const VALUE: usize = 3000;
    /// A flush truncates the log whenever it reaches 48 MiB, and the log grows during the
    /// flush; without a limit it would reach 300 MiB.
    const LOG_MAX: u64 = 150 * MIB;
    /// Plus the rows, several times while compaction is behind.
    const DIRECTORY_MAX: u64 = 220 * MIB;
    const RSS_MAX: u64 = 250 * MIB;
    let mut server = small().start();
    let mut client = server.client();
    let (mut directory, mut log, mut rss) = (0, 0, 0);
    for round in 0..100 {
        load(
            &mut client,
            (0..KEYS).map(|n| {
                vec![
                    b"SET".to_vec(),
                    format!("key:{n}").into_bytes(),
                    noise(round * KEYS + n, VALUE),
                ]
            }),
        );
        directory = directory.max(server.disk_bytes());
        log = log.max(server.log_bytes());
        rss = rss.max(server.rss_bytes());
    }
    println!(
        "300 MB written; at most {} MiB of directory, {} of it log, {} MiB resident",
        directory / MIB,
        log / MIB,
        rss / MIB
    );
    assert!(directory < DIRECTORY_MAX, "{} MiB on disk", directory / MIB);
    assert!(log < LOG_MAX, "{} MiB of log", log / MIB);
    assert!(rss < RSS_MAX, "{} MiB resident", rss / MIB);
    server.kill();
    let took = server.restart();
    println!("serves {took:?} after kill -9");
    assert!(took < Duration::from_secs(10), "a restart took {took:?}");
    let mut client = server.client();
    assert_eq!(client.run("DBSIZE"), Value::Int(KEYS as i64));
    for n in 0..KEYS {
        assert!(
            client.run(&format!("GET key:{n}")) == Value::Bulk(noise(99 * KEYS + n, VALUE)),
            "key {n} is not the last written"
        );
    }
    drop(client);
    assert!(server.stop().success());
    server.restart();
    within(20, "what is left of the log is small", || server.log_bytes() < 20 * MIB);
}

/// Compaction reclaims the space of deleted, replaced and expired rows.
#[test]
fn the_space_of_dead_rows_is_reclaimed() {
    let server = small().start();
    let mut client = server.client();
    let tables = || server.admin_json(&["tables"])[0]["disk_bytes"].as_u64().expect("a size");
    for row in ["deleted", "replaced", "expired"] {
        load(&mut client, fields(row, 20_000, 500));
    }
    client.run("DEL deleted");
    client.run("DEL replaced");
    load(&mut client, fields("replaced", 100, 500));
    client.run("PEXPIRE expired 1");
    within(10, "what has expired is not counted", || client.run("DBSIZE") == Value::Int(1));
    let before = {
        within(20, "it lies on disk", || tables() > 10 * MIB);
        tables()
    };
    // The compaction filter drops cells that have been dead for some ten seconds, so the
    // first compaction may be too early.
    within(60, "the space is given back", || {
        assert_eq!(server.admin_json(&["compact", "db0", "--wait"])["status"], "done");
        tables() < before / 10
    });
    println!("{} MiB before, {} MiB after", before / MIB, tables() / MIB);
    assert_eq!(client.run("HLEN replaced"), Value::Int(100));
    assert_eq!(client.run("HGET replaced field:99"), Value::Bulk(noise(99, 500)));
}

/// The minimum of three measurements.
fn quickest(mut act: impl FnMut(usize)) -> Duration {
    let time = |n| {
        let began = Instant::now();
        act(n);
        began.elapsed()
    };
    (0..3).map(time).min().expect("three of them")
}

/// Deleting a huge hash takes no longer than deleting a small one, and its fields are
/// never visible in a new hash of the same name.
#[test]
fn del_is_constant_time_and_hides_the_old_fields() {
    let mut server = small().start();
    let mut client = server.client();
    for n in 0..3 {
        load(&mut client, fields(&format!("huge:{n}"), 200_000, 10));
        load(&mut client, fields(&format!("small:{n}"), 1, 10));
    }
    assert_eq!(client.run("HLEN huge:0"), Value::Int(200_000));
    let small = quickest(|n| assert_eq!(client.run(&format!("DEL small:{n}")), Value::Int(1)));
    let huge = quickest(|n| assert_eq!(client.run(&format!("DEL huge:{n}")), Value::Int(1)));
    println!("DEL of 1 field {small:?}, of 200,000 fields {huge:?}");
    assert!(
        huge < small * 20 + Duration::from_millis(5),
        "DEL of 1 field takes {small:?}, of 200,000 {huge:?}"
    );
    for restarted in [false, true] {
        for n in 0..3 {
            if !restarted {
                assert_eq!(client.run(&format!("HSET huge:{n} new value")), Value::Int(1));
            }
            assert_eq!(client.run(&format!("HLEN huge:{n}")), Value::Int(1));
            assert_eq!(
                client.run(&format!("HGETALL huge:{n}")),
                Value::Array(vec![Value::bulk("new"), Value::bulk("value")])
            );
            assert_eq!(client.run(&format!("HGET huge:{n} field:1")), Value::Nil);
        }
        server.restart();
        client = server.client();
    }
}

/// HSCAN of a huge hash returns every field, in bounded memory, and continues after a
/// restart.
#[test]
fn hscan_returns_every_field_in_bounded_memory() {
    const FIELDS: u64 = 200_000;
    let mut server = small().start();
    let mut client = server.client();
    load(&mut client, fields("huge", FIELDS, 10));
    let (mut found, mut cursor, mut pages) = (BTreeSet::new(), "0".to_owned(), 0);
    let mut rss = 0;
    loop {
        let Value::Array(page) = client.run(&format!("HSCAN huge {cursor} COUNT 500")) else {
            panic!("not a page")
        };
        let Value::Array(pairs) = &page[1] else { panic!("not pairs") };
        assert!(pairs.len() <= 2 * 1000, "{} fields for a COUNT of 500", pairs.len() / 2);
        found.extend(pairs.chunks(2).map(|pair| pair[0].text()));
        cursor = page[0].text();
        pages += 1;
        if pages % 50 == 0 {
            rss = rss.max(server.rss_bytes());
        }
        if pages == 200 {
            server.restart();
            client = server.client();
        }
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found.len() as u64, FIELDS);
    assert!(pages > 200, "the restart was not in the middle: {pages} pages");
    assert!(rss < 250 * MIB, "{} MiB resident", rss / MIB);
}

/// SCAN returns every key that exists throughout, while others come and go, across a
/// restart.
#[test]
fn scan_returns_every_stable_key_across_a_restart() {
    let mut server = small().start();
    let mut client = server.client();
    let set = |key: String| vec![b"SET".to_vec(), key.into_bytes(), b"x".to_vec()];
    load(&mut client, (0..3000).map(|n| set(format!("stays:{n}"))));
    load(
        &mut client,
        (0..500).map(|n| {
            vec![b"HSET".to_vec(), format!("hash:{n}").into_bytes(), b"f".to_vec(), b"v".to_vec()]
        }),
    );
    load(&mut client, (0..1000).map(|n| set(format!("goes:{n}"))));
    let (stays, hashes): (BTreeSet<String>, BTreeSet<String>) = (
        (0..3000).map(|n| format!("stays:{n}")).collect(),
        (0..500).map(|n| format!("hash:{n}")).collect(),
    );
    for (with, wanted) in [
        ("", &stays),
        ("MATCH stays:*", &stays),
        ("TYPE hash", &hashes),
        ("TYPE string MATCH stays:*", &stays),
    ] {
        let (mut found, mut cursor, mut pages) = (BTreeSet::new(), "0".to_owned(), 0u32);
        loop {
            let Value::Array(page) =
                client.run(format!("SCAN {cursor} COUNT 100 {with}").trim_end())
            else {
                panic!("not a page")
            };
            let Value::Array(keys) = &page[1] else { panic!("not keys") };
            found.extend(keys.iter().map(Value::text));
            cursor = page[0].text();
            if cursor == "0" {
                break;
            }
            pages += 1;
            // Other keys come and go meanwhile, all over the keyspace.
            load(&mut client, (0..20).map(|n| set(format!("comes:{pages}:{n}"))));
            load(
                &mut client,
                (0..20).map(|n| {
                    vec![b"DEL".to_vec(), format!("goes:{}", (pages * 20 + n) % 1000).into_bytes()]
                }),
            );
            if pages == 10 {
                server.restart();
                client = server.client();
            }
            assert!(pages < 1000, "a scan that does not end");
        }
        assert!(pages > 10, "{with}: the restart was not in the middle: {pages} pages");
        let missed: Vec<_> = wanted.difference(&found).collect();
        assert!(missed.is_empty(), "{with}: missed {missed:?}");
        if !with.is_empty() {
            assert!(found.is_subset(wanted), "{with}: {:?}", found.difference(wanted).next());
        }
    }
}

#[test]
fn background_threads_have_a_lower_priority() {
    let server = Server::builder().flag("set", "storage.compaction_threads=7").start();
    let (mut background, mut serving) = (Vec::new(), Vec::new());
    for thread in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let thread = thread.unwrap().path();
        // A thread may end meanwhile.
        let (Ok(name), Ok(stat)) =
            (read_to_string(thread.join("comm")), read_to_string(thread.join("stat")))
        else {
            continue;
        };
        let niceness: i32 = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_ascii_whitespace()
            .nth(16)
            .unwrap()
            .parse()
            .unwrap();
        let is_background = name.starts_with("rocksdb:") || name == "memtables\n";
        if is_background { &mut background } else { &mut serving }.push(niceness);
    }
    assert!(background.len() >= 9 && serving.len() >= 4, "{background:?} {serving:?}");
    assert!(
        background.iter().min().unwrap() - serving.iter().max().unwrap() >= 10,
        "{background:?} {serving:?}"
    );
}

/// After 8 MiB of answers a node leaves the following commands to another request, but
/// never a part of one command or transaction.
#[test]
fn large_answers_come_from_one_snapshot() {
    const LEN: usize = 1 << 20;
    let server = small().start();
    let keys: Vec<String> = (0..12).map(|number| format!("k{number}")).collect();
    let set = |client: &mut Client, letter: &str| {
        let value = letter.repeat(LEN);
        let words: Vec<&str> = ["MSET"]
            .into_iter()
            .chain(keys.iter().flat_map(|key| [key.as_str(), &value]))
            .collect();
        assert_eq!(client.call(&words).expect("a live server"), Value::ok());
    };
    let letters = |reply: Value| -> BTreeSet<char> {
        let Value::Array(values) = reply else { panic!("{reply:?}") };
        assert!(values.len() == keys.len() && values.iter().all(|value| value.text().len() == LEN));
        values.iter().filter_map(|value| value.text().chars().next()).collect()
    };
    let mut client = server.client();
    set(&mut client, "a");
    assert_eq!(client.run("MULTI"), Value::ok());
    for key in &keys {
        assert_eq!(client.run(&format!("GET {key}")).text(), "QUEUED");
    }
    assert_eq!(letters(client.run("EXEC")), ['a'].into());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = server.client();
            for letter in
                ["b", "c"].into_iter().cycle().take_while(|_| !done.load(Ordering::Relaxed))
            {
                set(&mut writer, letter);
            }
        });
        let mget = format!("MGET {}", keys.join(" "));
        let torn: Vec<_> = (0..60)
            .map(|_| letters(client.run(&mget)))
            .filter(|letters| letters.len() > 1)
            .collect();
        done.store(true, Ordering::Relaxed);
        assert_eq!(torn, Vec::new() as Vec<BTreeSet<char>>);
    });
}

/// The memory of reads is bounded in a transaction that writes, too, and in several at a
/// time.
#[test]
fn transactions_of_many_large_reads_take_bounded_memory() {
    const LEN: usize = 15 << 20;
    let server = small().flag("set", "node.memory=256MiB").start();
    let mut client = server.client();
    assert_eq!(
        client.call(&[&b"SET"[..], b"big", &noise(1, LEN)]).expect("a live server"),
        Value::ok()
    );
    let exec = |mut client: Client| {
        let gets = (0..300).map(|_| vec!["GET", "big"]);
        let words: Vec<_> = [vec!["MULTI"], vec!["SET", "x", "1"]]
            .into_iter()
            .chain(gets)
            .chain([vec!["EXEC"]])
            .collect();
        client.pipeline(&words).expect("a live server").pop().expect("what EXEC said")
    };
    let output: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| exec(server.client()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let rss = server.rss_bytes();
    for output in output {
        match output {
            Value::Array(replies) => {
                assert!(
                    replies.iter().all(|reply| reply.text().starts_with("ERR answer is larger")),
                    "{}",
                    replies.len()
                )
            }
            Value::Error(text) => assert!(text.starts_with("BUSY "), "{text}"),
            other => panic!("{}", other.text().len()),
        }
    }
    assert_eq!(client.run("EXISTS x"), Value::Int(0), "nothing was done");
    println!("{} MiB resident", rss / MIB);
    assert!(rss < 440 * MIB, "{} MiB resident", rss / MIB);
}

/// Sockets need descriptors, and so does the file of every flush. Connections, even
/// silent ones, must not take the last one.
#[test]
fn idle_clients_leave_descriptors_for_the_data() {
    const FIT: usize = 80;
    let server = small()
        .under(&["sh", "-c", "ulimit -Sn 128 && ulimit -Hn 256 && exec \"$@\"", "sh"])
        .start();
    let mut client = server.client();
    assert_eq!(
        client.run("CONFIG GET maxclients"),
        Value::Array(vec![Value::bulk("maxclients"), Value::bulk(&FIT.to_string())])
    );
    for output in [
        "Increased maximum number of open files to 256 (it was originally set to 128).".to_owned(),
        format!(
            "Current maximum open files is 256. maxclients has been reduced to {FIT} to \
             compensate for low ulimit."
        ),
    ] {
        assert!(server.output().contains(&output), "{output} is not in {}", server.output());
    }
    let refused = client.run(&format!("CONFIG SET maxclients {}", FIT + 1));
    assert!(
        refused.text().ends_with(&format!("specified number of clients, try with {FIT}")),
        "{refused:?}"
    );
    let mut idle: Vec<Client> = (0..300).map(|_| server.client()).collect();
    for surplus in &mut idle[FIT..] {
        assert_eq!(
            surplus.reply().expect("a reply"),
            Value::Error("ERR max number of clients reached".into())
        );
    }
    for n in 0..4 {
        load(&mut client, fields(&format!("row:{n}"), 100, 100));
        let done = server.admin(&["compact", "db0", "--wait"]);
        assert!(done.success, "{done:?}");
    }
    assert_eq!(server.page("/health/ready").0, 200);
    assert_eq!(client.run("HLEN row:3"), Value::Int(100));
}

/// The maximum of the process's resident memory, once it has stopped growing.
fn rss_peak(server: &Server) -> u64 {
    let (mut peak, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_millis(300) {
        let rss = server.rss_bytes();
        if rss > peak + MIB {
            (peak, last) = (rss, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    peak
}

/// A client that reads nothing holds at most a few times its output limit (8 MiB) and the
/// size of one answer, whatever it requests.
#[test]
fn a_client_that_does_not_read_holds_little_memory() {
    const HELD_MAX: u64 = 100 * MIB;
    let server = small().start();
    let mut client = server.client();
    assert_eq!(
        client.call(&[b"SET", &b"mid"[..], &vec![b'm'; MIB as usize]]).expect("a live server"),
        Value::ok()
    );
    load(&mut client, fields("h", 50_000, 1));
    load(
        &mut client,
        (0..200).map(|n| {
            [b"MSET".to_vec()]
                .into_iter()
                .chain((0..200).map(|m| format!("key:{n}:{m}").into_bytes()))
                .collect()
        }),
    );
    let ballast =
        format!("*2\r\n$5\r\nWATCH\r\n${MIB}\r\n{}\r\nGET a\r\n", "w".repeat(MIB as usize));
    for (asked, times) in [
        ("MULTI\r\nGET mid\r\nEXEC\r\n", 2000),
        ("MULTI\r\nSET x 1\r\nGET mid\r\nGET mid\r\nEXEC\r\n", 1000),
        ("HRANDFIELD h -100000\r\n", 200),
        ("HGETALL h\r\n", 300),
        ("KEYS *\r\n", 300),
        ("CLIENT LIST\r\n", 4000),
        ("GET mid\r\n", 4000),
        ("GET mid\r\nSET x 1\r\n", 1000),
        ("MULTI\r\nSET x 1\r\n", 1),
        ("COMMAND DOCS\r\n", 4000),
        (&format!("MULTI\r\n{}", "COMMAND DOCS\r\n".repeat(4000)), 1),
        (&format!("MULTI\r\n{}", ballast.repeat(100)), 1),
    ] {
        let mut deaf = TcpStream::connect(("127.0.0.1", server.port)).expect("the port is open");
        // The server expects small replies from then on.
        deaf.write_all("PING\r\n".repeat(5000).as_bytes()).expect("a live server");
        deaf.read_exact(&mut vec![0; "+PONG\r\n".len() * 5000]).expect("a live server");
        deaf.set_write_timeout(Some(Duration::from_millis(500))).expect("a live socket");
        let before = server.rss_bytes();
        // The server may not read all of it.
        let _taken = deaf.write_all(asked.repeat(times).as_bytes());
        let held = rss_peak(&server).saturating_sub(before);
        println!("{} MiB for {:?}", held / MIB, &asked[..asked.len().min(40)]);
        assert!(held < HELD_MAX, "{} MiB for {:?}", held / MIB, &asked[..asked.len().min(40)]);
        assert_eq!(client.run("PING"), Value::Status("PONG".into()));
    }
}

/// Two clients queue more than the limit of all clients: the one that holds more is
/// disconnected, and the log names it.
#[test]
fn the_largest_client_is_evicted_over_the_limit_of_all() {
    let server = Server::builder()
        .flag("durability", "os")
        .flag("set", "proxy.maxmemory_clients=\"32MiB\"")
        .start();
    let mut client = server.client();
    let limit =
        Value::Array(vec![Value::bulk("maxmemory-clients"), Value::bulk(&(32 * MIB).to_string())]);
    assert_eq!(client.run("CONFIG GET maxmemory-clients"), limit);
    let value = vec![b'q'; 3 * MIB as usize];
    let mut queuing: Vec<Client> = (0..2).map(|_| server.client()).collect();
    for (queue, commands) in queuing.iter_mut().zip([8, 3]) {
        assert_eq!(queue.run("CLIENT SETNAME queue"), Value::ok());
        assert_eq!(queue.run("MULTI"), Value::ok());
        for _ in 0..commands {
            // The last command may end the connection.
            let _queued = queue.call(&[b"SET", &b"k"[..], &value]);
        }
    }
    within(10, "one is disconnected", || {
        client.run("INFO stats").text().contains("evicted_clients:1\r\n")
    });
    assert!(queuing[0].call(&["PING"]).is_err(), "the one that holds more");
    assert_eq!(queuing[1].run("DISCARD"), Value::ok());
    assert!(
        server.output().contains("maxmemory-clients") && server.output().contains("name=queue"),
        "{}",
        server.output()
    );
}
