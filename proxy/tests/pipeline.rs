//! Chunks, batches and tables: requests made of commands, and replies when a partition
//! does not answer.

mod kit;

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use cluster::{CallError, Fault, FaultKind};
use kit::{CROSSSLOT, Metas, Server, command};
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn a_pipeline_to_one_partition_is_one_request() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    let before = server.world.calls.load(Relaxed);
    client
        .send("INCR a\r\nINCR a\r\nGET a\r\nPING\r\nSELECT 0\r\nINCR a\r\nGET a\r\n".repeat(10))
        .await;
    let mut expected = String::new();
    for round in 0..10 {
        let at = 1 + 3 * round;
        let (two, three) = ((at + 2).to_string(), (at + 3).to_string());
        let _ = write!(
            expected,
            ":{}\r\n:{two}\r\n${}\r\n{two}\r\n+PONG\r\n+OK\r\n:{three}\r\n",
            at + 1,
            two.len()
        );
        let _ = write!(expected, "${}\r\n{three}\r\n", three.len());
    }
    client.expect(&expected).await;
    assert_eq!(server.world.calls.load(Relaxed) - before, 1);
}

#[tokio::test]
async fn reads_alone_are_answered_on_the_spot() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    let calls = server.world.calls.load(Relaxed);
    client.send("GET a\r\nEXISTS a b\r\n".repeat(50)).await;
    client.expect(&"$1\r\n1\r\n:1\r\n".repeat(50)).await;
    assert_eq!(server.world.calls.load(Relaxed), calls);
}

#[tokio::test]
async fn many_partitions_answer_in_the_order_of_the_commands() {
    let server = Server::with(7, |_| {}).await;
    let mut client = server.connect().await;
    let (mut sent, mut expected) = (String::new(), String::new());
    for number in 0..3000 {
        let key = format!("key:{number}");
        sent += &command(&["SET", &key, &number.to_string()]);
        sent += &command(&["GET", &key]);
        let text = number.to_string();
        let _ = write!(expected, "+OK\r\n${}\r\n{text}\r\n", text.len());
    }
    client.send(sent).await;
    client.expect(&expected).await;
    client.ask("MGET key:5 nokey key:2999", "*3\r\n$1\r\n5\r\n$-1\r\n$4\r\n2999\r\n").await;
    client.ask("DBSIZE", ":3000\r\n").await;
    client.ask("RENAME key:1 key:2", &format!("-{CROSSSLOT}\r\n")).await;
    client.ask("RENAME key:1 {key:1}x", "+OK\r\n").await;
    let names = client.until("KEYS key:29*", "*").await;
    assert_eq!(names, "*");
}

#[tokio::test]
async fn scan_goes_through_all_partitions() {
    let server = Server::with(5, |_| {}).await;
    let mut client = server.connect().await;
    let sets: String =
        (0..500).map(|number| command(&["SET", &format!("k{number}"), "v"])).collect();
    client.send(sets).await;
    client.expect(&"+OK\r\n".repeat(500)).await;
    let (mut cursor, mut seen) = ("0".to_owned(), std::collections::BTreeSet::new());
    for _ in 0..1000 {
        let head = client.until(&format!("SCAN {cursor} COUNT 7"), "\r\n*").await;
        cursor = head.lines().nth(2).unwrap().to_owned();
        let count: usize = client.until("", "\r\n").await.trim().parse().unwrap();
        for _ in 0..count {
            client.until("", "\r\n").await;
            seen.insert(client.until("", "\r\n").await);
        }
        if cursor == "0" {
            break;
        }
    }
    assert_eq!((cursor.as_str(), seen.len()), ("0", 500));
    let key = client.until("RANDOMKEY", "\r\nk").await;
    assert!(key.starts_with('$'));
}

#[tokio::test]
async fn missing_table_reads_as_empty_and_is_created_by_a_write() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SELECT 5", "+OK\r\n").await;
    client
        .send(
            "GET a\r\nDEL a\r\nDBSIZE\r\nFLUSHDB\r\nKEYS *\r\nSCAN 0\r\nRANDOMKEY\r\nHGETALL \
             h\r\nEXPIRE a 1\r\n",
        )
        .await;
    client
        .expect("$-1\r\n:0\r\n:0\r\n+OK\r\n*0\r\n*2\r\n$1\r\n0\r\n*0\r\n$-1\r\n*0\r\n:0\r\n")
        .await;
    assert!(server.proxy.catalogue.tables().is_empty());
    client.send("GET a\r\nSET a 1\r\nGET a\r\n").await;
    client.expect("$-1\r\n+OK\r\n$1\r\n1\r\n").await;
    assert_eq!(server.proxy.catalogue.tables()[0].name, "db5");
    client.ask("SELECT 0", "+OK\r\n").await;
    client.ask("GET a", "$-1\r\n").await;
}

