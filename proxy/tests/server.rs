//! Server commands over a socket, as administrators and monitoring agents use them.

mod kit;

use std::time::Duration;

use cluster::{CallError, Fault, FaultKind};
use kit::{Client, Server, command};
use row::StringOp;

/// An INFO field.
async fn field(client: &mut Client, section: &str, name: &str) -> String {
    // A bulk string begins with its length, which gives the end.
    let head = client.until(&format!("INFO {section}"), "\r\n").await;
    let len: usize = head.trim().trim_start_matches('$').parse().expect("a length");
    let text = client.take(len + 2).await;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
}

#[tokio::test]
async fn info_counts_what_clients_do() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SET k v", "+OK\r\n").await;
    client.ask("GET k", "$1\r\nv\r\n").await;
    client.ask("INCR k", "-ERR value is not an integer or out of range\r\n").await;
    client.ask("GET", "-ERR wrong number of arguments for 'get' command\r\n").await;
    assert_eq!(field(&mut client, "clients", "connected_clients").await, "1");
    assert_eq!(field(&mut client, "server", "redis_version").await, "7.4.0");
    assert_eq!(field(&mut client, "errorstats", "errorstat_ERR").await, "count=2");
    let get = field(&mut client, "commandstats", "cmdstat_get").await;
    assert!(
        get.starts_with("calls=1,") && get.ends_with(",rejected_calls=1,failed_calls=0"),
        "{get}"
    );
    let incr = field(&mut client, "all", "cmdstat_incr").await;
    assert!(
        incr.starts_with("calls=1,") && incr.ends_with(",rejected_calls=0,failed_calls=1"),
        "{incr}"
    );
    assert!(
        field(&mut client, "stats", "total_net_input_bytes").await.parse::<u64>().unwrap() > 20
    );
    client.ask("CONFIG RESETSTAT", "+OK\r\n").await;
    assert_eq!(field(&mut client, "stats", "total_error_replies").await, "0");
}

#[tokio::test]
async fn a_full_disk_and_a_damaged_record_are_told_apart() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for error in [
        CallError::ReadOnly("no space left".into()),
        CallError::Fault(Fault::new(FaultKind::Full, "no space left")),
        CallError::Fault(Fault::damaged("not a head record")),
    ] {
        server.world.errors.lock().push_back(error);
    }
    client.ask("INCR a", "-MISCONF Writes are refused, reads go on: no space left\r\n").await;
    client.ask("INCR a", "-MISCONF storage fault: no space left\r\n").await;
    client.ask("INCR a", "-ERR storage fault: not a head record\r\n").await;
    assert_eq!(field(&mut client, "errorstats", "errorstat_MISCONF").await, "count=2");
    assert_eq!(field(&mut client, "errorstats", "errorstat_ERR").await, "count=1");
}

#[tokio::test]
async fn config_is_read_and_changed() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("CONFIG GET maxclients", "*2\r\n$10\r\nmaxclients\r\n$5\r\n10000\r\n").await;
    client.ask("CONFIG SET maxclients 5 timeout 60", "+OK\r\n").await;
    client
        .ask(
            "CONFIG GET TIMEOUT max[c]lients",
            "*4\r\n$10\r\nmaxclients\r\n$1\r\n5\r\n$7\r\ntimeout\r\n$2\r\n60\r\n",
        )
        .await;
    client.ask("CONFIG GET nosuch", "*0\r\n").await;
    client
        .ask(
            "CONFIG SET timeout 5 nosuch 1",
            "-ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'\r\n",
        )
        .await;
    client.ask("CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$2\r\n60\r\n").await;
    client
        .ask(
            "CONFIG SET port 1",
            "-ERR CONFIG SET failed (possibly related to argument 'port') - can't set immutable \
             config\r\n",
        )
        .await;
    client.ask("CONFIG REWRITE", "-ERR The server is running without a config file\r\n").await;
}

#[tokio::test]
async fn a_password_holds_for_those_who_come_after() {
    let server = Server::start().await;
    let (mut old, mut new) = (server.connect().await, server.connect().await);
    old.ask("CONFIG SET requirepass hunter2", "+OK\r\n").await;
    old.ask("PING", "+PONG\r\n").await;
    drop(new);
    new = server.connect().await;
    new.ask("INFO", "-NOAUTH Authentication required.\r\n").await;
    new.ask("AUTH hunter2", "+OK\r\n").await;
    new.ask("CONFIG GET requirepass", "*2\r\n$11\r\nrequirepass\r\n$7\r\nhunter2\r\n").await;
}

