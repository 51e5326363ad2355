//! The protocol of a real server: fragments, pipelines, sizes, malformed input, limits,
//! and the replies before a stop. (Tests without a server are in `proxy/tests/`.)

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Client, Server, Value, within};

/// A command as a RESP array.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[test]
fn commands_may_arrive_byte_by_byte() {
    let server = Server::start();
    let mut client = server.client();
    let bytes =
        [command(&[b"SET", b"k", b"a\r\nb"]), b"get k\r\n".to_vec(), command(&[b"STRLEN", b"k"])]
            .concat();
    for byte in bytes {
        client.send_raw(&[byte]).expect("a live server");
    }
    assert_eq!(client.reply().expect("a reply"), Value::ok());
    assert_eq!(client.reply().expect("a reply"), Value::bulk("a\r\nb"));
    assert_eq!(client.reply().expect("a reply"), Value::Int(4));
}

#[test]
fn keys_fields_and_values_may_be_any_bytes() {
    let server = Server::start();
    let mut client = server.client();
    let every: Vec<u8> = (0..=255).collect();
    let reversed: Vec<u8> = (0..=255).rev().collect();
    assert_eq!(client.call(&[b"SET", &every[..], &reversed]).expect("a reply"), Value::ok());
    assert_eq!(client.call(&[b"GET", &every[..]]).expect("a reply"), Value::Bulk(reversed.clone()));
    assert_eq!(
        client.call(&[b"HSET", &reversed[..], &every, &every, b"", b""]).expect("a reply"),
        Value::Int(2)
    );
    assert_eq!(
        client.call(&[b"HGET", &reversed[..], &every]).expect("a reply"),
        Value::Bulk(every.clone())
    );
    assert_eq!(
        client.call(&[b"HGET", &reversed[..], b""]).expect("a reply"),
        Value::Bulk(Vec::new())
    );
    assert_eq!(client.call(&[&b"SET"[..], b"", b"empty"]).expect("a reply"), Value::ok());
    assert_eq!(client.run("DBSIZE"), Value::Int(3));
    // Keys with a common prefix are distinct.
    for n in 1..=20 {
        client.call(&[&b"SET"[..], &vec![0; n], n.to_string().as_bytes()]).expect("a reply");
    }
    for n in 1..=20 {
        assert_eq!(
            client.call(&[&b"GET"[..], &vec![0; n]]).expect("a reply"),
            Value::bulk(&n.to_string())
        );
    }
}

#[test]
fn a_pipeline_of_100_000_commands_keeps_its_order() {
    let server = Server::builder().flag("durability", "os").start();
    let mut client = server.client();
    let commands: Vec<Vec<String>> = (0..50_000_u32)
        .flat_map(|n| {
            [vec!["INCR".to_owned(), "n".to_owned()], vec!["ECHO".to_owned(), n.to_string()]]
        })
        .collect();
    // The whole pipeline is sent before the first reply is read.
    let replies = client.pipeline(&commands).expect("a live server");
    assert_eq!(replies.len(), 100_000);
    for (n, pair) in replies.chunks(2).enumerate() {
        assert_eq!(pair, [Value::Int(n as i64 + 1), Value::bulk(&n.to_string())]);
    }
}