#[tokio::test]
async fn select_knows_numbers_and_existing_names() {
    let server = Server::start().await;
    server.world.create("users");
    let mut client = server.connect().await;
    client.ask("SELECT 16", "-ERR DB index is out of range\r\n").await;
    client.ask("SELECT -1", "-ERR DB index is out of range\r\n").await;
    client.ask("SELECT nobody", "-ERR no such table 'nobody'\r\n").await;
    client.ask("SELECT users", "+OK\r\n").await;
    client.ask("SET a 1", "+OK\r\n").await;
    server.connect().await.ask("GET a", "$-1\r\n").await;
}

#[tokio::test]
async fn rows_move_and_are_copied_between_tables() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("HSET h f v", ":1\r\n").await;
    client.ask("EXPIRE h 1000", ":1\r\n").await;
    client.ask("COPY h h2 DB 3", ":1\r\n").await;
    client.ask("COPY h h2 DB 3", ":0\r\n").await;
    client.ask("MOVE h 0", "-ERR source and destination objects are the same\r\n").await;
    client.ask("MOVE h 99", "-ERR DB index is out of range\r\n").await;
    client.ask("MOVE none 3", ":0\r\n").await;
    client.ask("MOVE h 3", ":1\r\n").await;
    client.ask("EXISTS h", ":0\r\n").await;
    client.ask("SELECT 3", "+OK\r\n").await;
    client.ask("HGET h f", "$1\r\nv\r\n").await;
    client.ask("TTL h", ":1000\r\n").await;
    client.ask("EXISTS h h2", ":2\r\n").await;
    client.ask("MOVE h2 0", ":1\r\n").await;
    client.ask("FLUSHALL", "+OK\r\n").await;
    client.ask("DBSIZE", ":0\r\n").await;
}

#[tokio::test]
async fn partition_without_leader_is_retried_until_the_deadline() {
    let server = Server::with(1, |settings| settings.call_deadline_ms = 300).await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    let no_leader = || CallError::NoLeader("election".into());
    server.world.errors.lock().extend([no_leader(), no_leader(), no_leader()]);
    client.ask("INCR a", ":2\r\n").await;
    server.world.errors.lock().extend([no_leader(), no_leader()]);
    client.ask("GET a", "$1\r\n2\r\n").await;
    server.world.errors.lock().extend(std::iter::repeat_with(no_leader).take(1000));
    let begun = Instant::now();
    client
        .ask("INCR a", "-CLUSTERDOWN The partition has no leader, nothing was done: election\r\n")
        .await;
    assert!((Duration::from_millis(150)..Duration::from_secs(5)).contains(&begun.elapsed()));
    server.world.errors.lock().clear();
    client.ask("GET a", "$1\r\n2\r\n").await;
}

#[tokio::test]
async fn failed_write_is_never_retried_and_reports_its_outcome() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    let unknown = "-UNKNOWNOUTCOME The write may or may not have happened, read before trying \
                   again: lost\r\n";
    for (error, line) in [
        (CallError::Unknown("lost".into()), unknown),
        (
            CallError::Overloaded,
            "-BUSY Too many requests wait for this partition, nothing was done, try again \
             later\r\n",
        ),
        (
            CallError::OutOfMemory,
            "-BUSY Pending requests use all the memory that the server has for them, nothing was \
             done, try again later\r\n",
        ),
        (
            CallError::ReadOnly("disk full".into()),
            "-MISCONF Writes are refused, reads go on: disk full\r\n",
        ),
        (CallError::Fault(Fault::damaged("bad block")), "-ERR storage fault: bad block\r\n"),
        (
            CallError::Fault(Fault::new(FaultKind::Full, "no space")),
            "-MISCONF storage fault: no space\r\n",
        ),
        (
            CallError::TooLarge("9 bytes".into()),
            "-ERR The request is too large, nothing was done: 9 bytes\r\n",
        ),
    ] {
        let calls = server.world.calls.load(Relaxed);
        server.world.errors.lock().push_back(error);
        // Every command of the request gets the error; the commands before and after it
        // get their own replies.
        client.send("PING\r\nINCR a\r\nINCR a\r\nPING\r\n").await;
        client.expect(&format!("+PONG\r\n{line}{line}+PONG\r\n")).await;
        assert_eq!(server.world.calls.load(Relaxed), calls + 1);
    }
    client.ask("GET a", "$1\r\n1\r\n").await;
}