#[tokio::test]
async fn secrets_are_in_no_log() {
    let server = Server::with(1, |settings| settings.slowlog_slower_than_us = 0).await;
    let mut client = server.connect().await;
    client.ask("CONFIG SET requirepass hunter2", "+OK\r\n").await;
    client.ask("AUTH hunter2", "+OK\r\n").await;
    client.ask("HELLO 2 AUTH default hunter2 SETNAME me", "*14\r\n").await;
    let log = format!("{:?}", server.proxy.slowlog.get(-1));
    assert!(log.contains("(redacted)") && !log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn slow_commands_are_logged() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("CONFIG SET slowlog-log-slower-than 0 slowlog-max-len 2", "+OK\r\n").await;
    client.ask("SLOWLOG RESET", "+OK\r\n").await;
    client.ask("SET a b", "+OK\r\n").await;
    client.ask("GET a", "$1\r\nb\r\n").await;
    client.ask("GET a", "$1\r\nb\r\n").await;
    client.ask("CONFIG SET slowlog-log-slower-than -1", "+OK\r\n").await;
    client.ask("SLOWLOG LEN", ":2\r\n").await;
    let entry = client.until("SLOWLOG GET 1", "$0\r\n\r\n").await;
    assert!(entry.contains("*2\r\n$3\r\nGET\r\n$1\r\na\r\n$"), "{entry}");
    client.ask("SLOWLOG GET -2", "-ERR count should be greater than or equal to -1\r\n").await;
}

#[tokio::test]
async fn commands_that_came_together_share_the_time() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("HSET h f v", ":1\r\n").await;
    client.ask("CONFIG SET slowlog-log-slower-than 0", "+OK\r\n").await;
    client.ask("SLOWLOG RESET", "+OK\r\n").await;
    client.send("GET a\r\n".repeat(15) + "HGETALL h\r\n").await;
    client.expect(&("$-1\r\n".repeat(15) + "*2\r\n$1\r\nf\r\n$1\r\nv\r\n")).await;
    client.send("GET a\r\nGET b\r\n").await;
    client.expect("$-1\r\n$-1\r\n").await;
    client.ask("CONFIG SET slowlog-log-slower-than -1", "+OK\r\n").await;
    let log = format!("{:?}", server.proxy.slowlog.get(-1));
    assert_eq!(
        (log.matches("HGETALL").count(), log.matches("GET\"").count()),
        (1, 2),
        "a fast one is not slow beside another: {log}"
    );
    *server.world.delay.lock() = Duration::from_millis(100);
    client.send("INCR a\r\n".repeat(16)).await;
    client.expect(&(1..=16).map(|number| format!(":{number}\r\n")).collect::<String>()).await;
    *server.world.delay.lock() = Duration::ZERO;
    let incr = field(&mut client, "commandstats", "cmdstat_incr").await;
    let usec: u64 =
        incr.strip_prefix("calls=16,usec=").unwrap().split(',').next().unwrap().parse().unwrap();
    assert!((90_000..1_000_000).contains(&usec), "{incr}");
}

#[tokio::test]
async fn slow_events_are_kept() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("LATENCY LATEST", "*0\r\n").await;
    client.ask("CONFIG SET latency-monitor-threshold 10", "+OK\r\n").await;
    client.ask("DEBUG SLEEP 0.02", "+OK\r\n").await;
    let latest = client.until("LATENCY LATEST", "command\r\n").await;
    assert!(latest.starts_with("*1\r\n*4\r\n$7\r\n"), "{latest}");
    client.until("PING", "+PONG\r\n").await;
    client.ask("LATENCY RESET command nosuch", ":1\r\n").await;
    client.ask("LATENCY RESET", ":0\r\n").await;
    client.ask("LATENCY HISTORY command", "*0\r\n").await;
    client.until("LATENCY HISTOGRAM ping", "histogram_usec\r\n").await;
}