#[test]
fn malformed_input_gets_redis_words_and_the_end() {
    let server = Server::start();
    for (bytes, words) in [
        (&b"*x\r\n"[..], "invalid multibulk length"),
        (b"*99999999999\r\n", "invalid multibulk length"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (
            b"*1\r\n$16777217\r\n",
            "invalid bulk length: 16777217 bytes are more than proto-max-bulk-len (16777216 \
             bytes; CONFIG SET changes it)",
        ),
        (b"*1\r\n$4x\r\nPING\r\n", "invalid bulk length"),
        (b"SET k \"v\r\n", "unbalanced quotes in request"),
        (&[b'x'; 70_000], "too big inline request"),
    ] {
        let mut client = server.client();
        client.send_raw(b"PING\r\n").expect("a live server");
        assert_eq!(
            client.reply().expect("what was fine is answered"),
            Value::Status("PONG".into())
        );
        // The server may close the connection while more data is in flight.
        let _ = client.send_raw(bytes);
        assert_eq!(
            client.reply().expect("a reply"),
            Value::Error(format!("ERR Protocol error: {words}"))
        );
        assert!(client.reply().is_err(), "the connection goes on after {words}");
    }
    assert_eq!(server.client().run("PING"), Value::Status("PONG".into()));
}

/// A hash larger than one write can't be renamed, copied or moved; the error names the
/// limit.
#[test]
fn an_oversized_hash_is_not_renamed_copied_or_moved() {
    let server = Server::builder()
        .flag("durability", "os")
        .flag("set", "storage.max_write_size=4KiB")
        .start();
    let mut client = server.client();
    let value = "v".repeat(1500);
    for field in ["a", "b", "c"] {
        assert_eq!(client.run(&format!("HSET h {field} {value}")), Value::Int(1));
    }
    for command in ["RENAME h to", "RENAMENX h to", "COPY h to", "COPY h to DB 1", "MOVE h 1"] {
        let Value::Error(error) = client.run(command) else { panic!("{command} was carried out") };
        assert!(
            error.starts_with("ERR the key is larger than max_write_size"),
            "{command}: {error}"
        );
    }
    assert_eq!(client.run("HLEN h"), Value::Int(3));
    assert_eq!(client.run("EXISTS to"), Value::Int(0));
}

#[test]
fn values_up_to_the_limit_are_kept_and_larger_ones_are_refused() {
    const LIMIT: usize = 16 << 20;
    let server = Server::builder().flag("durability", "os").start();
    let mut client = server.client();
    let large: Vec<u8> = (0..LIMIT - 1024).map(|n| (n % 251) as u8).collect();
    assert_eq!(client.call(&[b"SET", &b"k"[..], &large]).expect("a reply"), Value::ok());
    assert_eq!(client.call(&["GET", "k"]).expect("a reply"), Value::Bulk(large.clone()));
    assert_eq!(client.run("STRLEN k"), Value::Int(large.len() as i64));
    // Two values that fit alone do not fit into one write; the connection stays open.
    let refused = client.call(&[b"MSET", &b"a"[..], &large, b"b", &large]).expect("a reply");
    assert_eq!(
        refused,
        Value::Error(
            "ERR request is larger than max_write_size (16777216 bytes; the configuration file \
             changes it, at a restart)"
                .into()
        )
    );
    assert_eq!(client.run("EXISTS a b"), Value::Int(0));
    // APPEND has the same limit as SET.
    assert!(client.call(&[b"APPEND", &b"k"[..], &[b'x'; 4096]]).expect("a reply").is_error());
    assert_eq!(client.run("STRLEN k"), Value::Int(large.len() as i64));
    assert!(client.run(&format!("SETRANGE k {LIMIT} x")).is_error());
    let key = vec![b'k'; 65_536];
    assert!(
        client.call(&[b"SET", &key[..], b"v"]).expect("a reply").is_error(),
        "the longest key has 65,535 bytes"
    );
    assert_eq!(client.call(&[b"SET", &key[1..], b"v"]).expect("a reply"), Value::ok());
    assert_eq!(client.call(&[b"GET", &key[1..]]).expect("a reply"), Value::bulk("v"));
    assert_eq!(client.call(&[b"HSET", &b"h"[..], b"f", &large]).expect("a reply"), Value::Int(1));
    assert_eq!(client.call(&["HGET", "h", "f"]).expect("a reply"), Value::Bulk(large));
}

#[test]
fn client_over_maxclients_gets_an_error() {
    let server = Server::builder().flag("set", "proxy.maxclients=5").start();
    // The kit's client, which waited for the start, must be disconnected.
    let mut first = server.client();
    within(30, "one client is left", || first.run("CLIENT LIST").text().lines().count() == 1);
    let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.run("PING"), Value::Status("PONG".into())));
    let mut sixth = server.client();
    assert_eq!(
        sixth.reply().expect("a reply"),
        Value::Error("ERR max number of clients reached".into())
    );
    assert!(sixth.reply().is_err(), "the connection goes on");
    clients.pop();
    within(30, "the next is served", || {
        matches!(server.client().call(&["PING"]), Ok(Value::Status(_)))
    });
}