#[tokio::test]
async fn partly_done_write_reports_an_unknown_outcome() {
    let server = Server::with(8, |_| {}).await;
    let mut client = server.connect().await;
    client.ask("MSET a 1 b 2 c 3 d 4 e 5", "+OK\r\n").await;
    let busy = "BUSY Too many requests wait for this partition, nothing was done, try again later";
    let partly = format!(
        "-UNKNOWNOUTCOME The write was done for keys in some partitions; for the others: {busy}\r\n"
    );
    for command in ["MSET a 1 b 2 c 3 d 4 e 5", "DEL a b c d e", "FLUSHDB", "FLUSHALL"] {
        server.world.errors.lock().push_back(CallError::Overloaded);
        client.ask(command, &partly).await;
        client.ask("MSET a 1 b 2 c 3 d 4 e 5", "+OK\r\n").await;
    }
    // Reads have no effect, wherever they fail; and an unknown outcome takes precedence.
    server.world.errors.lock().push_back(CallError::Overloaded);
    client.ask("EXISTS a b c d e", &format!("-{busy}\r\n")).await;
    let all = [CallError::Overloaded, CallError::Unknown("lost".into())]
        .into_iter()
        .chain(vec![CallError::Overloaded; 6]);
    server.world.errors.lock().extend(all);
    let unknown = "-UNKNOWNOUTCOME The write may or may not have happened, read before trying \
                   again: lost\r\n";
    client.ask("FLUSHDB", unknown).await;
    client.ask("DBSIZE", ":5\r\n").await;
}

#[tokio::test]
async fn a_pipeline_may_ask_more_partitions_than_one_round_holds() {
    let server = Server::with(1000, |_| {}).await;
    let mut client = server.connect().await;
    let tables: String =
        (0..16).map(|table| format!("SELECT {table}\r\nSET key {table}\r\n")).collect();
    client.send(tables).await;
    client.expect(&"+OK\r\n".repeat(32)).await;
    let sizes: String =
        (0..16).map(|table| format!("SELECT {table}\r\nDBSIZE\r\nGET key\r\n")).collect();
    client.send(sizes.repeat(6)).await;
    let replies: String = (0..16)
        .map(|table: u32| format!("+OK\r\n:1\r\n${}\r\n{table}\r\n", table.to_string().len()))
        .collect();
    client.expect(&replies.repeat(6)).await;
}

#[tokio::test]
async fn node_may_answer_a_large_read_in_parts() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("MSET a 1 b 2 c 3 d 4 e 5", "+OK\r\n").await;
    server.world.answers_max.store(2, Relaxed);
    let reads = server.world.reads.load(Relaxed);
    client
        .ask("MGET a b c d e", "*5\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n5\r\n")
        .await;
    assert_eq!(server.world.reads.load(Relaxed) - reads, 3);
}

#[tokio::test]
async fn client_may_send_its_whole_pipeline_before_it_reads() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let value = String::from_utf8(kit::value(100_000).to_vec()).unwrap();
    client.send(command(&["SET", "k", &value])).await;
    client.expect("+OK\r\n").await;
    // 400 MB of replies to 1 MB of requests, none of them read before all are sent.
    let gets = command(&["GET", "k"]).repeat(4000);
    let more = command(&["ECHO", &"x".repeat(200)]).repeat(4000);
    client.send(gets + &more).await;
    let one = format!("$100000\r\n{value}\r\n").len();
    let total = one * 4000 + "$200\r\n\r\n".len() * 4000 + 200 * 4000;
    let (mut got, mut piece) = (0, vec![0; 1 << 20]);
    while got < total {
        let read =
            tokio::time::timeout(Duration::from_secs(20), client.stream.read(&mut piece)).await;
        let read = read.expect("the server goes on").unwrap();
        assert!(read > 0, "closed after {got} of {total}");
        got += read;
        let held = server.proxy.clients.all()[0].buffered_bytes();
        assert!(held.0 < 64 << 20, "{held:?} held for a client that reads slowly");
    }
    client.ask("PING", "+PONG\r\n").await;
}