#[tokio::test]
async fn monitors_see_what_others_do() {
    let server = Server::start().await;
    let (mut monitor, mut client) = (server.connect().await, server.connect().await);
    monitor.ask("MONITOR", "+OK\r\n").await;
    client.send(command(&["SELECT", "3"]) + &command(&["set", "k \n", "\"v\""])).await;
    client.expect("+OK\r\n+OK\r\n").await;
    client.ask("CONFIG SET timeout 0", "+OK\r\n").await;
    client.ask("AUTH default hunter2", "+OK\r\n").await;
    let seen = monitor.until_seen("(redacted)\"\r\n").await;
    let address = client.stream.local_addr().unwrap();
    let expected = [
        // As in Redis, it is shown after it has run.
        format!("[3 {address}] \"SELECT\" \"3\""),
        format!("[3 {address}] \"set\" \"k \\n\" \"\\\"v\\\"\""),
        format!("[3 {address}] \"AUTH\" \"(redacted)\" \"(redacted)\""),
    ];
    let seen: Vec<_> = seen.lines().collect();
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for (seen, expected) in seen.iter().zip(&expected) {
        assert!(seen.starts_with('+') && seen.ends_with(expected), "{seen}");
    }
    monitor.ask("RESET", "+RESET\r\n").await;
    client.ask("PING", "+PONG\r\n").await;
    monitor.ask("PING", "+PONG\r\n").await;
}

#[tokio::test]
async fn shutdown_ends_the_server_without_a_reply() {
    let mut server = Server::start().await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    other.ask("PING", "+PONG\r\n").await;
    client.ask("SHUTDOWN ABORT", "-ERR No shutdown in progress.\r\n").await;
    client.ask("SHUTDOWN SAVE NOSAVE", "-ERR syntax error\r\n").await;
    client.send("SHUTDOWN NOSAVE\r\n").await;
    client.expect_end().await;
    other.expect_end().await;
    (&mut server.serving).await.unwrap();
}

#[tokio::test]
async fn flushall_empties_all_tables_in_order() {
    let server = Server::with(4, |_| {}).await;
    let mut client = server.connect().await;
    client
        .send(
            "SET a 1\r\nSELECT 1\r\nSET b 2\r\nFLUSHALL\r\nSET c 3\r\nDBSIZE\r\nSELECT \
             0\r\nDBSIZE\r\n",
        )
        .await;
    client.expect("+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n:1\r\n+OK\r\n:0\r\n").await;
}

#[tokio::test]
async fn small_answers() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("WAIT 1 10", ":0\r\n").await;
    client.ask("WAITAOF 1 0 10", "*2\r\n:1\r\n:0\r\n").await;
    assert!(client.until("LOLWUT", "Bridle ver. test\n\r\n").await.starts_with('$'));
    assert!(client.until("TIME", "\r\n").await.starts_with("*2\r\n"));
    drop(client);
    let mut client = server.connect().await;
    client.until("MEMORY DOCTOR", "\n\r\n").await;
    client.ask("HELLO 3", "%7\r\n").await;
    drop(client);
    let mut client = server.connect().await;
    client.until("MEMORY STATS", "peak.allocated\r\n:").await;
}