#[test]
fn an_idle_client_is_closed_and_a_busy_one_is_not() {
    let server = Server::builder().flag("set", "proxy.timeout=\"3s\"").start();
    let (mut idle, mut busy) = (server.client(), server.client());
    assert_eq!(idle.run("PING"), Value::Status("PONG".into()));
    let began = Instant::now();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(idle.reply().is_err(), "the idle connection is closed");
            over.store(true, Ordering::Relaxed);
        });
        within(20, "the idle client is closed", || {
            assert_eq!(busy.run("PING"), Value::Status("PONG".into()));
            over.load(Ordering::Relaxed)
        });
    });
    assert!(began.elapsed() >= Duration::from_millis(2900), "closed after {:?}", began.elapsed());
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory() {
    const LIMIT: u64 = 32 << 20;
    let server = Server::builder()
        .flag("durability", "os")
        .flag("set", "proxy.client_output_buffer_limit=\"32MiB\"")
        .start();
    let mut client = server.client();
    assert_eq!(
        client.call(&[b"SET", &b"k"[..], &vec![b'v'; 1 << 20]]).expect("a reply"),
        Value::ok()
    );
    let before = server.rss_bytes();
    let mut deaf = TcpStream::connect(("127.0.0.1", server.port)).expect("the port is open");
    deaf.set_write_timeout(Some(Duration::from_millis(200))).expect("a live socket");
    // Asks for 4 GiB. The server either stops reading its commands or ends the
    // connection.
    let asked = deaf.write_all(&b"GET k\r\n".repeat(4096)).is_ok();
    let mut most = 0;
    let watching = Instant::now();
    while watching.elapsed() < Duration::from_secs(2) {
        most = most.max(server.rss_bytes().saturating_sub(before));
        assert_eq!(client.run("PING"), Value::Status("PONG".into()), "others are served meanwhile");
    }
    assert!(most < 3 * LIMIT, "a deaf client holds {most} bytes (all was sent: {asked})");
    drop(deaf);
    within(30, "it is forgotten", || client.run("CLIENT LIST").text().lines().count() == 1);
}

#[test]
fn a_long_pipeline_of_large_values_is_delivered() {
    let server = Server::builder()
        .flag("durability", "os")
        .flag("set", "proxy.client_output_buffer_limit=\"32MiB\"")
        .start();
    let mut client = server.client();
    let value = Value::Bulk(vec![b'v'; 1 << 20]);
    assert_eq!(
        client.call(&[b"SET", &b"k"[..], &vec![b'v'; 1 << 20]]).expect("a reply"),
        Value::ok()
    );
    let mut reader = server.client();
    // The last command is a write: it is executed after the large replies, once.
    reader
        .send_raw(&[&b"GET k\r\n".repeat(300)[..], b"INCR n\r\n"].concat())
        .expect("a live server");
    for n in 0..300 {
        assert!(reader.reply().expect("a reply") == value, "reply {n}");
    }
    assert_eq!(reader.reply().expect("a reply"), Value::Int(1));
}

/// Sends pipelines of INCR n:<me>, each after the replies of the last, until the server
/// closes the connection; returns the last number.
fn count_until_the_end(port: u16, me: usize) -> i64 {
    let mut client = Client::connect(port).expect("the port is open");
    let (key, mut answered) = (format!("n:{me}"), 0);
    let burst: Vec<Vec<&str>> = (0..100).map(|_| vec!["INCR", &key]).collect();
    while let Ok(replies) = client.pipeline(&burst) {
        answered = replies.last().expect("a hundred replies").int();
    }
    answered
}

/// At a stop, every executed command is answered, and unanswered commands are not
/// executed.
#[test]
fn a_stop_executes_only_commands_that_it_answers() {
    let mut server = Server::start();
    let port = server.port;
    let answered: Vec<i64> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..8).map(|me| scope.spawn(move || count_until_the_end(port, me))).collect();
        let mut client = server.client();
        within(30, "all write", || {
            (0..clients.len()).all(|me| client.run(&format!("GET n:{me}")) != Value::Nil)
        });
        server.signal("TERM");
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    });
    assert!(server.wait().success(), "{}", server.output());
    server.restart();
    let mut client = server.client();
    for (me, answered) in answered.into_iter().enumerate() {
        assert_eq!(
            client.run(&format!("GET n:{me}")),
            Value::bulk(&answered.to_string()),
            "n:{me}"
        );
    }
}

#[test]
fn waiting_clients_are_answered_or_closed_at_the_stop() {
    let mut server = Server::start();
    let mut idle = server.client();
    idle.run("PING");
    let mut half = TcpStream::connect(("127.0.0.1", server.port)).expect("the port is open");
    half.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nha").expect("a live server");
    let began = Instant::now();
    assert!(server.stop().success());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "the stop waited {:?} for idle clients",
        began.elapsed()
    );
    assert!(idle.reply().is_err());
    assert_eq!(half.read(&mut [0; 16]).unwrap_or(0), 0);
    server.restart();
    assert_eq!(server.client().run("EXISTS k"), Value::Int(0), "half a command was obeyed");
}