#[tokio::test]
async fn every_command_finds_a_table_created_through_another_proxy() {
    let one = "$1\r\na\r\n";
    for (line, expected) in [
        ("GET a", "$1\r\n1\r\n"),
        ("MGET b a", "*2\r\n$-1\r\n$1\r\n1\r\n"),
        ("EXISTS a", ":1\r\n"),
        ("TYPE a", "+string\r\n"),
        ("TTL a", ":-1\r\n"),
        ("DBSIZE", ":1\r\n"),
        ("KEYS *", &format!("*1\r\n{one}")),
        ("SCAN 0", &format!("*2\r\n$1\r\n0\r\n*1\r\n{one}")),
        ("RANDOMKEY", one),
        ("DEL b a", ":1\r\n"),
        ("GETDEL a", "$1\r\n1\r\n"),
        ("EXPIRE a 100", ":1\r\n"),
        ("FLUSHDB", "+OK\r\n"),
        ("FLUSHALL", "+OK\r\n"),
        ("SETNX a 2", ":0\r\n"),
        ("RENAME a c", "+OK\r\n"),
        ("COPY a c", ":1\r\n"),
        ("COPY a c DB 4", ":1\r\n"),
        ("MOVE a 4", ":1\r\n"),
        ("HGET a f", "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"),
    ] {
        let server = Server::start().await;
        let mut client = server.connect().await;
        client.ask("SELECT 3", "+OK\r\n").await;
        server.world.create_elsewhere("db3", "a", "1");
        client.ask(line, expected).await;
        let is_gone = ["DEL", "GETDEL", "FLUSHDB", "FLUSHALL", "RENAME", "MOVE"]
            .contains(&line.split(' ').next().unwrap());
        client.ask("EXISTS a", if is_gone { ":0\r\n" } else { ":1\r\n" }).await;
        // In a pipeline as well, among commands on another table.
        server.world.create_elsewhere("db5", "a", "5");
        client
            .send("SELECT 0\r\nSET x 1\r\nGET x\r\nSELECT 5\r\nGET a\r\nSELECT 0\r\nGET x\r\n")
            .await;
        client.expect("+OK\r\n+OK\r\n$1\r\n1\r\n+OK\r\n$1\r\n5\r\n+OK\r\n$1\r\n1\r\n").await;
    }
}

#[tokio::test]
async fn unknown_table_name_is_looked_up_in_the_catalogue() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("SELECT users", "-ERR no such table 'users'\r\n").await;
    server.world.create_elsewhere("users", "a", "1");
    client.ask("SELECT 40", "-ERR DB index is out of range\r\n").await;
    client.send("SELECT 17\r\nGET a\r\nSELECT 0\r\nSELECT users\r\nGET a\r\n").await;
    client.expect("+OK\r\n$1\r\n1\r\n+OK\r\n").await;
    client.expect("+OK\r\n$1\r\n1\r\n").await;
    *server.world.metas.lock() = Metas::Leaderless;
    let mut other = server.connect().await;
    other.ask("CONFIG SET call-deadline-ms 100", "+OK\r\n").await;
    let refused = "-CLUSTERDOWN The table can't be looked up or made now, nothing was done: no \
                   meta leads\r\n";
    other.ask("SELECT other", refused).await;
    other.ask("SELECT 16", refused).await;
    // Numbers of databases and invalid names need no look-up.
    other.ask("SELECT 15", "+OK\r\n").await;
    other.ask("SELECT -1", "-ERR DB index is out of range\r\n").await;
    other.ask("SELECT \"\\xff\"", "-ERR no such table '\u{fffd}'\r\n").await;
}