/// Lines that agents split at commas have the expected parts, and a table that cannot be
/// counted is named.
#[tokio::test]
async fn info_keyspace_of_a_cluster_is_counted_everywhere() {
    let world = kit::World::new(3);
    let server_info = proxy::ServerInfo { mode: "cluster", ..proxy::ServerInfo::default() };
    let stop = tokio_util::sync::CancellationToken::new();
    let proxy = proxy::Proxy::new(
        proxy::Settings::default(),
        server_info,
        world.clone(),
        world.clone(),
        world.clone(),
        stop,
    );
    let table = world.create("db0").id;
    for index in 0..3 {
        let partition = cluster::PartitionId { table, index };
        let until = row::op::Ttl::Until(row::op::Deadline::In(60_000));
        let expires = row::op::Op::String(StringOp::GetExpire { key: "a".into(), ttl: until });
        world.write(partition, vec![kit::set("a", "1")]);
        world.write(partition, vec![kit::set("b", "1"), expires]);
    }
    let keyspace = async || match proxy::info::info(&proxy, &["keyspace".into()]).await {
        commands::Reply::Text(text) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(keyspace().await, "# Keyspace\r\ndb0:keys=6,expires=3,avg_ttl=0,subexpiry=0\r\n");
    world.errors.lock().extend((0..3).map(|_| CallError::Fault(Fault::io("disk"))));
    assert_eq!(keyspace().await, "# Keyspace\r\nbridle_uncounted:db0\r\n");
}

#[tokio::test]
async fn monitors_see_commands_when_they_run_and_with_their_database() {
    let server = Server::start().await;
    let (mut monitor, mut client) = (server.connect().await, server.connect().await);
    monitor.ask("MONITOR", "+OK\r\n").await;
    client
        .send(
            "MULTI\r\nSET a 1\r\nDISCARD\r\nSELECT 2\r\nSET b 1\r\nMULTI\r\nSELECT 3\r\nGET \
             a\r\nKEYS *\r\nEXEC\r\n",
        )
        .await;
    client
        .send("WATCH a\r\nSET a 1\r\nMULTI\r\nGET a\r\nEXEC\r\nSELECT 0\r\nSELECT 99\r\nPING\r\n")
        .await;
    client.until_seen("+PONG\r\n").await;
    let seen = monitor.until_seen("\"PING\"\r\n").await;
    let seen: Vec<String> = seen
        .lines()
        .map(|line| {
            let (_, shown) = line.split_once('[').expect("a database and an address");
            let (database, rest) = shown.split_once(' ').expect("an address");
            let argv = rest.split_once("] ").expect("words").1.replace('"', "");
            format!("{database} {argv}")
        })
        .collect();
    let expected = [
        "0 MULTI",
        "0 DISCARD",
        "2 SELECT 2",
        "2 SET b 1",
        "2 MULTI",
        "3 SELECT 3",
        "3 GET a",
        "3 KEYS *",
        "3 EXEC",
        "3 WATCH a",
        "3 SET a 1",
        "3 MULTI",
        "3 EXEC",
        "0 SELECT 0",
        "0 SELECT 99",
        "0 PING",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn hits_and_misses_are_counted_by_key() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let figures =
        || (server.proxy.stats.keyspace_hits.get(), server.proxy.stats.keyspace_misses.get());
    // Without a table, every look-up is a miss.
    client.send("GET a\r\nMGET a b\r\n").await;
    client.expect("$-1\r\n*2\r\n$-1\r\n$-1\r\n").await;
    assert_eq!(figures(), (0, 3));
    client.send("SET a 1\r\nHSET h f v\r\nINCR n\r\nDEL nothing\r\nEXPIRE a 100\r\n").await;
    client.expect("+OK\r\n:1\r\n:1\r\n:0\r\n:1\r\n").await;
    assert_eq!(figures(), (0, 3), "what only writes does not count");
    for (line, hits, misses) in [
        ("GET a", 1, 0),
        ("GET h", 1, 0),
        ("MGET a b h", 2, 1),
        ("EXISTS a a b", 2, 1),
        ("TTL a", 1, 0),
        ("TTL b", 0, 1),
        ("TYPE b", 0, 1),
        ("STRLEN a", 1, 0),
        ("STRLEN b", 0, 1),
        ("GETRANGE a 5 6", 1, 0),
        ("GETRANGE b 0 1", 0, 1),
        ("SET a 2 GET", 1, 0),
        ("HGET h f", 1, 0),
        ("HGET h x", 1, 0),
        ("HGET none x", 0, 1),
        ("HMGET h f x", 1, 0),
        ("HMGET none f x", 0, 1),
        ("HGETALL h", 1, 0),
        ("HGETALL none", 0, 1),
        ("HLEN h", 1, 0),
        ("HLEN none", 0, 1),
        ("HEXISTS h x", 1, 0),
        ("HSTRLEN none x", 0, 1),
        ("HSCAN h 0 MATCH z", 1, 0),
        ("HSCAN none 0", 0, 1),
        ("HRANDFIELD h 0", 1, 0),
        ("HRANDFIELD none 1", 0, 1),
        ("GETDEL a", 1, 0),
        ("GETDEL a", 0, 1),
        ("DUMP a", 0, 1),
        ("OBJECT ENCODING h", 1, 0),
        ("MEMORY USAGE h", 0, 0),
        ("SCAN 0", 0, 0),
        ("DBSIZE", 0, 0),
    ] {
        let before = figures();
        client.send(format!("{line}\r\nECHO done\r\n")).await;
        client.until_seen("$4\r\ndone\r\n").await;
        assert_eq!(figures(), (before.0 + hits, before.1 + misses), "{line}");
    }
    let before = figures();
    client.send("MULTI\r\nGET h\r\nGET none\r\nEXEC\r\nECHO done\r\n").await;
    client.until_seen("$4\r\ndone\r\n").await;
    assert_eq!(figures(), (before.0 + 1, before.1 + 1));
    let (hits, misses) = figures();
    client.send("INFO stats\r\nECHO done\r\n").await;
    let info = client.until_seen("$4\r\ndone\r\n").await;
    assert!(
        info.contains(&format!("\r\nkeyspace_hits:{hits}\r\nkeyspace_misses:{misses}\r\n")),
        "{info}"
    );
    client.ask("CONFIG RESETSTAT", "+OK\r\n").await;
    assert_eq!(figures(), (0, 0));
}
