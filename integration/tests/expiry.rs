//! Expiry as clients see it: exact to the millisecond, for keys and fields, across
//! crashes, clock steps, and failovers between clocks that differ.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use integration::cluster::Cluster;
use integration::{Client, Server, ServerBuilder, Value, within};

fn small() -> ServerBuilder {
    Server::builder().flag("set", "raft_log.segment_size=1MiB").flag("durability", "os")
}

/// The server's clock, ms.
fn server_ms(client: &mut Client) -> i64 {
    let Value::Array(time) = client.run("TIME") else { panic!("TIME is a pair") };
    let number = |value: &Value| value.text().parse::<i64>().expect("a number");
    number(&time[0]) * 1000 + number(&time[1]) / 1000
}

/// Reads in a tight loop until the value is gone; `read` tells whether it exists. The
/// server's time before and after each read must agree: the value exists while the clock
/// after the read has not passed `at_ms`, and is gone once the clock before the read has.
/// Returns the number of reads that found it.
fn watch_it_go(client: &mut Client, at_ms: i64, mut read: impl FnMut(&mut Client) -> bool) -> u32 {
    let (mut there, deadline) = (0, Instant::now() + Duration::from_secs(10));
    loop {
        let before = server_ms(client);
        let is_there = read(client);
        let after = server_ms(client);
        if after < at_ms {
            assert!(is_there, "gone by {after}, and its time is {at_ms}");
        }
        if before >= at_ms {
            assert!(!is_there, "there after {before}, and its time was {at_ms}");
            return there;
        }
        there += u32::from(is_there);
        assert!(Instant::now() < deadline, "it does not expire");
    }
}

#[test]
fn a_key_expires_exactly_at_its_millisecond() {
    let server = small().start();
    let mut client = server.client();
    let mut seen = 0;
    for n in 0..20 {
        assert_eq!(client.run(&format!("SET key:{n} value PX 50")), Value::ok());
        let at_ms = client.run(&format!("PEXPIRETIME key:{n}")).int();
        seen += watch_it_go(&mut client, at_ms, |client| {
            client.run(&format!("GET key:{n}")) != Value::Nil
        });
        for (command, gone) in [
            ("EXISTS", 0),
            ("STRLEN", 0),
            ("PTTL", -2),
            ("TTL", -2),
            ("PEXPIRETIME", -2),
            ("PERSIST", 0),
            ("DEL", 0),
        ] {
            assert_eq!(client.run(&format!("{command} key:{n}")), Value::Int(gone), "{command}");
        }
        assert_eq!(client.run(&format!("TYPE key:{n}")), Value::Status("none".into()));
        // A write to an expired key creates a new one.
        assert_eq!(client.run(&format!("INCR key:{n}")), Value::Int(1));
        assert_eq!(client.run(&format!("PTTL key:{n}")), Value::Int(-1));
    }
    assert!(seen > 20, "the reads were too slow to show anything: {seen}");
}

/// The field is visible until its millisecond, and then gone from every command and
/// count.
#[test]
fn a_field_expires_exactly_at_its_millisecond() {
    let server = small().start();
    let mut client = server.client();
    let mut seen = 0;
    for n in 0..10 {
        let row = format!("hash:{n}");
        client.run(&format!("HSET {row} going 1 staying 2"));
        assert_eq!(
            client.run(&format!("HPEXPIRE {row} 50 FIELDS 1 going")),
            Value::Array(vec![Value::Int(1)])
        );
        let Value::Array(at) = client.run(&format!("HPEXPIRETIME {row} FIELDS 1 going")) else {
            panic!("one number")
        };
        let at_ms = at[0].int();
        seen += match n % 3 {
            0 => watch_it_go(&mut client, at_ms, |client| {
                client.run(&format!("HGET {row} going")) != Value::Nil
            }),
            1 => watch_it_go(&mut client, at_ms, |client| {
                client.run(&format!("HLEN {row}")) == Value::Int(2)
            }),
            _ => watch_it_go(&mut client, at_ms, |client| {
                match client.run(&format!("HGETALL {row}")) {
                    Value::Array(pairs) => pairs.len() == 4,
                    _ => false,
                }
            }),
        };
        assert_eq!(client.run(&format!("HLEN {row}")), Value::Int(1));
        assert_eq!(
            client.run(&format!("HGETALL {row}")),
            Value::Array(vec![Value::bulk("staying"), Value::bulk("2")])
        );
        assert_eq!(client.run(&format!("HEXISTS {row} going")), Value::Int(0));
        assert_eq!(
            client.run(&format!("HMGET {row} going staying")),
            Value::Array(vec![Value::Nil, Value::bulk("2")])
        );
        assert_eq!(
            client.run(&format!("HPTTL {row} FIELDS 2 going staying")),
            Value::Array(vec![Value::Int(-2), Value::Int(-1)])
        );
        // A hash without fields is deleted.
        client.run(&format!("HPEXPIRE {row} 30 FIELDS 1 staying"));
        within(5, "the hash goes", || client.run(&format!("EXISTS {row}")) == Value::Int(0));
        assert_eq!(client.run(&format!("TYPE {row}")), Value::Status("none".into()));
        assert_eq!(
            client.run(&format!("HSET {row} going again")),
            Value::Int(1),
            "a new hash, with no field of the old"
        );
        assert_eq!(
            client.run(&format!("HPTTL {row} FIELDS 1 going")),
            Value::Array(vec![Value::Int(-1)])
        );
    }
    assert!(seen > 10, "the reads were too slow to show anything: {seen}");
}