#[tokio::test]
async fn pipeline_asks_the_catalogue_once_per_missing_table() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send("SELECT 3\r\nSET x 1\r\nSELECT 4\r\n").await;
    client.expect("+OK\r\n+OK\r\n+OK\r\n").await;
    let asked = || server.world.finds.load(Relaxed);
    let before = asked();
    client.send("GET a\r\n".repeat(100) + "DBSIZE\r\nKEYS *\r\n").await;
    client.expect(&("$-1\r\n".repeat(100) + ":0\r\n*0\r\n")).await;
    let after = asked();
    assert!(after - before <= 4, "a hundred commands that came together: {}", after - before);
    client.ask("GET a", "$-1\r\n").await;
    assert!(asked() > after, "what comes later asks again");
    // Between the two reads the pipeline has an effect, and other clients may have one.
    let before = asked();
    client.send("GET a\r\nSELECT 3\r\nGET x\r\nSELECT 4\r\nGET a\r\n").await;
    client.expect("$-1\r\n+OK\r\n$1\r\n1\r\n+OK\r\n$-1\r\n").await;
    assert_eq!(asked() - before, 2);
}

#[tokio::test]
async fn unreachable_catalogue_is_an_error_after_the_deadline() {
    let server = Server::with(1, |settings| settings.call_deadline_ms = 120).await;
    let mut client = server.connect().await;
    client.ask("SET a 1", "+OK\r\n").await;
    client.ask("SELECT 3", "+OK\r\n").await;
    for (metas, why) in
        [(Metas::Leaderless, "no meta leads"), (Metas::Frozen, "none has answered in time")]
    {
        *server.world.metas.lock() = metas;
        let refused = format!(
            "-CLUSTERDOWN The table can't be looked up or made now, nothing was done: {why}\r\n"
        );
        let lines = [
            "GET a",
            "MGET a b",
            "DBSIZE",
            "KEYS *",
            "SCAN 0",
            "RANDOMKEY",
            "DEL a",
            "FLUSHDB",
            "FLUSHALL",
            "WATCH a",
            "SET a 1",
        ];
        for line in lines.into_iter().chain(["COPY a b DB 0", "MOVE a 0", "SELECT users"]) {
            let begun = Instant::now();
            client.ask(line, &refused).await;
            assert!(
                (Duration::from_millis(40)..Duration::from_secs(2)).contains(&begun.elapsed()),
                "{line}: {:?}",
                begun.elapsed()
            );
        }
        let begun = Instant::now();
        client.send("GET a\r\n".repeat(100) + &"SET a 1\r\n".repeat(100)).await;
        client.expect(&refused.repeat(200)).await;
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "a pipeline does not wait each time: {:?}",
            begun.elapsed()
        );
        client
            .send(
                "MULTI\r\nGET a\r\nEXEC\r\nMULTI\r\nSELECT users\r\nSELECT 0\r\nSET a \
                 2\r\nEXEC\r\n",
            )
            .await;
        client
            .expect(&format!(
                "+OK\r\n+QUEUED\r\n{refused}+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n{refused}"
            ))
            .await;
        // Known tables still work, and so do commands without a table.
        client.send("SCAN 1000000000000000000000\r\nSELECT 0\r\nGET a\r\nSELECT 3\r\n").await;
        client.expect("-ERR invalid cursor\r\n+OK\r\n$1\r\n1\r\n+OK\r\n").await;
    }
    *server.world.metas.lock() = Metas::Fine;
    client.ask("GET a", "$-1\r\n").await;
}

#[tokio::test]
async fn reads_of_a_dropped_named_table_fail() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    server.world.create("users");
    client.send("SELECT users\r\nSET a 1\r\nGET a\r\n").await;
    client.expect("+OK\r\n+OK\r\n$1\r\n1\r\n").await;
    server.world.drop_table("users");
    let missing = "-ERR no such table 'users'\r\n";
    for line in [
        "GET a",
        "SET a 1",
        "EXISTS a",
        "DBSIZE",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "FLUSHDB",
        "WATCH a",
        "MOVE a 1",
        "COPY a b DB 1",
        "HGETALL a",
        "MGET a b",
        "TYPE a",
    ] {
        client.ask(line, missing).await;
    }
    // Also in one pipeline, and in a transaction.
    client.send("GET a\r\nDBSIZE\r\nMULTI\r\nGET a\r\nEXEC\r\nPING\r\n").await;
    client.expect(&format!("{missing}{missing}+OK\r\n+QUEUED\r\n{missing}+PONG\r\n")).await;
    // Numbered tables are created by their first write, and are empty before.
    client.send("SELECT 3\r\nGET a\r\nDBSIZE\r\nKEYS *\r\nFLUSHDB\r\nWATCH a\r\n").await;
    client.expect("+OK\r\n$-1\r\n:0\r\n*0\r\n+OK\r\n+OK\r\n").await;
    assert!(server.world.names().is_empty());
}
