//! Bounds of a client's memory, whatever it sends and however little it reads.

mod kit;

use std::time::{Duration, Instant};

use kit::{Client, Server, command};
use proxy::ClientsMemory;
use tokio::io::AsyncReadExt;

const MIB: usize = 1 << 20;
/// Replies are made up to this size before the client must read.
const OUTPUT_HIGH: usize = 8 * MIB;

/// The maximum memory of all clients until it has not grown for a while. On a busy
/// machine it may take longer until it grows at all.
async fn peak(server: &Server) -> usize {
    let (mut peak, mut last) = (0, Instant::now());
    let patience = |peak| Duration::from_millis(if peak < MIB { 10_000 } else { 400 });
    while last.elapsed() < patience(peak) {
        let held = server.proxy.clients.used_bytes();
        if held > peak {
            (peak, last) = (held, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    peak
}

async fn filled(server: &Server) -> Client {
    let mut client = server.connect().await;
    client.send(command(&["SET", "mid", &"m".repeat(MIB)])).await;
    client.expect("+OK\r\n").await;
    let fields: String =
        (0..2000).map(|number| command(&["HSET", "h", &format!("field:{number}"), "v"])).collect();
    client.send(fields).await;
    client.expect(&":1\r\n".repeat(2000)).await;
    let keys: String = (0..2000)
        .map(|number| command(&["SET", &format!("key:{number}:{}", "x".repeat(1000)), "v"]))
        .collect();
    client.send(keys).await;
    client.expect(&"+OK\r\n".repeat(2000)).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_replies_of_every_kind_are_bounded() {
    let server = Server::start().await;
    let _filler = filled(&server).await;
    for (asked, times) in [
        ("MULTI\r\nGET mid\r\nEXEC\r\n", 2000),
        ("MULTI\r\nCOMMAND DOCS\r\nEXEC\r\n", 500),
        ("COMMAND DOCS\r\n", 1000),
        ("GET mid\r\n", 4000),
        ("GET mid\r\nSET x 1\r\n", 1000),
        ("HRANDFIELD h -100000\r\n", 200),
        ("HGETALL h\r\n", 2000),
        ("KEYS *\r\n", 500),
        ("CLIENT LIST\r\n", 60_000),
        ("INFO everything\r\n", 4000),
        ("SCAN 0 COUNT 3000\r\n", 500),
    ] {
        let mut client = server.connect().await;
        let small = "PING\r\n".repeat(10_000);
        client.send(&small).await;
        client.expect(&"+PONG\r\n".repeat(10_000)).await;
        client.send(asked.repeat(times)).await;
        let peak = peak(&server).await;
        // Replies in a buffer that may be twice as large while it grows, and as much of
        // answers without a reply yet.
        assert!(peak < 3 * OUTPUT_HIGH, "{asked:?}: {} MiB", peak / MIB);
        assert!(
            peak > OUTPUT_HIGH,
            "{asked:?}: {} MiB: it was not asked for more than is held",
            peak / MIB
        );
    }
}

#[tokio::test]
async fn unread_replies_arrive_in_order_once_the_client_reads() {
    let server = Server::with(3, |_| {}).await;
    let mut client = server.connect().await;
    let value = "m".repeat(MIB);
    for key in ["a", "b", "c", "d"] {
        client.send(command(&["SET", key, &value])).await;
        client.expect("+OK\r\n").await;
    }
    // Reads of several partitions, writes between them, and local commands.
    let round = "GET a\r\nGET b\r\nINCR n\r\nGET c\r\nSELECT 1\r\nGET d\r\nSELECT 0\r\nMGET a b \
                 c\r\nTYPE a\r\nGET d\r\nGET n\r\n";
    client.send(round.repeat(12)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let bulk = format!("${MIB}\r\n{value}\r\n");
    for round in 1..=12 {
        let number = round.to_string();
        let told = format!(
            "{bulk}{bulk}:{number}\r\n{bulk}+OK\r\n$-1\r\n+OK\r\n*3\r\n{bulk}{bulk}{bulk}+string\
             \r\n{bulk}"
        );
        client.expect(&told).await;
        client.expect(&format!("${}\r\n{number}\r\n", number.len())).await;
    }
    client.ask("PING", "+PONG\r\n").await;
}

#[tokio::test]
async fn large_answers_of_many_partitions_are_not_collected_in_vain() {
    let server = Server::with(64, |settings| settings.answer_bytes_max = 4 * MIB).await;
    let mut client = server.connect().await;
    let keys: Vec<String> = (0..64).map(|number| format!("key:{number}")).collect();
    let value = "m".repeat(MIB / 4);
    for key in &keys {
        client.send(command(&["SET", key, &value])).await;
        client.expect("+OK\r\n").await;
    }
    let reads = || server.world.reads.swap(0, std::sync::atomic::Ordering::Relaxed);
    reads();
    let all = format!("MGET {}\r\n", keys.join(" "));
    let told = "-ERR answer is larger than max_answer_size (4194304 bytes; the configuration file \
                changes it, at a restart): read in parts, as with HSCAN, HRANGE, GETRANGE or \
                SCAN\r\n";
    client.ask(all.trim_end(), told).await;
    let asked = reads();
    // The keys are in 36 partitions, up to four in one.
    assert!((4..=16).contains(&asked), "{asked} partitions were asked for what is refused");
    // Other commands are not refused with it, nor are writes skipped.
    let bulk = format!("${}\r\n{value}\r\n", value.len());
    client
        .send(format!(
            "GET key:1\r\nSET key:2 2\r\n{all}GET key:2\r\nGET key:63\r\nMGET key:3 key:4 \
             key:5\r\nINCR n\r\n"
        ))
        .await;
    client
        .expect(&format!("{bulk}+OK\r\n{told}$1\r\n2\r\n{bulk}*3\r\n{bulk}{bulk}{bulk}:1\r\n"))
        .await;
    let each: String = keys.iter().map(|key| format!("GET {key}\r\n")).collect();
    client.send(&each).await;
    for key in &keys {
        client.expect(if key == "key:2" { "$1\r\n2\r\n" } else { &bulk }).await;
    }
}

#[tokio::test]
async fn queued_commands_count_the_size_of_their_arguments() {
    let server = Server::with(1, |settings| settings.answer_bytes_max = 16 * MIB).await;
    let mut client = server.connect().await;
    client.ask("MULTI", "+OK\r\n").await;
    client.send("COMMAND DOCS\r\n".repeat(1000)).await;
    client.expect(&"+QUEUED\r\n".repeat(1000)).await;
    let mut other = server.connect().await;
    let queued = other.figure("CLIENT LIST ID 1", "lib-ver=\n\r\n", "multi-mem").await;
    assert!(queued < 200_000, "{queued} bytes");
    // Arguments that are refused while others are queued are not kept.
    let ballast = command(&["WATCH", &"w".repeat(MIB)]);
    for _ in 0..30 {
        client.send(format!("{ballast}GET a\r\n")).await;
        client.expect("-ERR WATCH inside MULTI is not allowed\r\n+QUEUED\r\n").await;
    }
    let held = other.figure("CLIENT LIST ID 1", "lib-ver=\n\r\n", "tot-mem").await;
    assert!(held < 2 << 20, "{held} bytes");
    let told = "-ERR the transaction's replies are larger than max_answer_size (16777216 bytes; \
                the configuration file changes it, at a restart), nothing was done\r\n";
    client.ask("EXEC", told).await;
    client.ask("SET a 1", "+OK\r\n").await;
}

#[tokio::test]
async fn machines_hold_no_more_than_an_answer() {
    let server = Server::with(4, |settings| settings.answer_bytes_max = MIB).await;
    let mut client = server.connect().await;
    let keys: String = (0..3000)
        .map(|number| command(&["SET", &format!("key:{number}:{}", "x".repeat(1000)), "v"]))
        .collect();
    client.send(keys).await;
    client.expect(&"+OK\r\n".repeat(3000)).await;
    let limit = "max_answer_size (1048576 bytes; the configuration file changes it, at a restart)";
    client.ask("KEYS *", &format!("-ERR the keys take more than {limit}: use SCAN\r\n")).await;
    let told = format!(
        "-ERR answer is larger than {limit}: read in parts, as with HSCAN, HRANGE, GETRANGE or \
         SCAN\r\n"
    );
    client.ask("SCAN 0 COUNT 3000", &told).await;
    client.send(command(&["SET", "large", &"v".repeat(MIB + 1)])).await;
    client.expect("+OK\r\n").await;
    for line in ["MOVE large 1", "COPY large large DB 1"] {
        let told = client.until(line, "\r\n").await;
        assert!(told.starts_with("-ERR the key is larger than max_write_size"), "{told}");
    }
    client.send("EXISTS large\r\nSELECT 1\r\nEXISTS large\r\n").await;
    client.expect(":1\r\n+OK\r\n:0\r\n").await;
}

#[tokio::test]
async fn answers_that_alone_are_too_large_name_the_limit() {
    let server =
        Server::with(1, |settings| settings.clients_memory = ClientsMemory::Bytes(4 << 20)).await;
    let mut client = server.connect().await;
    let keys: String = (0..3000)
        .map(|number| command(&["SET", &format!("key:{number}:{}", "x".repeat(1000)), "v"]))
        .collect();
    client.send(keys).await;
    client.expect(&"+OK\r\n".repeat(3000)).await;
    let limit = "maxmemory-clients (4194304 bytes; CONFIG SET changes it)";
    client.ask("CONFIG SET maxmemory-clients 3mb", "+OK\r\n").await;
    let limit = limit.replace("4194304", "3145728");
    client.ask("KEYS *", &format!("-ERR the keys take more than {limit}: use SCAN\r\n")).await;
    client.ask("CONFIG SET maxmemory-clients 0", "+OK\r\n").await;
    client.send(command(&["SET", "v", &"v".repeat(5 * MIB)])).await;
    client.expect("+OK\r\n").await;
    client.ask("CONFIG SET maxmemory-clients 1%", "+OK\r\n").await;
    client
        .ask("CONFIG GET maxmemory-clients", "*2\r\n$17\r\nmaxmemory-clients\r\n$2\r\n1%\r\n")
        .await;
    client.ask("CONFIG SET maxmemory-clients 4mb", "+OK\r\n").await;
    let limit = limit.replace("3145728", "4194304");
    let told = format!(
        "-ERR answer is larger than {limit}: read in parts, as with HSCAN, HRANGE, GETRANGE or \
         SCAN\r\n"
    );
    client.ask("GET v", &told).await;
    client.send("MULTI\r\nGET v\r\nSET w 1\r\nEXEC\r\n").await;
    client.expect("+OK\r\n+QUEUED\r\n+QUEUED\r\n").await;
    client
        .expect(&format!(
            "-ERR the transaction was executed, but its replies are larger than {limit}\r\n"
        ))
        .await;
    client.ask("GET w", "$1\r\n1\r\n").await;
}

#[tokio::test]
async fn largest_client_is_evicted() {
    let server =
        Server::with(1, |settings| settings.clients_memory = ClientsMemory::Bytes(8 << 20)).await;
    let (mut large, mut small, mut watcher) =
        (server.connect().await, server.connect().await, server.connect().await);
    let queue = command(&["SET", "k", &"q".repeat(MIB)]);
    large.ask("MULTI", "+OK\r\n").await;
    small.ask("MULTI", "+OK\r\n").await;
    for (client, times) in [(&mut large, 3), (&mut small, 2)] {
        client.send(queue.repeat(times)).await;
        client.expect(&"+QUEUED\r\n".repeat(times)).await;
    }
    let told = watcher.figure("CLIENT LIST ID 1", "lib-ver=\n\r\n", "tot-mem").await;
    assert!((3 << 20..4 << 20).contains(&told), "{told}");
    // Its input takes memory while it arrives.
    watcher.ask("CONFIG SET maxmemory-clients 5mb", "+OK\r\n").await;
    large.expect_end().await;
    assert_eq!(watcher.figure("INFO stats", "total_partition_ops:", "evicted_clients").await, 1);
    watcher.until("", "\r\n\r\n").await;
    small.ask("DISCARD", "+OK\r\n").await;
    // An exempt client stays, and another is evicted.
    let mut exempt = server.connect().await;
    exempt.ask("CLIENT NO-EVICT on", "+OK\r\n").await;
    exempt.ask("MULTI", "+OK\r\n").await;
    small.ask("MULTI", "+OK\r\n").await;
    for (client, times) in [(&mut exempt, 2), (&mut small, 1)] {
        client.send(queue.repeat(times)).await;
        client.expect(&"+QUEUED\r\n".repeat(times)).await;
    }
    watcher.ask("CONFIG SET maxmemory-clients 3mb", "+OK\r\n").await;
    small.expect_end().await;
    exempt.ask("DISCARD", "+OK\r\n").await;
    assert_eq!(server.proxy.stats.evicted_clients.get(), 2);
}

/// Sends everything, and only then reads this many bytes.
async fn write_first(client: &mut Client, sent: &str, wanted: usize) -> usize {
    client.send(sent).await;
    let (mut got, mut piece) = (0, vec![0; MIB]);
    while got < wanted {
        match tokio::time::timeout(Duration::from_secs(20), client.stream.read(&mut piece))
            .await
            .expect("in time")
        {
            Ok(read) if read > 0 => got += read,
            _ => break,
        }
    }
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipeline_may_be_sent_whole_before_replies_are_read() {
    let limits = |settings: &mut proxy::Settings| {
        (settings.query_bytes_max, settings.bulk_bytes_max, settings.write_bytes_max) =
            (4 * MIB, 4 * MIB, 4 * MIB);
    };
    for (len, times) in [(1000, 40_000), (100, 300_000), (2 * MIB, 20)] {
        let server = Server::with(1, limits).await;
        let mut client = server.connect().await;
        let value = "g".repeat(len);
        client.send(command(&["SET", "g", &value])).await;
        client.expect("+OK\r\n").await;
        let sent = command(&["SET", "g", &value, "GET"]).repeat(times);
        let wanted = format!("${len}\r\n{value}\r\n").len() * times;
        let sending =
            tokio::time::timeout(Duration::from_secs(40), write_first(&mut client, &sent, wanted));
        assert_eq!(sending.await.expect("nobody waits for ever"), wanted, "{times} of {len} bytes");
        client.ask("PING", "+PONG\r\n").await;
    }
}

#[tokio::test]
async fn commands_that_are_too_large_are_read_and_refused() {
    let server = Server::with(1, |settings| {
        (settings.query_bytes_max, settings.bulk_bytes_max, settings.write_bytes_max) =
            (8 * MIB, 2 * MIB, 2 * MIB);
    })
    .await;
    let bulk = "proto-max-bulk-len (2097152 bytes; CONFIG SET changes it)";
    let query = "client-query-buffer-limit (8388608 bytes; CONFIG SET changes it)";
    let large = command(&["SET", "v", &"x".repeat(9 * MIB), "EX", "10"]);
    let many: String = "*50000\r\n".to_owned() + &"$1\r\na\r\n".repeat(50_000);
    let longer = format!(
        "*6\r\n$3\r\nDEL\r\n{}",
        format!("${}\r\n{}\r\n", 2 * MIB, "y".repeat(2 * MIB)).repeat(5)
    );
    for (sent, told) in [
        (large.clone(), format!("invalid bulk length: 9437184 bytes are more than {bulk}")),
        (
            large.clone() + &large,
            format!("invalid bulk length: 9437184 bytes are more than {bulk}"),
        ),
        (
            many,
            format!(
                "invalid multibulk length: 50000 arguments, at 200 bytes each, \
                 are more than {query}"
            ),
        ),
        (longer, format!("command is longer than {query}")),
        ("z".repeat(3 * MIB) + "\r\n", "too big inline request".to_owned()),
    ] {
        let cut = || {
            server.proxy.stats.oversized_disconnections.get()
                + server.proxy.stats.query_limit_disconnections.get()
        };
        let before = cut();
        let mut client = server.connect().await;
        client.send("PING\r\n").await;
        client.send(&sent).await;
        client.expect(&format!("+PONG\r\n-ERR Protocol error: {told}\r\n")).await;
        client.expect_end().await;
        assert_eq!(cut(), before + 1, "{told}");
    }
}

#[tokio::test]
async fn unauthenticated_oversized_command_gets_an_error_cheaply() {
    let server = Server::with(1, |settings| settings.password = Some("secret".into())).await;
    let mut client = server.connect().await;
    client.send(command(&["SET", "v", &"x".repeat(500_000)])).await;
    client.expect("-ERR Protocol error: unauthenticated bulk length\r\n").await;
    client.expect_end().await;
    // More than is discarded for it: it gets the error immediately.
    let mut client = server.connect().await;
    client
        .send(format!("*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$900000000\r\n{}", "x".repeat(2 * MIB)))
        .await;
    client.expect("-ERR Protocol error: unauthenticated bulk length\r\n").await;
    assert!(server.proxy.clients.used_bytes() < 2 * MIB);
}

#[tokio::test]
async fn killed_or_gone_client_is_noticed_while_a_command_waits() {
    let server = Server::with(1, |settings| settings.clients_max = 3).await;
    let (mut killed, mut left, mut client) =
        (server.connect().await, server.connect().await, server.connect().await);
    for one in [&mut killed, &mut left, &mut client] {
        one.ask("PING", "+PONG\r\n").await;
    }
    let begun = Instant::now();
    *server.world.delay.lock() = Duration::from_secs(8);
    killed.send("SET a 1\r\n").await;
    left.send("SET b 1\r\n").await;
    while server.world.calls.load(std::sync::atomic::Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.ask("CLIENT KILL ID 1", ":1\r\n").await;
    killed.expect_end().await;
    drop(left);
    while server.proxy.clients.len() > 1 {
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "they are there as long as their commands wait"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Their permits are returned.
    let (mut third, mut fourth) = (server.connect().await, server.connect().await);
    third.ask("PING", "+PONG\r\n").await;
    fourth.ask("PING", "+PONG\r\n").await;
    assert!(begun.elapsed() < Duration::from_secs(6));
    // Running commands were finished.
    *server.world.delay.lock() = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(12) {
        client.send("EXISTS a b\r\n").await;
        if client.until("", "\r\n").await == ":2\r\n" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("what was under way was not finished");
}

#[tokio::test]
async fn commands_that_came_before_the_end_are_answered() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    *server.world.delay.lock() = Duration::from_millis(100);
    client.send("SET a 1\r\n").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    client.send("SET b 2\r\nGET b\r\n").await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("an open socket");
    client.expect("+OK\r\n+OK\r\n$1\r\n2\r\n").await;
    client.expect_end().await;
}