#[test]
fn dbsize_is_right_without_reads() {
    let server = small().start();
    let mut client = server.client();
    for n in 0..500 {
        client.run(&format!("SET going:{n} x PX {}", 1 + n % 200));
        client.run(&format!("SET staying:{n} x"));
    }
    within(10, "the expiry cycle removes what has expired", || {
        client.run("DBSIZE") == Value::Int(500)
    });
    let table = &server.admin_json(&["tables"])[0];
    assert_eq!((&table["rows"], &table["expiring"]), (&500.into(), &0.into()));
}

#[test]
fn keys_that_expire_during_downtime_are_gone_at_restart() {
    for killed in [true, false] {
        let mut server = small().start();
        let mut client = server.client();
        client.run("SET going x PX 300");
        client.run("SET staying x PX 1000000");
        client.run("HSET hash going 1 staying 2");
        client.run("HPEXPIRE hash 300 FIELDS 1 going");
        let at_ms = client.run("PEXPIRETIME staying").int();
        if killed {
            server.kill();
        } else {
            assert!(server.stop().success());
        }
        // This waits for the wall clock.
        sleep(Duration::from_millis(350));
        server.restart();
        let mut client = server.client();
        assert_eq!(client.run("GET going"), Value::Nil);
        assert_eq!(client.run("HLEN hash"), Value::Int(1));
        assert_eq!(
            client.run("HGETALL hash"),
            Value::Array(vec![Value::bulk("staying"), Value::bulk("2")])
        );
        assert_eq!(
            client.run("PEXPIRETIME staying"),
            Value::Int(at_ms),
            "absolute times do not move"
        );
        within(10, "the row goes, too", || client.run("DBSIZE") == Value::Int(2));
    }
}

/// Steps the wall clock of a process by the seconds in a file: a preloaded library that
/// replaces libc's clock.
const STEPPED_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        char text[32] = {0};
        int file = open(getenv("STEPPED_CLOCK"), O_RDONLY);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
            close(file);
        }
    }
    return (int)result;
}
"#;

/// A wall clock that a test controls, for a server.
struct SteppedClock {
    dir: tempfile::TempDir,
    environment: [String; 2],
}

impl SteppedClock {
    /// Builds the library with the C compiler; `None` where there is no compiler.
    fn build(seconds: i64) -> Option<SteppedClock> {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, library, offset) =
            (dir.path().join("clock.c"), dir.path().join("clock.so"), dir.path().join("offset"));
        std::fs::write(&source, STEPPED_CLOCK).expect("write the clock");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status();
        if !built.is_ok_and(|status| status.success()) {
            eprintln!("not run: there is no C compiler");
            return None;
        }
        let environment = [
            format!("LD_PRELOAD={}", library.display()),
            format!("STEPPED_CLOCK={}", offset.display()),
        ];
        let clock = SteppedClock { dir, environment };
        clock.step(seconds);
        Some(clock)
    }

    /// Sets the clock ahead by this many seconds.
    fn step(&self, seconds: i64) {
        std::fs::write(self.dir.path().join("offset"), seconds.to_string())
            .expect("write the offset");
    }

    /// The command line prefix of the server.
    fn words(&self) -> Vec<&str> {
        ["env"].into_iter().chain(self.environment.iter().map(String::as_str)).collect()
    }
}

#[test]
fn a_clock_that_steps_back_never_revives_a_key() {
    let Some(clock) = SteppedClock::build(0) else { return };
    let mut server = small().under(&clock.words()).start();
    let mut client = server.client();
    client.run("SET gone x PX 100");
    client.run("HSET hash gone 1 staying 2");
    client.run("HPEXPIRE hash 100 FIELDS 1 gone");
    client.run("SET staying x PX 1000000");
    within(5, "it expires", || {
        client.run("GET gone") == Value::Nil && client.run("HLEN hash") == Value::Int(1)
    });
    let before = server_ms(&mut client);
    clock.step(-3600);
    let wrong = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis()
        as i64
        - 3_600_000;
    assert!(wrong < before - 3_000_000);
    for round in 0..2 {
        for n in 0..50 {
            assert_eq!(client.run("GET gone"), Value::Nil, "round {round}, read {n}");
            assert_eq!(client.run("HGET hash gone"), Value::Nil);
            assert_eq!(client.run("INCR writes"), Value::Int(round * 50 + n + 1));
        }
        // A key written now does not live an hour longer than its TTL.
        client.run("SET short x PX 100");
        assert!((0..=100).contains(&client.run("PTTL short").int()));
        assert!(client.run("PEXPIRETIME short").int() > before, "stamps do not run backwards");
        assert_eq!(client.run("EXISTS staying"), Value::Int(1));
        // A restart under the wrong clock does not revive expired keys either.
        server.restart();
        client = server.client();
    }
}

/// Stamps of a clock that was a day ahead do not stop time under the right clock, neither
/// at runtime nor after a restart.
#[test]
fn a_clock_that_was_ahead_does_not_stop_time() {
    let Some(clock) = SteppedClock::build(86_400) else { return };
    let mut server = small().under(&clock.words()).start();
    server.client().run("SET ahead x PX 1000000");
    clock.step(0);
    for round in 0..2 {
        let mut client = server.client();
        assert_eq!(client.run(&format!("SET short:{round} x PX 500")), Value::ok());
        within(5, "time goes on", || client.run(&format!("GET short:{round}")) == Value::Nil);
        let (status, ready) = server.page("/health/ready");
        assert_eq!(
            (status, ready.contains("clock: the expiry clock is 86")),
            (200, true),
            "{ready}"
        );
        let page = server.page("/metrics").1;
        let ahead = page
            .lines()
            .find_map(|line| line.strip_prefix("bridle_clock_ahead_seconds "))
            .expect("the metric");
        assert!((86_000.0..86_500.0).contains(&ahead.parse::<f64>().expect("a number")), "{ahead}");
        server.restart();
    }
    // A jump ahead is followed gradually, and reported.
    let mut client = server.client();
    client.run("SET long x PX 3600000");
    clock.step(3 * 86_400);
    assert_eq!(client.run("EXISTS long"), Value::Int(1));
    let ready = server.page("/health/ready").1;
    assert!(ready.contains("behind the wall clock"), "{ready}");
}

/// Offsets of the nodes' clocks, seconds.
const OFF: [i64; 3] = [0, 2, -2];
/// The maximum difference of two clocks.
const SKEW_MS: i64 = 4_000;

#[test]
fn failover_with_clock_skew_never_revives_a_key() {
    const LIFE_MS: i64 = 60_000;
    let mut cluster = Cluster::builder().partitions(1).durability("os").clocks().start();
    OFF.iter().enumerate().for_each(|(number, off)| cluster.set_clock(number, *off));
    let lead = |cluster: &Cluster, number: usize| {
        within(20, "the wanted one leads", || {
            let leads = || cluster.leaders("db0").is_ok_and(|leaders| leaders[0] == Some(number));
            leads() || cluster.transfer("db0", 0, number).is_ok() && leads()
        });
    };
    let mut lives = Vec::new();
    for (round, (leader, is_killed)) in
        [(2, false), (1, true), (0, false), (1, false), (1, true)].into_iter().enumerate()
    {
        (0..3)
            .filter(|number| !cluster.runs(*number))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|number| cluster.launch(number));
        cluster.wait_until_serving();
        lead(&cluster, leader);
        let mut client = cluster.client((leader + 1) % 3).expect("it serves");
        let began = Instant::now();
        assert_eq!(client.run(&format!("SET life:{round} x PX {LIFE_MS}")), Value::ok());
        lives.push((round, began));
        assert_eq!(client.run(&format!("SET short:{round} x PX 50")), Value::ok());
        // After a leader with a faster clock, time stands still for a while: it does not
        // run back.
        within(10, "it expires", || client.run(&format!("GET short:{round}")) == Value::Nil);
        match is_killed {
            true => cluster.kill(leader),
            false => lead(&cluster, (leader + 2) % 3),
        }
        for _ in 0..50 {
            for gone in 0..=round {
                assert_eq!(
                    client.run(&format!("GET short:{gone}")),
                    Value::Nil,
                    "round {round}: short:{gone} is back"
                );
            }
        }
        for (life, began) in &lives {
            let left_ms = client.run(&format!("PTTL life:{life}")).int();
            let least_ms = LIFE_MS - SKEW_MS - began.elapsed().as_millis() as i64;
            assert!(
                (least_ms..=LIFE_MS).contains(&left_ms),
                "round {round}: life:{life} has {left_ms} ms left, not at least {least_ms}"
            );
        }
    }
}
